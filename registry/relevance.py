"""A quick search: the best of the first so many rows that match, however many there are.

Scoring all matches of a word that every tenth concept has takes as long as reading them all. So whole words are looked
for first, then the last one as the beginning of a word, as somebody types it, then all as beginnings. Looking ends at a
number of rows; those are ordered by where the words stand.

FTS5 reads all rows of all words that begin so before it gives the first one. So the beginning of a word is first
completed to the words that there are, and those are looked for instead, which gives the same rows one by one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_MAX_COMPLETIONS: Final = 32
"""Of a beginning that more words have, each is rare, and reading their rows takes no time."""

_PAST: Final = "\x01"
"""No word has it: a word with it behind is past all places of that word, and before every other word."""

_KNOW_WORDS: Final = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.known_words USING fts5vocab(main, versions_fts, instance)"
)
_NEXT_WORD: Final = "SELECT term FROM temp.known_words WHERE term >= ? LIMIT 1"
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
    sql = _FOUND.format(where=where, joint="AND" if where else "WHERE")
    found: dict[int, tuple[str, str]] = {}
    for asked in _iter_questions(connection, words):
        for place, name, title in connection.execute(sql, (*values, asked, most + 1)):
            found.setdefault(place, (name, title))
        if len(found) > most:
            break
    wanted = [word.casefold() for word in words]
    ordered = sorted(list(found)[:most], key=lambda place: _rank(wanted, *map(str, found[place])))
    return Best(tuple(ordered), len(found) <= most)


def _iter_questions(connection: sqlite3.Connection, words: Sequence[str]) -> Iterator[str]:
    """Yields what FTS5 is asked, each for more than the one before: whole words, the last one begun, all begun."""
    *before, last = words
    yield " AND ".join(map(_quote, words))
    ending = _match_beginning(connection, last)
    if before:
        yield " AND ".join([*map(_quote, before), ending])
    yield " AND ".join([*(_match_beginning(connection, word) for word in before), ending])


def _match_beginning(connection: sqlite3.Connection, word: str) -> str:
    """Returns what FTS5 is asked for words that begin so. Raises sqlite3.Error."""
    # Of other letters only the tokenizer knows what it makes of them.
    completed = _complete(connection, word.lower()) if word.isascii() and word.isalnum() else ()
    return f"({' OR '.join(map(_quote, completed))})" if completed else f"{_quote(word)} *"


def _quote(word: str) -> str:
    return f'"{word}"'


def _complete(connection: sqlite3.Connection, beginning: str) -> tuple[str, ...]:
    """Returns the words of the index that begin so, in order; none if there are too many. Raises sqlite3.Error."""
    connection.execute(_KNOW_WORDS)
    known: list[str] = []
    row = connection.execute(_NEXT_WORD, (beginning,)).fetchone()
    while row is not None and row[0].startswith(beginning):
        known.append(row[0])
        if len(known) > _MAX_COMPLETIONS:
            return ()
        row = connection.execute(_NEXT_WORD, (row[0] + _PAST,)).fetchone()
    return tuple(known)


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
