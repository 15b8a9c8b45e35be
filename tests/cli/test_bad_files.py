"""What people take for a concept file and is none, or is damaged: named, exit code 4 or 6, and nothing is stored."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from tests.cli.conftest import Run

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SAID = ("--name", "me/imp", "--version", "1.0.0", "--license", "CC0-1.0", "--yes")
WORD = ("--placeholder", "<imp>", "--base", "sd1")


def make_adapter(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return a sound adapter for SD1 with some tensors changed, or left out where they are None."""
    tensors = {
        "lora_down.weight": np.ones((4, 768), np.float16),
        "lora_up.weight": np.ones((320, 4), np.float16),
        "alpha": np.array(2, np.float16),
    }
    changed = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {f"{BLOCK}.{name}": value for name, value in changed.items() if value is not None}


def make_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("imp.safetensors", save(make_adapter()))
    return file.getvalue()


# What it is -> its bytes, the exit code, and what is said of it.
FILES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "a Git LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1234\n",
        4,
        "a Git LFS pointer",
    ),
    "an error page": (lambda: b"<!DOCTYPE html><html><body>Not found</body></html>", 4, "an HTML page"),
    "a GGUF": (lambda: b"GGUF\x03\0\0\0" + bytes(64), 4, "a GGUF file"),
    "an empty file": (lambda: b"", 4, "an empty file"),
    "a zip": (make_zip, 4, "zip archive"),
    "a text": (lambda: b"a note about an imp\n" * 20, 4, "a text file"),
    "a download that was cut off": (lambda: save(make_adapter())[:-100], 4, "cut off"),
    "half an adapter": (
        lambda: save(make_adapter(lora_up__weight=None)),
        4,
        "this tensor is missing; its other half is there",
    ),
    "an adapter with NaN": (
        lambda: save(make_adapter(lora_up__weight=np.full((320, 4), np.nan, np.float16))),
        4,
        "NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_named_for_what_it_is_and_nothing_is_stored(
    name: str, run: Run, tmp_path: Path
) -> None:
    make, code, sentence = FILES[name]
    path = tmp_path / "imp.safetensors"
    path.write_bytes(make())
    finished = run("import", str(path), *SAID, *WORD, code=code)
    assert sentence in finished.err
    assert finished.err.startswith("error: ")
    assert run("list", "-q").out == ""


def test_an_adapter_for_another_family_than_declared_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "imp.safetensors"
    save_file(make_adapter(), path)
    said = (*SAID, "--placeholder", "<imp>", "--base", "sdxl")
    finished = run("import", str(path), *said, code=6)
    assert "is for sd1, not for sdxl" in finished.err
    assert run("list", "-q").out == ""


def test_two_halves_of_sdxl_with_different_words_are_no_pair(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "learned_embeds.safetensors", tmp_path / "learned_embeds_2.safetensors"
    save_file({"<imp>": np.ones((1, 768), np.float32)}, first)
    save_file({"<elf>": np.ones((1, 1280), np.float32)}, second)
    finished = run("import", str(first), str(second), *SAID, "--base", "sdxl", code=6)
    assert "'<imp>'" in finished.err
    assert "'<elf>'" in finished.err
    assert "they are no pair" in finished.err
    assert run("list", "-q").out == ""


def test_identify_names_them_too(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "imp.safetensors"
    for make, _, sentence in list(FILES.values())[:7]:
        path.write_bytes(make())
        assert sentence in run("identify", str(path), code=4).err
    path.write_bytes(FILES["half an adapter"][0]())
    found = json.loads(run("identify", str(path), "--json").out)
    assert any("its other half is there" in reason for reason in found["reasons"])
