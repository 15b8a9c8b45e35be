"""The page of what uses came to: a section for each, with its table, its remarks and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conceptry.evaluation.bench_page import open_picture
from conceptry.evaluation.pages import (
    Figure,
    make_facts,
    make_heading,
    make_note,
    make_page,
    make_pictures,
    make_table,
)
from conceptry.evaluation.use_results import UseFile


def make_use_page(results: Sequence[UseFile], folder: Path) -> str:
    """Returns the page of results; ``folder`` holds the pictures that they name."""
    parts: list[str] = []
    for one in results:
        parts += [
            make_heading(one.title, *one.remarks),
            make_table(one.columns, one.rows),
            make_pictures(_list_figures(one, folder), strip=True),
            make_facts(one.facts.items()),
            make_note(f"commit {one.commit}; {', '.join(f'{k} {v}' for k, v in one.machine.items())}"),
        ]
    return make_page("What concepts were used for", parts)


def _list_figures(one: UseFile, folder: Path) -> list[Figure]:
    found = [(open_picture(folder, row.file), row.caption) for row in one.pictures]
    return [Figure(picture=picture, caption=caption) for picture, caption in found if picture is not None]
