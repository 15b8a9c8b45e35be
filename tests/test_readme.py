"""The commands in README.md are commands that exist, with options that exist."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from conceptry.cli.main import concepts

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
LINES = [
    line[11:].partition("  #")[0].strip() for line in README.splitlines() if line.startswith("$ concepts ")
]


@pytest.mark.parametrize("line", LINES)
def test_readme_command_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imp").mkdir()
    words = shlex.split(line)
    command: click.Command = concepts
    context = click.Context(concepts, info_name="concepts")
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        if not isinstance(found, click.Group):
            context = found.make_context(name, words, parent=context)
    assert context.command is command
