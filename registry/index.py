"""The index: rows made from references and manifests, so that listing and searching need not read them all.

It is never proof of anything. It can be deleted, damaged, foreign, or of another version of this program: then it is
built anew from the files. Its journal is the plain rollback journal, which also holds on network file systems.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from sqlite_utils import Database

from conceptry.errors import ConceptryError, StoreError
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, Version
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
from conceptry.registry.manifests import read_manifest
from conceptry.registry.migrations import INDEX_MIGRATIONS, SEARCHED_COLUMNS
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved, list_names, list_versions, read_version
from conceptry.registry.store import Change, Store, read_generation

T = TypeVar("T")

_WHERE: Final = "WHERE namespace = ? AND name = ? AND version = ?"
_WORDS: Final = ", ".join(SEARCHED_COLUMNS)
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
    row = make_row(version, manifest, origin)
    _apply_change(store, change, lambda db: _replace_row(db, version.reference, row))


def forget_version(store: Store, change: Change, reference: Reference) -> None:
    """Takes a version out of the index, which is built anew if it cannot be believed."""
    _apply_change(store, change, lambda db: _delete_row(db, reference))


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


def make_row(version: Resolved, manifest: Manifest, origin: str) -> dict[str, Any]:
    """Returns the index's row of a version."""
    name = version.reference.concept
    families = dict.fromkeys(build.base.family for build in manifest.builds)
    return {
        "namespace": name.namespace,
        "name": name.name,
        "version": str(version.reference.version),
        "digest": str(version.digest),
        "title": manifest.title,
        "description": manifest.description,
        "kinds": json.dumps(manifest.kinds),
        "families": json.dumps(list(families)),
        "placeholders": json.dumps([token.placeholder for token in manifest.tokens], ensure_ascii=False),
        "tags": json.dumps(manifest.tags, ensure_ascii=False),
        "license": manifest.license.spdx or manifest.license.name,
        "size_bytes": manifest.size_bytes,
        "origin": origin,
    }


def _apply_change(store: Store, change: Change, edit: Callable[[Database], None]) -> None:
    """The files are right already: an index that cannot follow only stays behind, and says so by its generation."""
    try:
        with contextlib.closing(_open_for_writing(store.layout).conn) as connection:
            database = Database(connection, execute_plugins=False)
            if read_index_generation(connection) not in (change.previous, change.generation):
                raise IndexBehindError
            with database.atomic():
                edit(database)
                _write_generation(database, change.generation)
    except (IndexBehindError, sqlite3.Error):
        with contextlib.suppress(sqlite3.Error, StoreError):
            _build_anew(store, change)


def _build_anew(store: Store, change: Change) -> None:
    try:
        database = _open_for_writing(store.layout)
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


def _open_for_writing(layout: Layout) -> Database:
    if not is_file(layout.index):
        raise IndexBehindError
    connection = connect_database(layout.index, "rw", timeout_seconds=BUSY_SECONDS)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        usable = is_ours(connection) and connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
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
        database.execute("DELETE FROM versions")
        database.table("versions").insert_all(iter_rows(layout))
        database.table("versions").rebuild_fts()
        _write_generation(database, generation)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {INDEX_FORMAT}")


def iter_rows(layout: Layout) -> Iterator[dict[str, Any]]:
    """Yields the rows of all versions whose reference and manifest are whole; ``verify`` names the others."""
    for name in list_names(layout):
        for version in list_versions(layout, name):
            row = _read_row(layout, name, version)
            if row is not None:
                yield row


def _read_row(layout: Layout, name: ConceptName, version: Version) -> dict[str, Any] | None:
    try:
        ref = read_version(layout, name, version)
        if ref is None:
            return None
        resolved = Resolved(Reference(name, version), ref.digest)
        return make_row(resolved, read_manifest(layout, resolved), ref.origin)
    except ConceptryError:
        return None


def _replace_row(database: Database, reference: Reference, row: dict[str, Any]) -> None:
    _delete_row(database, reference)
    database.table("versions").insert(row)
    database.execute(_ADD_WORDS, _make_key(reference))


def _delete_row(database: Database, reference: Reference) -> None:
    database.execute(_FORGET_WORDS, _make_key(reference))
    database.execute(_DELETE, _make_key(reference))


def _make_key(reference: Reference) -> tuple[str, str, str]:
    return reference.concept.namespace, reference.concept.name, str(reference.version)


def _write_generation(database: Database, generation: str) -> None:
    database.execute("INSERT OR REPLACE INTO state (key, value) VALUES ('generation', ?)", (generation,))
