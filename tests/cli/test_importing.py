"""Files of other programs become versions; what had to be decided is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.cli.conftest import Run

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SAID = ("--name", "me/imp", "--version", "1.0.0", "--placeholder", "<imp>", "--license", "CC0-1.0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give an adapter in kohya's layout."""
    path = tmp_path / "imp.safetensors"
    save_file(
        {
            f"{BLOCK}.lora_down.weight": np.ones((4, 768), np.float16),
            f"{BLOCK}.lora_up.weight": np.ones((320, 4), np.float16),
            f"{BLOCK}.alpha": np.array(2, np.float16),
        },
        path,
    )
    return path


def test_an_imported_file_is_published(run: Run, file: Path) -> None:
    document = run("import", str(file), *SAID, "--base", "sd1", "--yes", "--json").document
    assert (document["reference"], document["kind"], document["created"]) == ("me/imp@1.0.0", "lora", True)
    shown = run("show", "me/imp", "--json").document
    assert shown["digest"] == document["digest"]
    assert shown["manifest"]["builds"][0]["provenance"]["imported_from"] == document["imported_from"]
    assert shown["manifest"]["builds"][0]["parts"][0]["method"]["scale"] == 0.5


def test_importing_twice_gives_the_same_digest(run: Run, file: Path) -> None:
    first = run("import", str(file), *SAID, "--base", "sd1", "--yes", "--json").document
    again = run("import", str(file), *SAID, "--base", "sd1", "--yes", "--json").document
    assert (again["digest"], again["created"]) == (first["digest"], False)


def test_dry_run_publishes_nothing(run: Run, file: Path) -> None:
    finished = run("import", str(file), *SAID, "--base", "sd1", "--dry-run")
    assert finished.out.startswith("would publish\n  me/imp@1.0.0\n")
    assert run("list", "-q").out == ""


def test_importing_without_a_person_needs_yes(run: Run, file: Path) -> None:
    finished = run("import", str(file), *SAID, "--base", "sd1", code=2)
    assert finished.err.endswith(
        "error: Publish me/imp@1.0.0? Nobody is here to answer\nhint: add --yes to agree beforehand\n"
    )
    assert run("list", "-q").out == ""


def test_a_text_file_is_refused_by_what_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!doctype html><html>not found</html>", encoding="utf-8")
    finished = run("import", str(tmp_path / "page.safetensors"), *SAID, "--base", "sd1", "--yes", code=4)
    assert finished.err.startswith("error: 'page.safetensors' is ")
    assert run("list", "-q").out == ""


def test_a_truncated_file_is_refused(run: Run, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])
    run("import", str(file), *SAID, "--base", "sd1", "--yes", code=4)
    run("identify", str(file), code=4)
    assert run("list", "-q").out == ""


def test_a_base_that_the_file_contradicts_is_refused(run: Run, file: Path) -> None:
    finished = run("import", str(file), *SAID, "--base", "sdxl", "--yes", code=6)
    assert "is for sd1, not for sdxl" in finished.err
