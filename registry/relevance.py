"""A quick search: the best of the first so many rows that match, however many there are.

Scoring all matches of a word that every tenth concept has takes as long as reading them all. So whole words are looked
for first, then words that begin so, and looking ends at a number of rows; those are ordered by where the words stand.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

_FOUND = (
    "SELECT versions.rowid, versions.name, versions.title FROM versions_fts "
    "JOIN versions ON versions.rowid = versions_fts.rowid {where} {joint} versions_fts MATCH ? LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Best:
    """Rows that match, the best ones first."""

    places: tuple[int, ...]
    """Their numbers in the table of versions."""

    is_all: bool
    """Whether there are no others."""


def find_best(
    connection: sqlite3.Connection, words: Sequence[str], where: str, values: Sequence[object], *, most: int
) -> Best:
    """Returns the rows that have all words at the beginning of some word, at most ``most`` of them.

    ``where`` restricts the table of versions. Raises sqlite3.Error.
    """
    whole = " ".join(f'"{word}"' for word in words)
    begun = " ".join(f'"{word}"*' for word in words)
    sql = _FOUND.format(where=where, joint="AND" if where else "WHERE")
    found = connection.execute(sql, (*values, whole, most + 1)).fetchall()
    if len(found) <= most:
        known = {row[0] for row in found}
        more = connection.execute(sql, (*values, begun, most + 1)).fetchall()
        found += [row for row in more if row[0] not in known]
    wanted = [word.casefold() for word in words]
    ordered = sorted(found[:most], key=lambda row: _rank(wanted, str(row[1]), str(row[2])))
    return Best(tuple(row[0] for row in ordered), len(found) <= most)


def _rank(wanted: list[str], name: str, title: str) -> tuple[int, int, str]:
    """Names that are the word, then names that begin with it, have all words, titles that have them, and the rest."""
    said = title.casefold()
    order = (
        name in ("-".join(wanted), "_".join(wanted)),
        name.startswith(wanted[0]),
        all(word in name for word in wanted),
        all(word in said for word in wanted),
        True,
    )
    return order.index(True), len(name), name
