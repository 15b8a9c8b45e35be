"""The one place where anything is printed: data on stdout, everything else on stderr.

Three modes. ``human`` prints for people; ``json`` prints one document (docs/json.md); ``quiet`` prints only what the
next command of a pipe would want, and errors. Text that came from a package is made visible here, whoever passes it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Final, Literal

import click

from conceptry.cli.text import make_visible
from conceptry.registry.rows import CELL_BREAK

Mode = Literal["human", "json", "quiet"]
_MEASURED_LINES: Final = 1000
_BATCH_LINES: Final = 2000
_INDENTED_ROWS: Final = 100


@dataclass(slots=True)
class Output:
    """What a command says, in the mode that was asked for."""

    mode: Mode = "human"
    verbose: bool = False

    # --- data: stdout ------------------------------------------------------------------------------------------

    def emit(
        self, document: Mapping[str, Any], lines: Iterable[str], *, quiet: Iterable[str] | None = None
    ) -> None:
        """Prints a result: ``document`` as JSON, ``lines`` for people, ``quiet`` (else nothing) in quiet mode."""
        if self.mode == "json":
            _print_json(document)
            return
        for line in lines if self.mode == "human" else quiet or ():
            click.echo(make_visible(line))

    def emit_table(
        self,
        document: Mapping[str, Any],
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        empty: str,
    ) -> None:
        """Prints rows: as JSON, as a table for people, or their first column in quiet mode.

        ``empty`` is said on stderr where there are no rows.
        """
        if self.mode == "json":
            _print_json(document)
        elif self.mode == "quiet":
            for row in rows:
                click.echo(make_visible(row[0]))
        elif not rows:
            self.note(empty)
        else:
            _print_table(columns, [[make_visible(cell) for cell in row] for row in rows])

    def emit_lines(self, columns: Sequence[str], lines: Sequence[str], *, empty: str) -> None:
        """Prints many rows, each a text whose cells are joined by ``CELL_BREAK``, in full and as fast as it goes.

        Columns are as wide as the first rows need. In quiet mode the first cell alone is printed.
        """
        if not lines:
            self.note(empty)
        elif self.mode == "quiet":
            _print_batches(make_visible(line.partition(CELL_BREAK)[0]) for line in lines)
        else:
            _print_batches(_align_lines([CELL_BREAK.join(columns), *lines]))

    # --- everything else: stderr -------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Says something that is no data, to people."""
        if self.mode == "human":
            click.echo(make_visible(text), err=True)

    def warn(self, text: str) -> None:
        """Says what somebody should know before they use the result."""
        if self.mode != "quiet":
            click.echo(f"{_paint('warning:', 'yellow')} {make_visible(text)}", err=True)

    def log(self, text: str) -> None:
        """Says what is going on, with ``--verbose`` only."""
        if self.verbose:
            click.echo(make_visible(text), err=True)

    def fail(self, message: str, *, hint: str | None, fields: Mapping[str, Any]) -> None:
        """Says why a command failed: one sentence and its hint, or ``{"error": ...}`` as one line of JSON."""
        if self.mode == "json":
            error = {"message": message, "hint": hint, **fields}
            click.echo(_dump({"error": error}, indent=None), err=True)
            return
        click.echo(f"{_paint('error:', 'red')} {make_visible(message)}", err=True)
        if hint:
            click.echo(f"hint: {make_visible(hint)}", err=True)


def has_terminal(stream: IO[str]) -> bool:
    """Returns whether a person looks at ``stream``."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_color(stream: IO[str]) -> bool:
    """Returns whether ``stream`` may have colours; ``NO_COLOR`` (no-color.org) forbids them."""
    return has_terminal(stream) and not os.environ.get("NO_COLOR")


def _paint(text: str, color: str) -> str:
    return click.style(text, fg=color, bold=True) if has_color(sys.stderr) else text


def _print_json(document: Mapping[str, Any]) -> None:
    if any(isinstance(value, list) and len(value) > _INDENTED_ROWS for value in document.values()):
        _print_batches(_dump_rows(document))
    else:
        click.echo(_dump(document, indent=2))


def _dump_rows(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields a long document with a line for each element of its lists; indenting takes the slow encoder."""
    encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode
    comma = "{"
    for key, value in document.items():
        rows = value if isinstance(value, list) else None
        yield f"{comma}{encode(key)}: {'[' if rows else encode(_clean(value))}".replace("\x7f", "\\u007f")
        if rows:
            lines = (encode(_clean(row)).replace("\x7f", "\\u007f") for row in rows[:-1])
            yield from (f"{line}," for line in lines)
            yield f"{encode(_clean(rows[-1]))}]".replace("\x7f", "\\u007f")
        comma = ","
    yield "}"


def _dump(document: Mapping[str, Any], indent: int | None) -> str:
    # ASCII only, so that no character of a package reaches a terminal as itself; DEL is the one ASCII control left.
    return json.dumps(_clean(document), indent=indent, ensure_ascii=True, allow_nan=False).replace(
        "\x7f", "\\u007f"
    )


def _clean(value: Any) -> Any:
    """Returns ``value`` with null in place of numbers that are not finite: a score without a span, a mean of none."""
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not has_terminal(sys.stdout):
        _print_columns(columns, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _align_lines(lines: Sequence[str]) -> Iterator[str]:
    head = [line.split(CELL_BREAK) for line in lines[:_MEASURED_LINES]]
    widths = [max(map(len, column)) for column in zip(*head, strict=True)]
    pattern = "  ".join([*(f"%-{width}s" for width in widths[:-1]), "%s"])
    for line in lines:
        cells = tuple(line.split(CELL_BREAK))
        aligned = (pattern % cells).rstrip()
        # Almost every line is plain: whoever is not is looked at cell by cell.
        plain = aligned.isascii() and aligned.isprintable()
        yield aligned if plain else (pattern % tuple(map(make_visible, cells))).rstrip()


def _print_batches(lines: Iterable[str]) -> None:
    rest = iter(lines)
    while batch := list(islice(rest, _BATCH_LINES)):
        click.echo("\n".join(batch))


def _print_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints whole cells whatever their length: what is not a terminal is read by a program."""
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
