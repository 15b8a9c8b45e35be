"""What is built from the tree is whole, and works away from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE_FOLDERS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "tool"
]["setuptools"]["package-dir"]
PROJECT_FILES = ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "SPEC.md", "CHANGELOG.md")
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", ".*")


def run(*command: str, cwd: Path, **environment: str) -> str:
    finished = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of what is shipped, so that building leaves nothing in the working tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in PROJECT_FILES:
        shutil.copy(ROOT / name, folder / name)
    for room in PACKAGE_FOLDERS.values():
        shutil.copytree(ROOT / room, folder / room, ignore=NOT_SHIPPED)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"),
        *("--wheel-dir", str(out), str(source)),
        cwd=out,
    )
    return next(out.glob("*.whl"))


def test_wheel_holds_every_file_of_every_room(source: Path, wheel: Path) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(source / room).as_posix()}"
        for package, room in PACKAGE_FOLDERS.items()
        for path in (source / room).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        assert expected - set(archive.namelist()) == set()


def test_wheel_installed_elsewhere_runs_from_there(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
        *("--target", str(target), str(wheel)),
        cwd=tmp_path,
    )
    where = run(
        sys.executable,
        "-c",
        "import conceptry.registry; print(conceptry.registry.__file__)",
        cwd=tmp_path,
        PYTHONPATH=str(target),
    )
    assert Path(where.strip()) == target / "conceptry" / "registry" / "__init__.py"
    assert "train" in run(sys.executable, "-m", "conceptry", "--help", cwd=tmp_path, PYTHONPATH=str(target))


def test_sdist_holds_the_specification(source: Path, tmp_path: Path) -> None:
    program = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", program, str(tmp_path), cwd=source)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"SPEC.md", "LICENSE", "toybox/__init__.py"} <= names
