"""The index: rows made from references and manifests, so that listing and searching need not read them all.

It is never proof of anything. It can be deleted, damaged, foreign, or of another version of this program: then it is
built anew from the files. Nobody changes it in place: each change is made to a private copy that takes its name. So
whoever has it open goes on reading what it was, and two who write at once take nothing from each other but work.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import Any, Final, TypeVar

from sqlite_utils import Database

from conceptry.errors import StoreError
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, parse_version
from conceptry.registry.entries import Entry, choose_latest, iter_entries, make_entry
from conceptry.registry.file_reading import read_chunks
from conceptry.registry.files import STATE_MODE, connect_database, write_new_file
from conceptry.registry.generations import Change, draw_generation, read_generation
from conceptry.registry.listing import (
    APPLICATION_ID,
    BUSY_SECONDS,
    INDEX_FORMAT,
    IndexBehindError,
    connect_current,
    connect_fixed,
    is_ours,
    read_index_generation,
)
from conceptry.registry.migrations import INDEX_MIGRATIONS, SEARCHED_COLUMNS
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved
from conceptry.registry.rows import COLUMNS, seal_row
from conceptry.registry.store import Store
from conceptry.registry.yanks import read_yanks

T = TypeVar("T")

_BEHIND: Final = "behind"  # the name of no generation
_WHERE: Final = "WHERE namespace = ? AND name = ? AND version = ?"
_WORDS: Final = ", ".join(SEARCHED_COLUMNS)
_ROW_COLUMNS: Final = (*COLUMNS, "sort_key", "description", "line")
_ALL_ROWS: Final = f"SELECT rowid AS place, {', '.join(_ROW_COLUMNS)} FROM versions"  # noqa: S608
_INSERT: Final = (
    f"INSERT INTO versions (rowid, {', '.join(_ROW_COLUMNS)}) "  # noqa: S608
    f"VALUES (?{', ?' * len(_ROW_COLUMNS)})"
)
_INSERT_FILE: Final = "INSERT INTO files (place, path, digest, tensor_digest) VALUES (?, ?, ?, ?)"
_BATCH_ROWS: Final = 1000
_INDEXES: Final = {
    "idx_versions_namespace_name_version": "UNIQUE INDEX {} ON versions (namespace, name, version)",
    "idx_versions_digest": "INDEX {} ON versions (digest)",
    "latest_versions": "UNIQUE INDEX {} ON versions (namespace, name) WHERE latest = 1",
    "idx_files_place": "INDEX {} ON files (place)",
    "idx_files_digest": "INDEX {} ON files (digest)",
    "idx_files_tensor_digest": "INDEX {} ON files (tensor_digest)",
}
"""What the migrations made beside the tables; digests come in no order, so these are made at once after all rows."""

_DELETE: Final = f"DELETE FROM versions {_WHERE}"  # noqa: S608 - both parts are written above
_ADD_WORDS: Final = (
    f"INSERT INTO versions_fts (rowid, {_WORDS}) SELECT rowid, {_WORDS} FROM versions {_WHERE}"  # noqa: S608
)
_FORGET_WORDS: Final = (
    f"INSERT INTO versions_fts (versions_fts, rowid, {_WORDS}) "  # noqa: S608
    f"SELECT 'delete', rowid, {_WORDS} FROM versions {_WHERE}"
)


def record_version(store: Store, change: Change, version: Resolved, manifest: Manifest, origin: str) -> None:
    """Adds a version to the index, which is built anew if it cannot be believed."""
    record_versions(store, change, [(version, manifest, origin)])


def record_versions(store: Store, change: Change, rows: Iterable[tuple[Resolved, Manifest, str]]) -> None:
    """Adds versions to the index, which is built anew if it cannot be believed."""
    entries = [
        (version.reference, make_entry(version, _dump(manifest), origin))
        for version, manifest, origin in rows
    ]

    def edit(database: Database) -> None:
        for reference, entry in entries:
            _delete_row(database, reference)
            _insert_entry(database, entry)
        for name in dict.fromkeys(reference.concept for reference, _ in entries):
            _settle_concept(database, store.layout, name)

    _apply_change(store, change, edit)


def _dump(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", by_alias=True, exclude_none=True)


def forget_version(store: Store, change: Change, reference: Reference) -> None:
    """Takes a version out of the index, which is built anew if it cannot be believed."""

    def edit(database: Database) -> None:
        _delete_row(database, reference)
        _settle_concept(database, store.layout, reference.concept)

    _apply_change(store, change, edit)


def record_yank(store: Store, change: Change, name: ConceptName) -> None:
    """Brings the yanks of a concept into the index, which is built anew if it cannot be believed."""
    _apply_change(store, change, lambda database: _settle_concept(database, store.layout, name))


def rebuild_index(store: Store) -> None:
    """Makes the index anew from the files.

    Raises:
        StoreError: if the store cannot be written.
    """
    with store.change_refs() as change:
        try:
            _build_anew(store, change)
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot write {str(store.layout.index)!r}: {error}",
                hint="free some space on that disk, or delete that file, then run the same command again",
            ) from error


def is_index_equal(store: Store) -> bool:
    """Returns whether the index says exactly what the files say, and its words can be searched."""
    try:
        with closing(connect_current(store.layout)) as connection:
            connection.execute("PRAGMA quick_check(1)")
            connection.row_factory = sqlite3.Row
            rows = {tuple(row)[1:]: row["place"] for row in connection.execute(_ALL_ROWS)}
            files = {
                tuple(row)
                for row in connection.execute("SELECT place, path, digest, tensor_digest FROM files")
            }
            words = connection.execute("SELECT count(*) FROM versions_fts_docsize").fetchone()[0]
    except (IndexBehindError, sqlite3.Error):
        return False
    expected_files: set[tuple[Any, ...]] = set()
    count = 0
    for entry in iter_entries(store.layout):
        place = rows.get(tuple(entry.row[column] for column in _ROW_COLUMNS))
        if place is None:
            return False
        expected_files |= {(place, *file.values()) for file in entry.files}
        count += 1
    return count == len(rows) == words and files == expected_files


def read_through_rebuild(store: Store, read: Callable[[sqlite3.Connection], T]) -> T:
    """Returns what ``read`` finds in an index made anew: on disk where the store can be written, else in memory."""
    try:
        rebuild_index(store)
        with closing(connect_current(store.layout)) as connection:
            return read(connection)
    except (StoreError, IndexBehindError, sqlite3.Error):
        database = Database(memory=True, execute_plugins=False)  # a store that cannot be written still lists
    with closing(database.conn):
        _fill(database, store.layout, read_generation(store.layout))
        return read(database.conn)


def _apply_change(store: Store, change: Change, edit: Callable[[Database], None]) -> None:
    """The files are right already: an index that cannot follow only stays behind, and says so by its generation."""
    if not change.is_alone:
        return
    try:
        with closing(connect_fixed(store.layout)) as connection:
            if change.others or read_index_generation(connection) != change.previous:
                raise IndexBehindError
        with _write_index(store, change, copied=True) as (database, generation):
            if not is_ours(database.conn) or read_index_generation(database.conn) != change.previous:
                raise IndexBehindError
            with database.atomic():
                edit(database)
                _write_state(database, generation)
    except (IndexBehindError, sqlite3.Error, StoreError):
        with suppress(sqlite3.Error, StoreError):
            _build_anew(store, change)


def _build_anew(store: Store, change: Change) -> None:
    with _write_index(store, change, copied=False) as (database, generation):
        _fill(database, store.layout, generation)


@contextmanager
def _write_index(store: Store, change: Change, *, copied: bool) -> Iterator[tuple[Database, str]]:
    """Gives a private index, empty or a copy of the present one, which takes its place after the block.

    It is to be of the generation that comes with it. Its file reaches the disk as any other does, so SQLite need not
    wait for that, and needs no journal for what is thrown away if it fails.

    Raises:
        sqlite3.Error, StoreError: if it cannot be written; then the present one is as it was.
    """
    layout, generation = store.layout, draw_generation()
    with write_new_file(layout.temporary()) as file:
        for chunk in _read_index(layout) if copied else ():
            file.write_unhashed(chunk)
        with closing(connect_database(file.path, "rw", timeout_seconds=BUSY_SECONDS)) as connection:
            for pragma in ("trusted_schema = OFF", "journal_mode = OFF", "synchronous = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            yield Database(connection, execute_plugins=False), generation
        file.commit(layout.index, mode=STATE_MODE, replace=True)
    change.settle(generation)


def _read_index(layout: Layout) -> Iterator[bytes]:
    with explain_os_errors("read", layout.index):
        yield from read_chunks(layout.index)


def _fill(database: Database, layout: Layout, generation: str) -> None:
    unreadable: list[Reference] = []
    # Of a version that the disk would not give, nobody knows more: an index without it stays behind.
    fill_index(database, iter_entries(layout, unreadable), lambda: _BEHIND if unreadable else generation)


def fill_index(database: Database, entries: Iterator[Entry], say_generation: Callable[[], str]) -> None:
    """Makes an index of sealed entries alone; ``say_generation`` is asked at the end what it is an index of.

    Raises:
        sqlite3.Error: if it cannot be written.
    """
    INDEX_MIGRATIONS.apply(database)
    with database.atomic():
        for name in _INDEXES:
            database.execute(f"DROP INDEX IF EXISTS {name}")
        for table in ("files", "versions"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608 - written here
        place = 1
        while batch := list(islice(entries, _BATCH_ROWS)):
            _insert_entries(database, batch, place=place)
            place += len(batch)
        for name, sql in _INDEXES.items():
            database.execute(f"CREATE {sql.format(name)}")
        database.table("versions").rebuild_fts()
        _write_state(database, say_generation())
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {INDEX_FORMAT}")


def _settle_concept(database: Database, layout: Layout, name: ConceptName) -> None:
    """Brings yanks and the mark of the latest version up to date in the rows of one concept."""
    chosen = f"SELECT {', '.join(COLUMNS[:-1])} FROM versions WHERE namespace = ? AND name = ?"  # noqa: S608
    found = database.execute(chosen, (name.namespace, name.name)).fetchall()
    rows = [dict(zip(COLUMNS, values, strict=False)) for values in found]
    before = [dict(row) for row in rows]
    choose_latest([(parse_version(row["version"]), row) for row in rows], read_yanks(layout, name))
    for row, old in zip(rows, before, strict=True):
        if row != old:
            sealed = seal_row(row)
            database.execute(
                f"UPDATE versions SET yanked = ?, latest = ?, checksum = ?, line = ? {_WHERE}",  # noqa: S608
                (
                    row["yanked"],
                    row["latest"],
                    sealed["checksum"],
                    sealed["line"],
                    row["namespace"],
                    row["name"],
                    row["version"],
                ),
            )


def _insert_entry(database: Database, entry: Entry) -> None:
    """Adds one version and its words."""
    (greatest,) = database.execute("SELECT max(rowid) FROM versions").fetchone()
    _insert_entries(database, [Entry(seal_row(entry.row), entry.files)], place=(greatest or 0) + 1)
    database.execute(_ADD_WORDS, (entry.row["namespace"], entry.row["name"], entry.row["version"]))


def _insert_entries(database: Database, entries: Sequence[Entry], *, place: int) -> None:
    """Adds sealed versions from the row ``place`` on, without their words."""
    rows = [
        (number, *(entry.row[column] for column in _ROW_COLUMNS))
        for number, entry in enumerate(entries, place)
    ]
    files = [(number, *file.values()) for number, entry in enumerate(entries, place) for file in entry.files]
    database.conn.executemany(_INSERT, rows)
    database.conn.executemany(_INSERT_FILE, files)


def _delete_row(database: Database, reference: Reference) -> None:
    key = (reference.concept.namespace, reference.concept.name, str(reference.version))
    database.execute(_FORGET_WORDS, key)
    database.execute(f"DELETE FROM files WHERE place IN (SELECT rowid FROM versions {_WHERE})", key)  # noqa: S608
    database.execute(_DELETE, key)


def _write_state(database: Database, generation: str) -> None:
    (concepts,) = database.execute("SELECT count(*) FROM versions WHERE latest = 1").fetchone()
    rows = (("generation", generation), ("concepts", str(concepts)))
    for row in rows:
        database.execute("INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)", row)
