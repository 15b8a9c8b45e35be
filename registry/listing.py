"""What is in the store, read from the index by the standard library alone.

A listing starts in milliseconds because nothing here imports pydantic or sqlite_utils. The index is believed only
where it says that it is of the present generation of references; else it is built anew from the files.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from conceptry.digests import Digest
from conceptry.names import ConceptName
from conceptry.registry.file_reading import is_file
from conceptry.registry.files import connect_database
from conceptry.registry.generations import read_generation
from conceptry.registry.paths import Layout
from conceptry.registry.rows import COLUMNS, ListedVersion, is_sound, read_line

APPLICATION_ID: Final = 0x434E4350
INDEX_FORMAT: Final = 5
BUSY_SECONDS: Final = 5.0

_COLUMNS: Final = ", ".join(f"versions.{column}" for column in COLUMNS)
_WORD: Final = re.compile(r"\w+")
_HEX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})", re.ASCII)
_MAX_QUERY_CHARS: Final = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which versions a listing shows; what is None does not restrict."""

    name: ConceptName | None = None
    namespace: str | None = None
    kind: str | None = None
    family: str | None = None
    all_versions: bool = False
    """Every version instead of the latest one of each concept."""

    limit: int | None = None
    """At most so many rows."""

    most_found: int | None = None
    """Of a search with a limit: looking ends at so many rows, however many match; None to look at all of them."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing found: rows, and how many there are without the limit."""

    rows: tuple[ListedVersion, ...]
    count: int
    is_all: bool = True
    """Whether there are no more than ``count``, because all were looked at."""


def read_index(layout: Layout, read: Callable[[sqlite3.Connection], T]) -> T | None:
    """Returns what ``read`` finds in the index; None if the index is absent, damaged or behind."""
    try:
        with closing(connect_current(layout)) as connection:
            return read(connection)
    except IndexBehindError:
        return None


class IndexBehindError(Exception):
    """Raised inside this room when the index cannot be believed; the files can."""


def connect_current(layout: Layout) -> sqlite3.Connection:
    """Returns the index, opened for reading only. Raises IndexBehindError if it cannot be believed."""
    connection = connect_fixed(layout)
    with _closed_on_failure(connection):
        if read_index_generation(connection) != read_generation(layout):
            raise IndexBehindError
    return connection


def connect_fixed(layout: Layout) -> sqlite3.Connection:
    """Returns the index of any generation, opened for reading only. Raises IndexBehindError if it is none of ours."""
    if not is_file(layout.index):
        raise IndexBehindError
    try:
        connection = connect_database(layout.index, "fixed", timeout_seconds=BUSY_SECONDS)
    except sqlite3.Error as error:
        raise IndexBehindError from error
    with _closed_on_failure(connection):
        connection.execute("PRAGMA trusted_schema = OFF")
        if not is_ours(connection):
            raise IndexBehindError
    return connection


@contextmanager
def _closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    """Closes a connection that is not to be given out; what SQLite says against it becomes an IndexBehindError."""
    try:
        yield
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise IndexBehindError from error
        raise


