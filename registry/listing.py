"""What is in the store, read from the index by the standard library alone.

A listing starts in milliseconds because nothing here imports pydantic or sqlite_utils. The index is believed only
where it says that it is of the present generation of references; else it is built anew from the files.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError
from conceptry.names import ConceptName, Reference, Version, parse_version, pick_latest
from conceptry.registry.files import connect_database, is_file
from conceptry.registry.paths import Layout
from conceptry.registry.store import read_generation

APPLICATION_ID: Final = 0x434E4350
INDEX_FORMAT: Final = 1
BUSY_SECONDS: Final = 5.0

_COLUMNS: Final = (
    "namespace, name, version, digest, title, kinds, families, placeholders, tags, license, "
    "size_bytes, origin"
)
_WORD: Final = re.compile(r"\w+")
_MAX_QUERY_CHARS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVersion:
    """One line of a listing: a version and what people look for."""

    reference: Reference
    digest: Digest
    title: str
    kinds: tuple[str, ...]
    families: tuple[str, ...]
    placeholders: tuple[str, ...]
    tags: tuple[str, ...]
    license: str | None
    size_bytes: int
    origin: str
    """``published`` here, or ``pulled`` from a remote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which versions a listing shows; what is None does not restrict."""

    name: ConceptName | None = None
    namespace: str | None = None
    kind: str | None = None
    family: str | None = None
    all_versions: bool = False
    """Every version instead of the latest one of each concept."""


def read_index(
    layout: Layout, read: Callable[[sqlite3.Connection], tuple[ListedVersion, ...]]
) -> tuple[ListedVersion, ...] | None:
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
    if not is_file(layout.index):
        raise IndexBehindError
    try:
        connection = connect_database(layout.index, "ro", timeout_seconds=BUSY_SECONDS)
    except sqlite3.Error as error:
        raise IndexBehindError from error
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        if not is_ours(connection) or read_index_generation(connection) != read_generation(layout):
            raise IndexBehindError
    except sqlite3.Error as error:
        connection.close()
        raise IndexBehindError from error
    except IndexBehindError:
        connection.close()
        raise
    return connection


def is_ours(connection: sqlite3.Connection) -> bool:
    """Returns whether this is an index of ours, and of this format."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(application == APPLICATION_ID and version == INDEX_FORMAT)


def read_index_generation(connection: sqlite3.Connection) -> str | None:
    """Returns the generation of references that the index shows. Raises sqlite3.Error."""
    row = connection.execute("SELECT value FROM state WHERE key = 'generation'").fetchone()
    return str(row[0]) if row else None


def query_listing(connection: sqlite3.Connection, wanted: Filter) -> tuple[ListedVersion, ...]:
    """Returns the listing from an open index. Raises IndexBehindError if it is damaged."""
    rows = _read_rows(connection, f"SELECT {_COLUMNS} FROM versions ORDER BY namespace, name", ())  # noqa: S608
    return tuple(_choose(rows, wanted))


def query_search(connection: sqlite3.Connection, words: str, wanted: Filter) -> tuple[ListedVersion, ...]:
    """Returns what has all ``words`` at the beginning of some word, from an open index; best matches first."""
    terms = " ".join(f'"{word}"*' for word in _WORD.findall(words[:_MAX_QUERY_CHARS]))
    if not terms:
        return query_listing(connection, wanted)
    sql = (
        f"SELECT {_COLUMNS} FROM versions JOIN "  # noqa: S608
        "(SELECT rowid AS found, rank FROM versions_fts WHERE versions_fts MATCH ?) ON versions.rowid = found "
        "ORDER BY rank, namespace, name"
    )
    found = _read_rows(connection, sql, (terms,))
    order = {row.reference.concept: place for place, row in reversed(list(enumerate(found)))}
    return tuple(sorted(_choose(found, wanted), key=lambda row: order[row.reference.concept]))


def _read_rows(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> list[ListedVersion]:
    try:
        return [_read_row(row) for row in connection.execute(sql, values)]
    except (sqlite3.Error, ConceptryError, ValueError, TypeError) as error:
        raise IndexBehindError from error


def _read_row(row: tuple[Any, ...]) -> ListedVersion:
    namespace, name, version, digest, title, kinds, families, placeholders, tags, license, size, origin = row
    return ListedVersion(
        reference=Reference(ConceptName(namespace, name), parse_version(version)),
        digest=Digest.parse(digest),
        title=title,
        kinds=tuple(json.loads(kinds)),
        families=tuple(json.loads(families)),
        placeholders=tuple(json.loads(placeholders)),
        tags=tuple(json.loads(tags)),
        license=license,
        size_bytes=size,
        origin=origin,
    )


def _choose(rows: list[ListedVersion], wanted: Filter) -> Iterator[ListedVersion]:
    by_concept: dict[ConceptName, list[ListedVersion]] = {}
    for row in rows:
        by_concept.setdefault(row.reference.concept, []).append(row)
    for versions in by_concept.values():
        chosen = sorted(versions, key=_version_of) if wanted.all_versions else [_pick_latest(versions)]
        yield from (row for row in chosen if _matches(row, wanted))


def _matches(row: ListedVersion, wanted: Filter) -> bool:
    name = row.reference.concept
    return (
        wanted.name in (None, name)
        and wanted.namespace in (None, name.namespace)
        and (wanted.kind is None or wanted.kind in row.kinds)
        and (wanted.family is None or wanted.family in row.families)
    )


def _version_of(row: ListedVersion) -> Version:
    version = row.reference.version
    if version is None:
        raise IndexBehindError
    return version


def _pick_latest(rows: list[ListedVersion]) -> ListedVersion:
    latest = pick_latest(_version_of(row) for row in rows)
    return next(row for row in rows if row.reference.version == latest)
