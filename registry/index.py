"""The index: rows made from references and manifests, so that listing and searching need not read them all.

It is never proof of anything. It can be deleted, damaged, foreign, or of another version of this program: then it is
built anew from the files. Its journal is the plain rollback journal, which also holds on network file systems.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlite_utils import Database

from conceptry.errors import ConceptryError, StoreError
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, Version, parse_version, pick_latest
from conceptry.registry.files import connect_database, is_file, remove_file
from conceptry.registry.listing import (
    APPLICATION_ID,
    BUSY_SECONDS,
    INDEX_FORMAT,
    IndexBehindError,
    connect_current,
    is_ours,
    read_index_generation,
)
from conceptry.registry.manifests import read_manifest_bytes
from conceptry.registry.migrations import INDEX_MIGRATIONS, SEARCHED_COLUMNS
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved, list_names, list_versions, read_version
from conceptry.registry.rows import COLUMNS, make_sort_key, seal_row
from conceptry.registry.store import Change, Store, read_generation
from conceptry.registry.yanks import read_yanks

T = TypeVar("T")

_BEHIND: Final = "behind"  # the name of no generation
_WHERE: Final = "WHERE namespace = ? AND name = ? AND version = ?"
_WORDS: Final = ", ".join(SEARCHED_COLUMNS)
_ROW_COLUMNS: Final = (*COLUMNS, "sort_key", "description")
_ALL_ROWS: Final = f"SELECT rowid AS place, {', '.join(_ROW_COLUMNS)} FROM versions"  # noqa: S608
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
            raise StoreError(f"cannot write {str(store.layout.index)!r}: {error}") from error


def is_index_equal(store: Store) -> bool:
    """Returns whether the index says exactly what the files say, and its words can be searched."""
    try:
        with contextlib.closing(connect_current(store.layout)) as connection:
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
        with contextlib.closing(connect_current(store.layout)) as connection:
            return read(connection)
    except (StoreError, IndexBehindError, sqlite3.Error):
        database = Database(memory=True, execute_plugins=False)  # a store that cannot be written still lists
    with contextlib.closing(database.conn):
        _fill(database, store.layout, read_generation(store.layout))
        return read(database.conn)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index keeps of one version: its row, and a row for each of its files."""

    row: dict[str, Any]
    files: tuple[dict[str, Any], ...]


def make_entry(version: Resolved, document: Mapping[str, Any], origin: str) -> Entry:
    """Returns what the index keeps of a version, from the document of its manifest; whether it is latest comes later.

    Raises:
        KeyError, TypeError, AttributeError: if the document is no manifest.
    """
    name, number = version.reference.concept, version.reference.version
    if number is None:
        raise TypeError(str(version.reference))
    builds = document["builds"]
    parts = [part for build in builds for part in build["parts"]]
    files = [file for part in parts for file in part["files"]]
    license = document.get("license", {})
    row = {
        "namespace": name.namespace,
        "name": name.name,
        "version": str(number),
        "sort_key": make_sort_key(number),
        "digest": str(version.digest),
        "title": document.get("title", ""),
        "description": document.get("description", ""),
        "kinds": _to_list(part["kind"] for part in parts),
        "families": _to_list(build["base"]["family"] for build in builds),
        "placeholders": _to_list(token["placeholder"] for token in document.get("tokens", ())),
        "tags": _to_list(document.get("tags", ())),
        "license": license.get("spdx") or license.get("name"),
        "size_bytes": sum({file["sha256"]: file["size"] for file in files}.values()),
        "origin": origin,
        "yanked": None,
        "latest": 0,
    }
    distinct = {(file["path"], file["sha256"]): file for file in files}
    return Entry(
        row,
        tuple(
            {"path": path, "digest": digest, "tensor_digest": file.get("tensor_sha256")}
            for (path, digest), file in sorted(distinct.items())
        ),
    )


def _to_list(values: Iterable[str]) -> str:
    return json.dumps(list(dict.fromkeys(values)), ensure_ascii=False)


def _apply_change(store: Store, change: Change, edit: Callable[[Database], None]) -> None:
    """The files are right already: an index that cannot follow only stays behind, and says so by its generation."""
    try:
        with contextlib.closing(_open_for_writing(store.layout).conn) as connection:
            database = Database(connection, execute_plugins=False)
            if read_index_generation(connection) not in (change.previous, change.generation):
                raise IndexBehindError
            with database.atomic():
                edit(database)
                _write_state(database, change.generation)
    except (IndexBehindError, sqlite3.Error):
        with contextlib.suppress(sqlite3.Error, StoreError):
            _build_anew(store, change)


def _build_anew(store: Store, change: Change) -> None:
    try:
        database = _open_for_writing(store.layout, oldest=1)
    except (IndexBehindError, sqlite3.Error):
        _delete_index(store.layout)
        database = _create(store.layout)
    try:
        with contextlib.closing(database.conn):
            _fill(database, store.layout, change.generation)
    except sqlite3.DatabaseError:
        _delete_index(store.layout)
        with contextlib.closing(_create(store.layout).conn) as connection:
            _fill(Database(connection, execute_plugins=False), store.layout, change.generation)


