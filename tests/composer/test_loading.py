"""Bases from a disk: what opens, and what is refused without running anybody's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.composer.loading import load_pipeline
from conceptry.composer.tensors import from_torch
from conceptry.errors import ConceptryError, IncompatibleError, InvalidFileError, NotFoundError
from conceptry.formats.tensors import write_tensors
from tests.fakes.pipelines import render


@pytest.fixture
def saved(sd1: Any, tmp_path: Path) -> Path:
    sd1.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_pipeline_opens_and_makes_the_same_picture(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    opened = load_pipeline(resolve_base(str(tmp_path), {}))
    # Weights that are read from a file lie elsewhere in memory, where sums may be rounded in another order.
    assert torch.allclose(render(opened, "a cat"), render(pipeline, "a cat"), atol=0.1)
    assert not torch.allclose(render(opened, "a dog"), render(pipeline, "a cat"), atol=0.1)


def test_a_base_on_a_processor_has_its_own_values_in_the_quicker_layout(saved: Path, sd1: Any) -> None:
    unet = load_pipeline(resolve_base(str(saved), {})).unet
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in sd1.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value), name


def test_a_safety_checker_that_is_named_but_absent_is_left_out(saved: Path) -> None:
    edit_index(saved, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert load_pipeline(resolve_base(str(saved), {})).safety_checker is None


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": ["pipeline", "MyPipeline"]},
        {"_class_name": "WanPipeline"},
        {"_class_name": None},
        {"unet": ["my_unet", "MyUnet"]},
        {"extra": ["os", "system"]},
    ],
)
def test_a_folder_that_asks_for_code_of_its_own_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    (saved / "my_unet.py").write_text("raise SystemExit('code of the folder was run')")
    edit_index(saved, **changes)
    with pytest.raises(IncompatibleError):
        load_pipeline(resolve_base(str(saved), {}))


def test_weights_that_could_run_code_are_not_opened(saved: Path) -> None:
    (saved / "unet" / "diffusion_pytorch_model.safetensors").rename(
        saved / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(ConceptryError) as caught:
        load_pipeline(resolve_base(str(saved), {}))
    assert caught.value.exit_code in (3, 4)


def test_truncated_weights_are_named(saved: Path) -> None:
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InvalidFileError, match="base"):
        load_pipeline(resolve_base(str(saved), {}))


def test_a_checkpoint_without_its_configuration_in_the_cache_names_the_download(tmp_path: Path) -> None:
    name = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    write_tensors(tmp_path / "model.safetensors", {name: from_torch(torch.ones(4))})
    with pytest.raises(NotFoundError, match="not in the local cache") as caught:
        load_pipeline(resolve_base(str(tmp_path / "model.safetensors"), {}))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("hf download stable-diffusion-v1-5/")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "lora.safetensors", {"unet.to_q.lora_A.weight": from_torch(torch.ones(2, 4))})
    with pytest.raises(IncompatibleError, match="no Stable Diffusion checkpoint"):
        load_pipeline(BaseLocation(kind="file", path=tmp_path / "lora.safetensors"))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.tensor(1.5),
        torch.ones(0, 3),
        torch.tensor([float("nan"), -0.0]),
        torch.randn(3).bfloat16(),
        torch.randn(3).half(),
        torch.arange(5, dtype=torch.int64),
        torch.tensor([True, False]),
    ],
)
def test_tensors_go_to_files_and_back_bit_for_bit(tensor: torch.Tensor) -> None:
    from conceptry.composer.tensors import to_torch

    raw = from_torch(tensor)
    back = to_torch(raw)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert from_torch(back) == raw


def test_numbers_that_files_cannot_hold_are_refused() -> None:
    with pytest.raises(InvalidFileError, match="complex64"):
        from_torch(torch.ones(2, dtype=torch.complex64))