def is_ours(connection: sqlite3.Connection) -> bool:
    """Returns whether this is an index of ours, and of this format. Raises sqlite3.Error."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(application == APPLICATION_ID and version == INDEX_FORMAT)


def read_index_generation(connection: sqlite3.Connection) -> str | None:
    """Returns the generation of references that the index shows. Raises sqlite3.Error."""
    row = connection.execute("SELECT value FROM state WHERE key = 'generation'").fetchone()
    return str(row[0]) if row else None


def query_listing(connection: sqlite3.Connection, wanted: Filter) -> Listing:
    """Returns the listing from an open index, in order of name. Raises IndexBehindError if it is damaged."""
    where, values = _restrict(wanted)
    if wanted.limit is None:
        rows = tuple(iter_listing(connection, wanted))
        count = len(rows)
    else:
        rows = tuple(iter_listing(connection, wanted))
        count = _count(connection, f"SELECT count(*) FROM versions {where}", values)  # noqa: S608
    if where == _LATEST and count != _read_state(connection, "concepts"):
        raise IndexBehindError
    return Listing(rows, count)


def query_lines(connection: sqlite3.Connection, wanted: Filter) -> tuple[str, ...]:
    """Returns what people are shown of a listing, from an open index: a text for each row, its cells still joined.

    Some times as fast as whole rows. A damaged index is noticed before the first line is given out.

    Raises:
        IndexBehindError: if the index is damaged.
    """
    where, values = _restrict(wanted)
    sql = f"SELECT line FROM versions {where} {_order(wanted)}"  # noqa: S608 - of parts written above
    try:
        lines = [read_line(line) for (line,) in connection.execute(sql, values)]
    except (sqlite3.Error, TypeError) as error:
        raise IndexBehindError from error
    found = tuple(line for line in lines if line is not None)
    if len(found) != len(lines) or (where == _LATEST and len(found) != _read_state(connection, "concepts")):
        raise IndexBehindError
    return found


def iter_listing(connection: sqlite3.Connection, wanted: Filter) -> Iterator[ListedVersion]:
    """Yields the listing from an open index, row by row as it is read. Raises IndexBehindError if it is damaged."""
    where, values = _restrict(wanted)
    limit = "" if wanted.limit is None else f"LIMIT {int(wanted.limit)}"
    sql = f"SELECT {_COLUMNS} FROM versions {where} {_order(wanted)} {limit}"  # noqa: S608 - of parts written above
    return _read_rows(connection, sql, values)


def _order(wanted: Filter) -> str:
    return "ORDER BY namespace, name, sort_key" if wanted.all_versions else "ORDER BY namespace, name"


def query_search(connection: sqlite3.Connection, words: str, wanted: Filter) -> Listing:
    """Returns what has all ``words`` at the beginning of some word, from an open index; best matches first.

    A digest, or its first 12 digits or more, finds what has that manifest, that file or those tensors.
    """
    digest = _HEX.fullmatch(words.strip())
    found = _WORD.findall(words[:_MAX_QUERY_CHARS])
    terms = " ".join(f'"{word}"*' for word in found)
    if not terms:
        return query_listing(connection, wanted)
    if digest:
        return query_digest(connection, digest[1], wanted)
    if wanted.limit is not None and wanted.most_found is not None:
        return _query_best(connection, found, wanted, limit=wanted.limit, most=wanted.most_found)
    return _query_found(connection, _WORDS, (terms,), wanted)


def query_digest(connection: sqlite3.Connection, digits: str, wanted: Filter) -> Listing:
    """Returns what has a manifest, a file or tensors whose digest begins with these digits, from an open index."""
    terms = f"sha256:{digits}"
    return _query_found(connection, _DIGESTS, (terms, terms), wanted)


def _query_best(
    connection: sqlite3.Connection, words: list[str], wanted: Filter, *, limit: int, most: int
) -> Listing:
    from conceptry.registry.relevance import find_best

    where, values = _restrict(wanted)
    try:
        best = find_best(connection, words, where, values, most=max(most, limit))
    except sqlite3.Error as error:
        raise IndexBehindError from error
    shown = best.places[:limit]
    marks = ", ".join("?" * len(shown))
    sql = f"SELECT {_COLUMNS}, versions.rowid FROM versions WHERE versions.rowid IN ({marks})"  # noqa: S608
    try:
        rows = {row[-1]: row[:-1] for row in connection.execute(sql, shown)}
    except sqlite3.Error as error:
        raise IndexBehindError from error
    if len(rows) != len(shown) or not all(map(is_sound, rows.values())):
        raise IndexBehindError
    return Listing(tuple(ListedVersion(rows[place]) for place in shown), len(best.places), best.is_all)


def _query_found(
    connection: sqlite3.Connection, found: str, terms: tuple[str, ...], wanted: Filter
) -> Listing:
    where, rules = _restrict(wanted)
    values = (*terms, *rules)
    limit = "" if wanted.limit is None else f"LIMIT {int(wanted.limit)}"
    order = "ORDER BY found.rank, namespace, name"
    sql = f"SELECT {_COLUMNS} FROM versions JOIN {found} ON versions.rowid = found.place {where} {order} {limit}"  # noqa: S608
    rows = tuple(_read_rows(connection, sql, values))
    if wanted.limit is None or len(rows) < wanted.limit:
        return Listing(rows, len(rows))
    counting = f"SELECT count(*) FROM versions JOIN {found} ON versions.rowid = found.place {where}"  # noqa: S608
    return Listing(rows, _count(connection, counting, values))


def find_tensors(connection: sqlite3.Connection, digests: Iterable[Digest]) -> tuple[tuple[str, str], ...]:
    """Returns each version that has one of these tensor digests (``ns/name@1.0.0``), and the digest that it has."""
    wanted = [str(digest) for digest in digests]
    marks = ", ".join("?" * len(wanted))
    sql = (
        "SELECT DISTINCT namespace || '/' || name || '@' || version, tensor_digest FROM files "  # noqa: S608
        f"JOIN versions ON versions.rowid = files.place WHERE tensor_digest IN ({marks}) "
        "ORDER BY namespace, name, sort_key"
    )
    try:
        return tuple((str(text), str(digest)) for text, digest in connection.execute(sql, wanted))
    except sqlite3.Error as error:
        raise IndexBehindError from error


_LATEST: Final = "WHERE versions.latest = 1"
_WORDS: Final = "(SELECT rowid AS place, rank FROM versions_fts WHERE versions_fts MATCH ?) AS found"
_DIGESTS: Final = (
    "(SELECT rowid AS place, 0 AS rank FROM versions WHERE digest >= ?1 AND digest < ?1 || 'g' UNION "
    "SELECT place, 0 AS rank FROM files WHERE digest >= ?1 AND digest < ?1 || 'g' UNION "
    "SELECT place, 0 AS rank FROM files WHERE tensor_digest >= ?2 AND tensor_digest < ?2 || 'g') AS found"
)


def _restrict(wanted: Filter) -> tuple[str, tuple[Any, ...]]:
    rules: list[str] = [] if wanted.all_versions else ["versions.latest = 1"]
    values: list[Any] = []
    if wanted.name is not None:
        rules += ["versions.namespace = ?", "versions.name = ?"]
        values += [wanted.name.namespace, wanted.name.name]
    if wanted.namespace is not None:
        rules.append("versions.namespace = ?")
        values.append(wanted.namespace)
    for column, value in (("kinds", wanted.kind), ("families", wanted.family)):
        if value is not None:
            rules.append(f"instr(versions.{column}, ?)")
            values.append(json.dumps(value))
    return f"WHERE {' AND '.join(rules)}" if rules else "", tuple(values)


def _read_rows(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> Iterator[ListedVersion]:
    try:
        for row in connection.execute(sql, values):
            if not is_sound(row):
                raise IndexBehindError
            yield ListedVersion(row)
    except sqlite3.Error as error:
        raise IndexBehindError from error


def _count(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> int:
    try:
        return int(connection.execute(sql, values).fetchone()[0])
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise IndexBehindError from error


def _read_state(connection: sqlite3.Connection, key: str) -> int:
    return _count(connection, "SELECT value FROM state WHERE key = ?", (key,))
