"""Help: every command has a page with examples that work, and the list of commands says the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from conceptry.cli.commands import COMMANDS, CommandRow
from conceptry.cli.groups import ConceptsCommand, load_command
from conceptry.cli.main import concepts
from tests.cli.conftest import Run

ROOT = click.Context(concepts, info_name="concepts", help_option_names=["-h", "--help"])


def iter_leaves(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yields each command that does something, with its path."""
    if not isinstance(command, click.Group):
        yield context.command_path, command
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is not None:
            yield from iter_leaves(child, click.Context(child, info_name=name, parent=context))


LEAVES = dict(iter_leaves(concepts, ROOT))


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_list_of_commands_says_what_the_command_says(row: CommandRow) -> None:
    command = load_command(row)
    assert command.name == row.name
    assert (command.help or "").splitlines()[0] == row.summary


@pytest.mark.parametrize(("path", "command"), LEAVES.items(), ids=LEAVES.keys())
def test_every_command_has_help_and_examples(path: str, command: click.Command) -> None:
    assert isinstance(command, ConceptsCommand)
    assert command.examples
    assert (command.help or "").strip()
    nameless = [
        parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert set(nameless) <= {"device"}


EXAMPLES = [example for command in LEAVES.values() for example in getattr(command, "examples", ())]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_parsed(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(example.partition(" > ")[0])
    assert program == "concepts"
    command: click.Command = concepts
    context = ROOT
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        settings = click.Context(command, info_name=name, parent=context)
        context = (
            settings
            if isinstance(command, click.Group)
            else command.make_context(name, words, parent=context)
        )


@pytest.mark.parametrize("path", LEAVES, ids=str)
def test_every_command_has_the_common_options(path: str, run: Run) -> None:
    words = path.split()[1:]
    page = run(*words, "--help").out
    assert page.startswith(f"Usage: {path} ")
    for option in ("--json", "--quiet", "--verbose", "--offline", "Examples:"):
        assert option in page


def test_without_words_the_command_shows_its_help(run: Run) -> None:
    assert run().out == run("--help").out
    assert run("remote").out.startswith("Usage: concepts remote ")


def test_completion_scripts_are_printed_for_three_shells(run: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_CONCEPTS_COMPLETE" in run("completion", shell).out


def test_concepts_of_the_store_complete(run: Run, imp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "concepts show me")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_CONCEPTS_COMPLETE", "bash_complete")
    assert run().out == "plain,me/imp\n"
