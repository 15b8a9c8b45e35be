"""What commands are made of here: options that every command has, examples in every help, groups that load lazily."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import click

from conceptry.cli.commands import COMMANDS, ROW_BY_NAME, CommandRow
from conceptry.cli.session import Session
from conceptry.errors import UsageError, suggest_nearest


def _change_session(change: Callable[[Session, Any], None]) -> Callable[..., None]:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            change(context.ensure_object(Session), value)

    return callback


def _print_json(session: Session, value: bool) -> None:
    session.out.mode = "json"


def _print_little(session: Session, value: bool) -> None:
    session.out.mode = "quiet"


def _set_verbose(session: Session, value: bool) -> None:
    session.out.verbose = value


def _forbid_network(session: Session, value: bool) -> None:
    session.forbid_network()


def make_common_options() -> list[click.Parameter]:
    """Returns the options that every command has; they change the session and reach no command's function."""
    rows: tuple[tuple[tuple[str, ...], str, Callable[[Session, bool], None]], ...] = (
        (("--json", "as_json"), "Print one JSON document (docs/json.md).", _print_json),
        (("--quiet", "-q"), "Print bare results and errors only.", _print_little),
        (("--verbose", "-v"), "Say what is going on; show tracebacks of faults.", _set_verbose),
        (("--offline",), "Forbid the network; a directory remote is none.", _forbid_network),
    )
    return [
        click.Option(names, is_flag=True, expose_value=False, callback=_change_session(change), help=help)
        for names, help, change in rows
    ]


class ConceptsCommand(click.Command):
    """A command with the common options and with examples, one line each, at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = tuple(examples)
        self.params.extend(make_common_options())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples, unwrapped, so that they can be copied."""
        _write_examples(self.examples, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, once all options are read."""
        ctx.ensure_object(Session).quiet_libraries()
        return super().invoke(ctx)


class ConceptsGroup(click.Group):
    """A group of commands about one noun (``concepts remote ...``)."""

    command_class = ConceptsCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Returns what is left of the words; without any word the help is shown."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that is meant. Raises UsageError with the nearest name."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = self.list_commands(ctx)
            hint = suggest_nearest(name, known) or f"{ctx.command_path} --help lists the commands"
            raise UsageError(f"{ctx.command_path} has no command {name[:80]!r}", hint=hint)
        return super().resolve_command(ctx, args)


class ConceptsRoot(ConceptsGroup):
    """``concepts``: loads a command's module when the command is called, and turns every failure into words."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the table, in its order."""
        return [row.name for row in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns the command, loaded now."""
        row = ROW_BY_NAME.get(cmd_name)
        return None if row is None else load_command(row)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one line a command, by section, from the table alone."""
        for section in dict.fromkeys(row.section for row in COMMANDS):
            with formatter.section(section):
                formatter.write_dl([(row.name, row.summary) for row in COMMANDS if row.section == section])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes where to begin."""
        _write_examples(("concepts demo --out demo-out", "concepts train --help"), formatter)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:
        """Runs the command line and ends the process with the exit code that fits."""
        words = list(sys.argv[1:] if args is None else args)
        session = settings.setdefault("obj", Session())
        settings["standalone_mode"] = False
        try:
            result = super().main(words, *rest, **settings)
        except Exception as error:  # noqa: BLE001  # the one place where every failure becomes words
            if "--json" in words:
                session.out.mode = "json"  # a line that does not parse never reached the option
            from conceptry.cli.failures import explain

            failure = explain(error, _name_command(words))
            failure.report(session.out, error)
            sys.exit(failure.exit_code)
        sys.exit(result if isinstance(result, int) else 0)


def load_command(row: CommandRow) -> click.Command:
    """Returns the command of a row; its module is imported now."""
    module, _, name = row.target.partition(":")
    command = getattr(import_module(f"conceptry.cli.{module}"), name)
    if not isinstance(command, click.Command):
        raise TypeError(f"{row.target} is no command")
    return command


def _name_command(words: Sequence[str]) -> str:
    return f"concepts {words[0]}" if words and words[0] in ROW_BY_NAME else "concepts"


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")
