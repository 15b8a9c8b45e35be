"""Marks that may change beside versions that may not: tags and yanks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.packages import write_package


@pytest.fixture
def two(run: Run, imp: str, tmp_path: Path) -> str:
    """Give the reference of the later of two versions."""
    run("publish", str(write_package(tmp_path / "next", version="1.1.0")))
    return "me/imp@1.1.0"


def test_a_tag_moves_and_keeps_its_history(run: Run, imp: str, two: str) -> None:
    assert run("tag", imp, "stable").out == "me/imp:stable is 1.0.0\n"
    assert run("tag", two, "stable").out == "me/imp:stable is 1.1.0 (it was at 1.0.0)\n"
    moved = run("tag", "me/imp:stable", "stable", "--json").document
    assert (moved["reference"], moved["moves"]) == (two, 2)
    shown = run("show", "me/imp:stable", "--json").document
    assert shown["tags"] == ["stable"]
    moves = shown["tag_history"]["stable"]
    assert [move["version"] for move in moves] == ["1.0.0", "1.1.0"]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", move["time"]) for move in moves)


@pytest.mark.parametrize(("name", "code"), [("latest", 8), ("1.0.0", 2), ("Stable", 2), ("../x", 2)])
def test_what_cannot_be_a_tag_is_refused(run: Run, imp: str, name: str, code: int) -> None:
    run("tag", imp, name, code=code)


def test_a_yanked_version_is_passed_over_until_the_mark_is_taken_back(run: Run, imp: str, two: str) -> None:
    assert run("yank", two, "--reason", "wrong  pictures").out == f"{two} is yanked: wrong  pictures\n"
    assert run("show", "me/imp", "--json").document["reference"] == imp
    assert run("list", "-q").out == f"{imp}\n"
    rows = run("list", "--all", "--json").document["concepts"]
    assert [row["yanked"] for row in rows] == [None, "wrong pictures"]
    assert "(yanked: wrong pictures)" in run("list", "--all").out
    assert run("show", two, "--json").document["yanked"] == "wrong pictures"
    assert "yanked      wrong pictures" in run("show", two).out
    assert run("yank", two, "--undo").out == f"{two} is no longer yanked\n"
    assert run("list", "-q").out == f"{two}\n"
    assert run("yank", two, "--undo", code=3).err == f"error: {two} is not yanked\n"


def test_a_concept_of_which_every_version_is_yanked_is_listed_and_not_chosen(run: Run, imp: str) -> None:
    run("yank", imp, "--reason", "no consent")
    assert run("list", "-q").out == f"{imp}\n"
    assert run("show", "me/imp", code=3).err == (
        f"error: every version of me/imp is yanked\nhint: name one to have it all the same: {imp}\n"
    )
    assert run("show", imp, "-q").out.startswith("sha256:")


@pytest.mark.parametrize(
    "words",
    [
        ["me/imp@1.0.0"],
        ["me/imp@1.0.0", "--reason", "x", "--undo"],
        ["me/imp@1.0.0", "--reason", "  "],
        ["me/imp", "--reason", "x"],
        ["me/imp@1.0.0", "--reason", "x" * 1001],
    ],
)
def test_a_yank_without_a_version_or_a_reason_is_a_usage_error(run: Run, imp: str, words: list[str]) -> None:
    run("yank", *words, code=2)
    assert run("show", imp, "--json").document["yanked"] is None


def test_a_yank_is_found_again_by_a_rebuilt_index(run: Run, imp: str, two: str) -> None:
    run("yank", two, "--reason", "wrong pictures")
    before = run("list", "--all", "--json").document
    run("verify")
    assert run("list", "--all", "--json").document == before


def test_a_version_is_yanked_on_a_remote(run: Run, imp: str, two: str, tmp_path: Path) -> None:
    studio = (tmp_path / "studio").as_uri()
    run("push", imp, studio)
    run("push", two, studio)
    run("remote", "add", "studio", studio)
    run("yank", f"studio::{two}", "--reason", "wrong pictures")
    assert run("show", two, "--json").document["yanked"] is None
    assert run("pull", "studio::me/imp", "--json").document["reference"] == imp
