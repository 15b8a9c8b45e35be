"""A concept becomes the files of another program; nothing is overwritten, and what came out is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from conceptry.cli.export import TARGETS as OFFERED
from conceptry.formats.deltas import dense_delta
from conceptry.formats.header import read_header
from conceptry.formats.lora import read_lora
from conceptry.formats.writers import WRITER_BY_ID
from conceptry.registry import Registry
from tests.cli.conftest import Run

EXPORT = ("export", "me/imp", "--for")


def test_a_file_is_written_for_kohya_where_it_was_asked_for(run: Run, imp: str, tmp_path: Path) -> None:
    path = tmp_path / "out" / "devil.safetensors"
    document = run(*EXPORT, "kohya", "--to", str(path), "--json").document
    assert (document["reference"], document["target"], document["written"]) == (imp, "kohya", True)
    assert [file["path"] for file in document["files"]] == [str(path)]
    assert set(read_header(path).tensors) == {
        f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.{part}"
        for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }


def test_nothing_is_overwritten_without_force(run: Run, imp: str, tmp_path: Path) -> None:
    path = tmp_path / "imp.safetensors"
    path.write_bytes(b"somebody's")
    finished = run(*EXPORT, "kohya", "--to", str(path), code=8)
    assert "exists already\nhint: name another --to, or add --force" in finished.err
    assert path.read_bytes() == b"somebody's"
    run(*EXPORT, "kohya", "--to", str(path), "--force")
    assert read_header(path).tensors
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "here", tmp_path / "imp"])


def test_dry_run_names_every_file_and_writes_none(run: Run, imp: str, tmp_path: Path) -> None:
    finished = run(*EXPORT, "a1111", "--to", str(tmp_path / "models"), "--dry-run")
    assert [Path(line).name for line in finished.out.splitlines()[1:]] == [
        "imp.safetensors",
        "imp.json",
        "imp.civitai.info",
    ]
    assert not (tmp_path / "models").exists()


def test_notes_beside_the_file_say_the_word_and_can_be_left_out(run: Run, imp: str, tmp_path: Path) -> None:
    run(*EXPORT, "a1111", "--to", str(tmp_path / "models"))
    said = json.loads((tmp_path / "models" / "imp.json").read_text(encoding="utf-8"))
    assert (said["activation text"], said["sd version"], said["preferred weight"]) == ("<imp>", "SD1", 1.0)
    run(*EXPORT, "a1111", "--to", str(tmp_path / "bare"), "--no-sidecars")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["imp.safetensors"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("peft", "--to", "x.safetensors"), 2, "peft reads a folder, not the file 'x.safetensors'"),
        (("kohya", "--to", "x.safetensors", "--build", "sdxl-lora"), 2, "has no build 'sdxl-lora'"),
        (("invokeai", "--to", "x"), 2, "'invokeai' is not one of"),
    ],
)
def test_what_cannot_be_written_is_refused_in_words(
    run: Run, imp: str, words: tuple[str, ...], code: int, said: str
) -> None:
    finished = run(*EXPORT, *words, code=code)
    assert said in finished.err
    assert list(Path.cwd().iterdir()) == []


def test_a_damaged_concept_is_not_exported(run: Run, imp: str, tmp_path: Path) -> None:
    digest = run("show", imp, "--json").document["manifest"]["builds"][0]["parts"][0]["files"][0]["sha256"]
    blob = next(path for path in Registry().root.rglob(digest.removeprefix("sha256:")) if path.is_file())
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(bytes(data))
    run(*EXPORT, "kohya", "--to", "out", code=4)
    assert list(Path.cwd().iterdir()) == []


TARGETS = {
    "diffusers": ("lora", "diffusers"),
    "peft": ("lora", "peft"),
    "kohya": ("lora", "kohya"),
    "comfyui": ("lora", "comfyui"),
    "a1111": ("lora", "kohya"),
}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Give a file as sd-scripts writes it: two networks, different ranks and alphas, fp16."""
    path = tmp_path / "trained.safetensors"
    generator = np.random.default_rng(1)
    tensors = {}
    block = "lora_unet_down_blocks_0_attentions_0"
    layers = {
        f"{block}_transformer_blocks_0_attn2_to_k": (320, 768),
        f"{block}_transformer_blocks_0_ff_net_0_proj": (2560, 320),
        f"{block}_proj_in": (320, 320, 1, 1),
        "lora_unet_conv_in": (320, 4, 3, 3),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
    }
    for rank, (name, (outputs, inputs, *kernel)) in enumerate(layers.items(), start=2):
        ones = [1 for _ in kernel]
        tensors[f"{name}.lora_down.weight"] = generator.standard_normal((rank, inputs, *kernel)).astype(
            np.float16
        )
        tensors[f"{name}.lora_up.weight"] = generator.standard_normal((outputs, rank, *ones)).astype(
            np.float16
        )
        tensors[f"{name}.alpha"] = np.array(0.7 * rank, np.float32)
    save_file(tensors, path)
    return path


def import_as(run: Run, name: str, *paths: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Import files as one concept; return its dense deltas by module."""
    said = ("--name", name, "--placeholder", "zork", "--base", "sd1", "--license", "CC0-1.0", "--yes")
    run("import", *map(str, paths), *said)
    concept = Registry().get(name)
    deltas = {}
    for file in concept.manifest.iter_files():
        for module_name, module in read_lora(concept.locate(file)).modules.items():
            kernel = module.down.shape[2:]
            delta = dense_delta(module, (module.up.shape[0], module.down.shape[1], *kernel))
            assert delta is not None
            deltas[module_name] = delta
    return deltas


@pytest.mark.parametrize("target", TARGETS)
def test_an_adapter_goes_out_to_every_program_and_comes_back_with_the_same_deltas(
    run: Run, trained: Path, tmp_path: Path, target: str
) -> None:
    before = import_as(run, "me/trained", trained)
    run("export", "me/trained", "--for", target, "--to", "out")
    files = sorted(Path("out").rglob("*.safetensors"))
    for path in files:
        found = run("identify", str(path), "--json").document
        assert (found["kind"], found["dialect"]) == TARGETS[target]
        assert found["coverage"]["unexplained"] == []
    after = import_as(run, "me/back", *files)
    assert before.keys() == after.keys()
    for name, delta in before.items():
        assert np.array_equal(delta, after[name]), name


def test_the_programs_of_the_option_are_those_of_the_table() -> None:
    assert TARGETS.keys() == WRITER_BY_ID.keys() == set(OFFERED)


def test_an_approximation_is_made_only_when_asked_for_and_says_its_error(run: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    shapes = {"hada_w1_a": (320, 4), "hada_w1_b": (4, 768), "hada_w2_a": (320, 4), "hada_w2_b": (4, 768)}
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{layer}.{part}": generator.standard_normal(shape, np.float32) for part, shape in shapes.items()
    }
    save_file({**tensors, f"{layer}.alpha": np.array(2, np.float32)}, tmp_path / "loha.safetensors")
    import_only = ("--name", "me/loha", "--base", "sd1", "--license", "CC0-1.0", "--yes")
    run("import", str(tmp_path / "loha.safetensors"), "--placeholder", "zork", *import_only)
    refused = run("export", "me/loha", "--for", "diffusers", "--to", "out", code=6)
    assert "low-rank factors come near it" in refused.err
    assert not Path("out").exists()
    (loss,) = run("export", "me/loha", "--for", "diffusers", "--to", "out", "--lossy", "--json").document[
        "losses"
    ]
    assert loss["module"] == "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert 0 < loss["relative_error"] <= 0.01
