"""docs/json.md says what is printed, key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conceptry import errors
from conceptry.errors import ConceptryError
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.cli.test_help import LEAVES

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
KEYS = {name: text for names, text in ROWS for name in re.findall(r"`([\w -]+)`", names)}


def documented(command: str) -> set[str]:
    """Returns the keys that the page names for a command, nested ones too, up to the first semicolon."""
    text = re.sub(r"\([^)]*\)|, and what later.*", "", KEYS[command].partition(";")[0])
    return set(re.findall(r"`(\w+)`", text))


def flatten(document: Mapping[str, Any]) -> set[str]:
    """Returns the keys of a document and, one level down, of the rows of its lists."""
    rows = [
        row
        for value in document.values()
        if isinstance(value, list)
        for row in value
        if isinstance(row, dict)
    ]
    return {*document, *(key for row in rows for key in row)}


def test_every_command_has_its_row() -> None:
    assert set(KEYS) == {path.partition(" ")[2] for path in LEAVES}


PRINTED = {
    "list": ["list"],
    "search": ["search", "imp"],
    "show": ["show", "me/imp"],
    "publish": ["publish", "PACKAGE"],
    "push": ["push", "me/imp", "URI"],
    "remove": ["remove", "me/imp", "--yes"],
    "remote add": ["remote", "add", "studio", "URI"],
    "base list": ["base", "list"],
    "base show": ["base", "show", "sd1"],
    "toybox path": ["toybox", "path"],
    "toybox render": ["toybox", "render", "--class", "cup", "--instance", "5", "-n", "1", "--out", "cup"],
    "completion": ["completion", "bash"],
    "identify": ["identify", "PACKAGE/lora.safetensors"],
}


@pytest.mark.parametrize(("command", "words"), PRINTED.items(), ids=PRINTED.keys())
def test_keys_are_the_documented_ones(
    run: Run, imp: str, tmp_path: Path, command: str, words: list[str]
) -> None:
    places = {"PACKAGE": str(tmp_path / "imp"), "URI": (tmp_path / "studio").as_uri()}
    filled = [re.sub("PACKAGE|URI", lambda match: places[match[0]], word) for word in words]
    assert flatten(run(*filled, "--json").document) == documented(command)


def test_pull_and_verify_keys_are_the_documented_ones(run: Run, imp: str, tmp_path: Path) -> None:
    run("remote", "add", "studio", (tmp_path / "studio").as_uri())
    run("push", imp, "studio")
    assert flatten(run("pull", f"studio::{imp}", "--json").document) == documented("pull")
    assert flatten(run("remote", "list", "--json").document) == documented("remote list")
    assert set(run("verify", "--json").document) <= documented("verify")


@pytest.mark.parametrize("command", ["check", "compose"])
def test_composition_keys_are_the_documented_ones(run: Run, imp: str, tmp_path: Path, command: str) -> None:
    run("publish", str(write_package(tmp_path / "look", "me/look")))
    document = run(command, "me/imp", "me/look", "--json").document
    assert set(document) == documented(command)
    inside = set(re.findall(r"`(\w+)`", PAGE.partition("- `check`, `compose`:")[2].partition("- `eval`")[0]))
    assert {key for row in [*document["concepts"], *document["overlaps"]] for key in row} <= inside


def test_every_exit_code_and_error_code_is_in_the_table() -> None:
    classes = [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, ConceptryError)
    ]
    table = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)}
    for found in classes:
        assert f"`{found.code}`" in table[str(found.exit_code)], found.__name__
