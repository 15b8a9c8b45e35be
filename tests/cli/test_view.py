"""``concepts view``: what other programs find in their folders, and what is left alone there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conceptry.formats.header import read_header
from conceptry.registry import Registry
from tests.cli.conftest import Run
from tests.cli.packages import write_package

LORAS = {"comfyui": "loras", "a1111": "Lora", "invokeai": "lora"}


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("program", LORAS)
def test_each_program_finds_a_lora_in_its_folder(run: Run, imp: str, tmp_path: Path, program: str) -> None:
    document = run("view", imp, "--for", program, "--to", str(tmp_path / "models"), "--json").document
    name = f"{LORAS[program]}/me/imp.safetensors"
    assert name in document["written"]
    assert set(document["written"]) | {".conceptry-view.json"} == set(files_in(tmp_path / "models"))
    assert any("lora" in tensor for tensor in read_header(tmp_path / "models" / name).tensors)


def test_running_again_changes_nothing_and_a_new_version_replaces_the_old(
    run: Run, imp: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    view = ("view", "me/imp", "--for", "comfyui", "--to", str(models))
    run(*view)
    lora = models / "loras" / "me" / "imp.safetensors"
    before = (lora.stat().st_ino, lora.read_bytes())
    assert run(*view, "--json").document["written"] == []
    assert (lora.stat().st_ino, lora.read_bytes()) == before
    run("publish", str(write_package(tmp_path / "next", version="1.1.0", title="Larger imp")))
    assert run(*view, "--json").document["unchanged"] == []


def test_what_is_not_named_any_more_is_removed_and_nothing_else(run: Run, imp: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    run("publish", str(write_package(tmp_path / "cup", name="me/cup")))
    run("view", imp, "me/cup", "--for", "comfyui", "--to", str(models))
    mine = models / "loras" / "me" / "mine.safetensors"
    mine.write_bytes(b"mine")
    removed = run("view", "me/cup", "--for", "comfyui", "--to", str(models), "--json").document["removed"]
    assert "loras/me/imp.safetensors" in removed
    assert mine.read_bytes() == b"mine"
    assert (models / "loras" / "me" / "cup.safetensors").is_file()
    run("view", "--for", "comfyui", "--to", str(models))
    assert files_in(models) == [".conceptry-view.json", "loras/me/mine.safetensors"]


def test_a_file_of_somebody_else_is_neither_replaced_nor_removed(run: Run, imp: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    lora = models / "loras" / "me" / "imp.safetensors"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"mine")
    finished = run("view", imp, "--for", "comfyui", "--to", str(models), code=8)
    assert "was not made by concepts view" in finished.err
    assert (lora.read_bytes(), files_in(models)) == (b"mine", ["loras/me/imp.safetensors"])
    lora.unlink()
    run("view", imp, "--for", "comfyui", "--to", str(models))
    lora.chmod(0o644)
    lora.write_bytes(b"changed")
    kept = run("view", "--for", "comfyui", "--to", str(models))
    assert "loras/me/imp.safetensors was changed by somebody else and stays" in kept.err
    assert lora.read_bytes() == b"changed"


@pytest.mark.parametrize("link", ["copy", "hard", "symbolic"])
def test_stored_files_are_placed_as_they_are(run: Run, imp: str, tmp_path: Path, link: str) -> None:
    models = tmp_path / "models"
    run("view", imp, "--for", "comfyui", "--to", str(models), "--as-stored", link)
    placed = models / "loras" / "me" / "imp.safetensors"
    assert placed.read_bytes() == (tmp_path / "imp" / "lora.safetensors").read_bytes()
    blob = next((Registry().root / "blobs" / "sha256").iterdir())
    assert (placed.is_symlink(), os.path.samefile(placed, blob)) == (link == "symbolic", link != "copy")
    assert (
        run("view", imp, "--for", "comfyui", "--to", str(models), "--as-stored", link, "--json").document[
            "written"
        ]
        == []
    )
    run("view", "--for", "comfyui", "--to", str(models))
    assert files_in(models) == [".conceptry-view.json"]
    run("verify")


def test_verify_names_a_blob_that_was_changed_through_a_link(run: Run, imp: str, tmp_path: Path) -> None:
    run("view", imp, "--for", "comfyui", "--to", str(tmp_path / "models"), "--as-stored", "hard")
    placed = tmp_path / "models" / "loras" / "me" / "imp.safetensors"
    placed.chmod(0o644)
    with placed.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    (finding,) = run("verify", "--json", code=4).document["findings"]
    assert (finding["fault"], finding["reference"], finding["file"]) == ("bytes", imp, "lora.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"../../x": {}}}', '{"files": 3}'])
def test_a_damaged_list_of_what_was_made_stops_a_view(run: Run, imp: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".conceptry-view.json").write_text(text, encoding="utf-8")
    run("view", imp, "--for", "comfyui", "--to", str(tmp_path / "models"), code=3)


@pytest.mark.parametrize("name", ["../victim", "/etc/victim", "a/../../victim", "..\\\\victim", "c:victim"])
def test_a_planted_list_leads_nowhere(run: Run, imp: str, tmp_path: Path, name: str) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "victim").write_bytes(b"")
    row = f'{{"concept": "sha256:{"0" * 64}", "how": "x", "sha256": "sha256:{"0" * 64}", "size_bytes": 0}}'
    (models / ".conceptry-view.json").write_text(f'{{"files": {{"{name}": {row}}}}}', encoding="utf-8")
    run("view", "--for", "comfyui", "--to", str(models), code=3)
    assert (tmp_path / "victim").exists()
