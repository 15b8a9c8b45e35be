"""A concept becomes the files of another program; nothing is overwritten, and what came out is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conceptry.formats.header import read_header
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
    from conceptry.registry import Registry

    blob = next(path for path in Registry().root.rglob(digest.removeprefix("sha256:")) if path.is_file())
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(bytes(data))
    run(*EXPORT, "kohya", "--to", "out", code=4)
    assert list(Path.cwd().iterdir()) == []
