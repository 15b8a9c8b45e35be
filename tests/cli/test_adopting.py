"""``concepts adopt``, and what it lets ``list`` and the others say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.fakes.collections import write_notes
from tests.formats.adapters import list_modules, write_kohya


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Give a folder with one adapter and what Civitai Helper keeps beside it."""
    folder = tmp_path / "models"
    folder.mkdir()
    modules = {name: shape for name, shape in list_modules("sd1").items() if "down_blocks.0" in name}
    write_kohya(folder / "Imp.safetensors", {name: modules[name] for name in modules if "attn2" in name})
    write_notes(folder / "Imp", "civitai_helper", 7, words=["blueimp"], base="SD 1.5")
    return folder


def test_an_adopted_folder_is_listed_with_its_states(run: Run, models: Path) -> None:
    document = run("adopt", str(models), "--json").document
    assert (document["states"], document["added"], document["failed"]) == ({"pending": 1}, 1, [])
    line = next(line for line in run("list").out.splitlines() if line.startswith("adopted/imp"))
    assert line.split()[1:4] == ["lora", "sd1", "blueimp"]
    assert "(pending)" in line
    assert run("list", "--json").document["adopted"][0]["state"] == "pending"
    assert run("list", "--kind", "embedding", "--json").document["adopted"] == []


def test_a_pending_file_is_refused_with_the_command_that_helps(run: Run, models: Path) -> None:
    run("adopt", str(models))
    finished = run("show", "adopted/imp", code=2)
    assert finished.err.endswith(
        "error: adopted/imp is pending: its bytes were never hashed\nhint: concepts adopt --hash\n"
    )


def test_a_pending_file_cannot_be_locked_and_a_hashed_one_can(run: Run, models: Path) -> None:
    run("adopt", str(models))
    run("init")
    finished = run("add", "adopted/imp", code=2)
    assert "hint: concepts adopt --hash" in finished.err
    run("adopt", "--hash")
    document = run("add", "adopted/imp", "--json").document
    assert document["concepts"][0]["reference"].startswith("adopted/imp@0.0.0+")


def test_a_hashed_file_can_be_used_and_looked_up(run: Run, models: Path) -> None:
    digest = hashlib.sha256((models / "Imp.safetensors").read_bytes()).hexdigest()
    document = run("adopt", str(models), "--hash", "--json").document
    assert (document["hashed"], document["states"]) == (1, {"hashed": 1})
    reference = run("show", "adopted/imp", "--json").document["reference"]
    assert reference == f"adopted/imp@0.0.0+{digest[:16]}"
    assert run("list", "-q").out == f"{reference}\n"
    for text in (digest, digest[:10].upper(), f"{7:012X}"):
        assert run("list", "--hash", text, "--json").document["adopted"][0]["name"] == "adopted/imp"
    assert run("list", "--hash", "ff" * 10, "--json").document["adopted"] == []
    run("list", "--hash", "nothing", code=2)


def test_a_bad_file_is_named_and_the_exit_code_says_so(run: Run, models: Path) -> None:
    (models / "page.safetensors").write_text("<!doctype html><html></html>", encoding="utf-8")
    finished = run("adopt", str(models), code=1)
    assert "1 file could not be read" in finished.out
    assert "page.safetensors: 'page.safetensors' is an HTML page" in finished.err
    assert run("adopt", str(models), "--json", code=1).document["failed"][0]["path"] == "page.safetensors"
    assert run("list", "--json").document["adopted"][0]["name"] == "adopted/imp"


def test_a_folder_is_forgotten(run: Run, models: Path) -> None:
    run("adopt", str(models))
    run("adopt", str(models), "--forget")
    assert run("list", "-q").out == ""
    run("adopt", str(models), "--forget", code=3)
    run("adopt", "--hash", code=3)
    run("adopt", code=2)
