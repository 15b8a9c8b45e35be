"""The commands in README.md are commands that exist, with options that exist, and its Python runs."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any

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


def test_the_example_in_python_runs_and_leaves_the_pipeline_as_it_was(tmp_path: Path) -> None:
    from conceptry.registry import Registry
    from tests.fakes.concepts import make_embedding, make_lora
    from tests.fakes.pipelines import assert_same, make_pipeline, snapshot

    (example,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 10
    pipeline = make_pipeline("sd1")
    registry = Registry()
    make_embedding(tmp_path / "imp", pipeline, "<blue-imp>", name="alice/blue-imp", version="1.2.0")
    make_lora(tmp_path / "ukiyo", pipeline, name="bob/ukiyo", placeholder="<ukiyo>")
    for name in ("imp", "ukiyo"):
        registry.publish(tmp_path / name)
    before = snapshot(pipeline)
    names: dict[str, Any] = {"pipeline": pipeline}
    with contextlib.chdir(tmp_path):
        exec(compile(example, "README.md", "exec"), names)  # noqa: S102  # our own page, as a reader runs it
    assert names["image"].size == (16, 16)
    assert [applied.label for applied in names["report"].concepts] == [
        "alice/blue-imp@1.2.0",
        "bob/ukiyo@1.0.0",
    ]
    assert_same(before, snapshot(pipeline))
