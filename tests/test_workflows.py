"""What the workflows run on other systems can be collected there: no torch, no extras, on Windows no POSIX modules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.absent import EXTRAS, POSIX_MODULES, SYSTEMS
from tests.formats.conftest import NEEDS_LIMITS

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "checks.yml"
NEEDS_TORCH = tuple(f"conceptry.{room}" for room in ("composer", "evaluation", "toybox", "trainer"))


def list_folders() -> list[str]:
    """Return the folders of tests that the workflow runs where there is no torch."""
    found = re.search(r"pytest -q ((?:tests/\w+ ?)+)", WORKFLOW.read_text(encoding="utf-8"))
    assert found is not None
    return found[1].split()


def find_unguarded(path: Path, seen: set[Path] | None = None) -> list[str]:
    """Return the imports at the head of a module, and of its helpers, that fail there and follow no importorskip."""
    seen = set() if seen is None else seen
    if path in seen:
        return []
    seen.add(path)
    found: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr | ast.Assign) and _is_guard(node.value):
            return found
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            helper = ROOT / f"{name.replace('.', '/')}.py"
            if name.startswith("tests.") and helper.is_file():
                found += find_unguarded(helper, seen)
            elif name.partition(".")[0] in (*EXTRAS, *POSIX_MODULES) or name.startswith(NEEDS_TORCH):
                found.append(f"{path.relative_to(ROOT)} line {node.lineno}: {name}")
    return found


def _is_guard(value: ast.expr) -> bool:
    called = value.func if isinstance(value, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr == "importorskip"


def test_no_module_of_tests_needs_at_its_head_what_a_workflow_has_not() -> None:
    paths = [path for folder in list_folders() for path in sorted((ROOT / folder).rglob("test_*.py"))]
    assert len(paths) > 50
    seen = {path for path in paths if path.name == NEEDS_LIMITS}
    assert [line for path in paths for line in find_unguarded(path, seen)] == []


def test_the_check_sees_an_import_through_a_helper_and_heeds_a_guard() -> None:
    assert find_unguarded(ROOT / "tests" / "fakes" / "pipelines.py") != []
    assert find_unguarded(ROOT / "tests" / "composer" / "test_attach.py") != []
    assert find_unguarded(ROOT / "tests" / "formats" / "test_svdiff.py") == []


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_tests_of_a_workflow_are_collected_without_what_that_system_lacks(system: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.absent", "--collect-only", *list_folders()],
        cwd=ROOT,
        env={**os.environ, "ABSENT": system, "PYTHONPATH": "."},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "no tests" not in finished.stdout
