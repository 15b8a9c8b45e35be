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


def test_two_halves_of_an_embedding_are_one_concept(run: Run, tmp_path: Path) -> None:
    for name, width in (("a", 768), ("b", 1280)):
        save_file({"<imp>": np.ones((2, width), np.float32)}, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    document = run("import", *files, "--name", "me/imp", "--yes", "--json").document
    assert (document["family"], document["placeholders"]) == ("sdxl", ["<imp>"])
    save_file({"<cat>": np.ones((2, 1280), np.float32)}, tmp_path / "b.safetensors")
    finished = run("import", *files, "--name", "me/pair", "--yes", code=6)
    assert "they are no pair" in finished.err
    assert run("list", "-q").out.split() == ["me/imp@0.1.0"]


def test_words_of_one_file_can_be_concepts_of_their_own(run: Run, tmp_path: Path) -> None:
    rows = {f"<s{number}>": np.full(768, number + 1, np.float32) for number in range(2)}
    save_file(rows, tmp_path / "words.safetensors")
    said = ("--name", "me/words", "--base", "sd1", "--yes", "--json")
    document = run("import", str(tmp_path / "words.safetensors"), *said, "--split").document
    assert [row["reference"] for row in document["concepts"]] == ["me/words-s0@0.1.0", "me/words-s1@0.1.0"]


def test_the_word_is_asked_for_where_the_file_does_not_say_it(run: Run, tmp_path: Path) -> None:
    save_file({"emb_params": np.ones((2, 768), np.float32)}, tmp_path / "words.safetensors")
    said = ("--name", "me/words", "--base", "sd1", "--yes")
    finished = run("import", str(tmp_path / "words.safetensors"), *said, code=2)
    assert "does not say which word calls the concept" in finished.err
    assert "hint: add --placeholder" in finished.err
    assert run("list", "-q").out == ""