def _open_for_writing(layout: Layout, *, oldest: int = INDEX_FORMAT) -> Database:
    if not is_file(layout.index):
        raise IndexBehindError
    connection = connect_database(layout.index, "rw", timeout_seconds=BUSY_SECONDS)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        usable = is_ours(connection, oldest=oldest)
    except sqlite3.Error:
        connection.close()
        raise
    if not usable:
        connection.close()
        raise IndexBehindError
    return Database(connection, execute_plugins=False)


def _create(layout: Layout) -> Database:
    connection = connect_database(layout.index, "rwc", timeout_seconds=BUSY_SECONDS)
    return Database(connection, execute_plugins=False)


def _delete_index(layout: Layout) -> None:
    for path in layout.index_leftovers:
        remove_file(path)


def _fill(database: Database, layout: Layout, generation: str) -> None:
    INDEX_MIGRATIONS.apply(database)
    with database.atomic():
        for table in ("files", "versions"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608 - written here
        unreadable: list[Reference] = []
        for entry in iter_entries(layout, unreadable):
            _insert_entry(database, entry, words=False)
        database.table("versions").rebuild_fts()
        # Of a version that the disk would not give, nobody knows more: an index without it stays behind.
        _write_state(database, _BEHIND if unreadable else generation)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {INDEX_FORMAT}")


def iter_entries(layout: Layout, unreadable: list[Reference] | None = None) -> Iterator[Entry]:
    """Yields all versions whose reference and manifest are whole; ``verify`` names the others.

    Those that the disk would not give, which says nothing about them, are added to ``unreadable``.
    """
    passed_over: list[Reference] = [] if unreadable is None else unreadable
    for name in list_names(layout):
        found = [_read_entry(layout, name, version, passed_over) for version in list_versions(layout, name)]
        rows = [entry.row for entry in found if entry is not None]
        _choose_latest(rows, read_yanks(layout, name))
        for entry in found:
            if entry is not None:
                yield Entry(seal_row(entry.row), entry.files)


def _read_entry(
    layout: Layout, name: ConceptName, version: Version, unreadable: list[Reference]
) -> Entry | None:
    """The bytes have the digest of what was checked when it was published; they are not held to all rules again."""
    try:
        ref = read_version(layout, name, version)
        if ref is None:
            return None
        resolved = Resolved(Reference(name, version), ref.digest)
        document = json.loads(read_manifest_bytes(layout, resolved))
        if (document["schema"], document["name"], document["version"]) != (1, str(name), str(version)):
            return None
        return make_entry(resolved, document, ref.origin)
    except StoreError:
        unreadable.append(Reference(name, version))
        return None
    except (ConceptryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _settle_concept(database: Database, layout: Layout, name: ConceptName) -> None:
    """Brings yanks and the mark of the latest version up to date in the rows of one concept."""
    chosen = f"SELECT {', '.join(COLUMNS[:-1])} FROM versions WHERE namespace = ? AND name = ?"  # noqa: S608
    found = database.execute(chosen, (name.namespace, name.name)).fetchall()
    rows = [dict(zip(COLUMNS, values, strict=False)) for values in found]
    before = [dict(row) for row in rows]
    _choose_latest(rows, read_yanks(layout, name))
    for row, old in zip(rows, before, strict=True):
        if row != old:
            sealed = seal_row(row)
            database.execute(
                f"UPDATE versions SET yanked = ?, latest = ?, checksum = ? {_WHERE}",  # noqa: S608
                (
                    row["yanked"],
                    row["latest"],
                    sealed["checksum"],
                    row["namespace"],
                    row["name"],
                    row["version"],
                ),
            )


def _choose_latest(rows: list[dict[str, Any]], yanked: Mapping[Version, str]) -> None:
    """Of a concept of which every version was yanked, the greatest stays in the listing, marked."""
    versions = [parse_version(row["version"]) for row in rows]
    latest = pick_latest(version for version in versions if version not in yanked) or pick_latest(versions)
    for row, version in zip(rows, versions, strict=True):
        row["yanked"] = yanked.get(version)
        row["latest"] = int(version == latest and str(version) == str(latest))


def _insert_entry(database: Database, entry: Entry, *, words: bool = True) -> None:
    sealed = seal_row(entry.row)
    marks = ", ".join("?" * len(sealed))
    sql = f"INSERT INTO versions ({', '.join(sealed)}) VALUES ({marks})"  # noqa: S608
    place = database.execute(sql, tuple(sealed.values())).lastrowid
    for file in entry.files:
        database.execute(
            "INSERT INTO files (place, path, digest, tensor_digest) VALUES (?, ?, ?, ?)",
            (place, file["path"], file["digest"], file["tensor_digest"]),
        )
    if words:
        key = (entry.row["namespace"], entry.row["name"], entry.row["version"])
        database.execute(_ADD_WORDS, key)


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
