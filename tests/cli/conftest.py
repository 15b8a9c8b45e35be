"""The command line as a function, on an empty store, and concepts to work on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from conceptry.cli.main import concepts
from tests.cli.packages import write_package


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.out)
        return document


Run = Callable[..., Finished]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs ``concepts`` in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run_concepts(*words: str, code: int = 0) -> Finished:
        result = CliRunner().invoke(concepts, list(words), prog_name="concepts")
        finished = Finished(result.exit_code, result.stdout, result.stderr)
        assert finished.code == code, f"{finished.err}\n{finished.out}"
        return finished

    return run_concepts


@pytest.fixture
def imp(run: Run, tmp_path: Path) -> str:
    """Give the reference of a LoRA in the store."""
    run("publish", str(write_package(tmp_path / "imp")))
    return "me/imp@1.0.0"


@pytest.fixture
def look(run: Run, tmp_path: Path) -> str:
    """Give a second concept for the same base, which changes the same module."""
    token = {"placeholder": "<look>"}
    run("publish", str(write_package(tmp_path / "look", "me/look", "2.0.0", tokens=[token])))
    return "me/look@2.0.0"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a small random base in the diffusers layout, which no test may change."""
    from tests.fakes.pipelines import make_pipeline  # torch, which most tests of the command line do without

    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline("sd1").save_pretrained(folder)
    return folder
