"""The tree, its package list, its tool settings and SPEC.md say the same thing."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_FOLDERS: dict[str, str] = SETTINGS["tool"]["setuptools"]["package-dir"]
ROOM_FOLDERS = sorted(PACKAGE_FOLDERS.values())
NOT_PACKAGES = {"tests", "docs", "benchmarks"}

MODULE_LINE_LIMIT = 600
FUNCTION_LINE_LIMIT = 80

PROMISE = re.compile(
    r"^- \*\*(?P<id>[A-Z]+-\d+)\*\* (?P<text>.+?)(?=^- \*\*|^#|\Z)", re.MULTILINE | re.DOTALL
)
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def modules_of(folder: str) -> Iterator[Path]:
    return (ROOT / folder).glob("*.py")


def contract(contract_id: str) -> dict[str, Any]:
    contracts: list[dict[str, Any]] = SETTINGS["tool"]["importlinter"]["contracts"]
    return next(row for row in contracts if row["id"] == contract_id)


def promises() -> list[tuple[str, str]]:
    text = (ROOT / "SPEC.md").read_text(encoding="utf-8")
    return [(match["id"], match["text"]) for match in PROMISE.finditer(text)]


def functions_in(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_package_list_equals_the_folders_that_hold_code() -> None:
    holding_code = {path.parent.name for path in ROOT.glob("[!.]*/*.py")} - NOT_PACKAGES
    assert sorted(holding_code) == ROOM_FOLDERS
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(PACKAGE_FOLDERS)


@pytest.mark.parametrize("folder", ROOM_FOLDERS)
def test_rooms_hold_no_nested_packages(folder: str) -> None:
    nested = [path for path in (ROOT / folder).rglob("*.py") if path.parent != ROOT / folder]
    assert nested == []


@pytest.mark.parametrize("folder", ROOM_FOLDERS)
def test_modules_and_functions_stay_within_their_length(folder: str) -> None:
    too_long: list[str] = []
    for path in modules_of(folder):
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MODULE_LINE_LIMIT:
            too_long.append(f"{path.name}: {lines} lines")
        for function in functions_in(path):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > FUNCTION_LINE_LIMIT:
                too_long.append(f"{path.name}:{function.lineno} {function.name}: {length} lines")
    assert too_long == []


def test_importing_a_room_by_its_folder_name_is_banned() -> None:
    banned = SETTINGS["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(ROOM_FOLDERS) <= set(banned)


def test_torch_contract_names_every_module_of_core() -> None:
    modules = {f"conceptry.{path.stem}" for path in modules_of("core")} - {
        "conceptry.__init__",
        "conceptry.__main__",
    }
    assert modules <= set(contract("no-torch")["source_modules"])


def test_every_declared_dependency_is_pinned_for_make() -> None:
    project = SETTINGS["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["torch"], *extras["dev"]]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    names = {re.split(r"[<>=;\[ ]", requirement, maxsplit=1)[0].lower() for requirement in declared}
    assert names <= pinned


def test_promises_are_numbered_without_gaps_or_repeats() -> None:
    numbers: dict[str, list[int]] = {}
    for promise_id, _ in promises():
        room, number = promise_id.rsplit("-", 1)
        numbers.setdefault(room, []).append(int(number))
    assert numbers
    assert {room: sorted(found) for room, found in numbers.items()} == {
        room: list(range(1, len(found) + 1)) for room, found in numbers.items()
    }


@pytest.mark.parametrize(("promise_id", "text"), promises(), ids=[row[0] for row in promises()])
def test_promise_names_a_test_that_exists(promise_id: str, text: str) -> None:
    named = TEST_NAME.findall(text)
    assert named, f"{promise_id} names no test"
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file()
        or test not in {function.name for function in functions_in(ROOT / file)}
    ]
    assert missing == []
