"""What the common budget hides: the same methods at their own defaults on a sample, beside their rows of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from conceptry.evaluation.bench_results import ResultFile, ResultRow

COLUMNS: Final = (
    "method",
    "subject",
    "sample passes",
    "identity",
    "in the table",
    "prompt",
    "in the table",
    "processor seconds",
)


def compare_defaults(own: ResultFile, table: ResultFile) -> list[dict[str, Any]]:
    """Returns a row for each method and subject at its own defaults, with what the table has of them."""
    known = {(row.method, row.subject): row for row in table.rows}
    return [
        {
            "method": row.method,
            "subject": row.subject,
            "sample_passes": row.sample_passes,
            "identity": row.identity.normalised,
            "prompt": row.prompt.normalised,
            "processor_seconds": row.training_processor_seconds,
            "in_table": _name_scores(known.get((row.method, row.subject))),
        }
        for row in own.rows
    ]


def _name_scores(row: ResultRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "sample_passes": row.sample_passes,
        "identity": row.identity.normalised,
        "prompt": row.prompt.normalised,
    }


def list_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Returns the cells of ``COLUMNS`` for each row of ``compare_defaults``."""
    cells = []
    for row in rows:
        beside = row["in_table"] or {}
        scores = [value for name in ("identity", "prompt") for value in (row[name], beside.get(name))]
        cells.append([row["method"], row["subject"], row["sample_passes"], *scores, row["processor_seconds"]])
    return cells


def write_defaults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the section of the Markdown page."""
    if not rows:
        return []
    lines = [
        "",
        "## At each method's own defaults",
        "",
        "A sample, with the steps that each method takes by itself instead of the common budget.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for cells in list_cells(rows):
        said = [
            f"{cell:.2f}" if isinstance(cell, float) else "\u2013" if cell is None else str(cell)
            for cell in cells
        ]
        lines.append(f"| {' | '.join(said)} |")
    return lines
