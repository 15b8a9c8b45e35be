"""Compiled blocks: within rounding the same result, the base as before, and clear words where it cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import config

from conceptry.bases import FamilyId
from conceptry.errors import MissingExtraError, UsageError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer.compiling import COMPILE_ROWS, compiled_blocks
from conceptry.trainer.preparation import prepared
from conceptry.trainer.settings import resolve_settings
from conceptry.trainer.training import train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import stage_job, write_job
from tests.trainer.test_distribution import in_double_precision


def stage(method: str, folder: Path, **settings: Any) -> Any:
    base = make_pipeline()
    with prepared(base):
        return stage_job(write_job(method, folder, settings=settings), folder, base)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("perfusion", {"compile": True}, "Perfusion cannot be compiled"),
        ("lora", {"compile": "cuda_graphs"}, "compile = cuda_graphs is not for cpu"),
        ("lora", {"compile": True, "base_precision": "int8"}, "packed or wait elsewhere cannot be compiled"),
        ("lora", {"compile": "fast"}, "fast"),
    ],
)
def test_what_cannot_be_compiled_is_told_before_anything_begins(
    method: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        stage(method, tmp_path, **settings)
    assert str(caught.value.where).startswith("settings.compile")


def test_a_machine_without_a_compiler_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    without: Any = config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with without, pytest.raises(MissingExtraError, match="needs a C\\+\\+ compiler") as caught:
        stage("lora", tmp_path, compile=True)
    assert "install g++" in str(caught.value.hint)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own code, when its compiler is loaded
def test_every_way_to_compile_is_for_some_device_and_leaves_nothing_behind() -> None:
    assert {device for row in COMPILE_ROWS for device in row.devices} == {"cpu", "cuda"}
    base = make_pipeline()
    settings = resolve_settings("lora", FamilyId("sd1"), {"compile": True})
    with compiled_blocks(base, settings, torch.device("cpu")):
        assert any(module._compiled_call_impl is not None for module in base.unet.modules())
    assert all(module._compiled_call_impl is None for module in base.unet.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what compiling says of its own code differs by version
def test_a_compiled_run_gives_the_numbers_of_the_plain_one(tmp_path: Path) -> None:
    """With hooks on the layers that are compiled, and in double precision, where rounding does not grow."""
    found = []
    with in_double_precision() as base:
        for mode in (False, True):
            settings = {"compile": mode, "keep": "last", "targets": ["attention"]}
            job = write_job("lora", tmp_path, steps=3, settings=settings)
            done = train(job, base=base, workdir=tmp_path / str(mode), cache_folder=tmp_path / "cache")
            found.append(read_tensors(done.folder / "lora.safetensors"))
    plain, compiled = found
    assert any(value.to_numpy().any() for value in plain.values())
    for name, value in plain.items():
        expected, other = value.to_numpy(), compiled[name].to_numpy()
        assert abs(expected - other).max() <= 1e-5 * max(abs(expected).max(), 1e-6), name
