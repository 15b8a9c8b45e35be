"""Which blobs were hashed since their files last changed, so that nothing is hashed twice for nothing.

A file counts as unchanged while its inode, size, modification time and change time are those recorded when its bytes
were hashed. A change is recorded only once it is older than the coarsest clock of any file system. The record is no
proof of anything else: a damaged one is deleted, and what it said is hashed again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from types import TracebackType
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import StoreError
from conceptry.registry.blobs import is_intact
from conceptry.registry.file_reading import is_file, look_at
from conceptry.registry.files import connect_database, remove_file
from conceptry.registry.listing import BUSY_SECONDS
from conceptry.registry.paths import Layout

_CLOCK_NS: Final = 2_000_000_000
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS checked_blobs "
    "(hex TEXT PRIMARY KEY, inode INTEGER, size_bytes INTEGER, mtime_ns INTEGER, ctime_ns INTEGER)"
)
Look = tuple[int, int, int, int]


class BlobChecks:
    """Says whether blobs are intact, reading each changed file once; a store that cannot be written is read again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._connection = _connect(layout)
        self._fresh: dict[str, Look] = {}

    def __enter__(self) -> BlobChecks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._fresh:
            _record(self._layout, self._fresh)

    def is_intact(self, digest: Digest, size_bytes: int) -> bool:
        """Returns whether the blob is there and its bytes are right. Raises StoreError if it cannot be read."""
        before = _look_at(self._layout, digest)
        if before is None or before[1] != size_bytes:
            return False
        if self._recorded(digest) == before:
            return True
        intact = is_intact(self._layout, digest, size_bytes)
        settled = time.time_ns() - max(before[2:]) > _CLOCK_NS
        if intact and settled and _look_at(self._layout, digest) == before:
            self._fresh[digest.hex] = before
        return intact

    def _recorded(self, digest: Digest) -> Look | None:
        if self._connection is None:
            return None
        sql = "SELECT inode, size_bytes, mtime_ns, ctime_ns FROM checked_blobs WHERE hex = ?"
        try:
            row = self._connection.execute(sql, (digest.hex,)).fetchone()
        except sqlite3.Error as error:
            self._connection.close()
            self._connection = None
            _drop_damaged(self._layout, error)
            return None
        return (row[0], row[1], row[2], row[3]) if row else None


def forget_check(layout: Layout, digest: Digest) -> None:
    """Forgets that a blob was ever hashed; for bytes that changed without the file system noticing."""
    connection = _connect(layout)
    if connection is not None:
        with contextlib.closing(connection), contextlib.suppress(sqlite3.Error), connection:
            connection.execute("DELETE FROM checked_blobs WHERE hex = ?", (digest.hex,))


def _record(layout: Layout, looks: dict[str, Look]) -> None:
    """At the end and at once, so that no other command waits while bytes are hashed."""
    try:
        with (
            contextlib.closing(
                connect_database(layout.checks, "rwc", timeout_seconds=BUSY_SECONDS)
            ) as connection,
            connection,
        ):
            connection.execute(_TABLE)
            rows = [(name, *look) for name, look in looks.items()]
            connection.executemany("INSERT OR REPLACE INTO checked_blobs VALUES (?, ?, ?, ?, ?)", rows)
    except (sqlite3.Error, OverflowError) as error:
        _drop_damaged(layout, error)


def _look_at(layout: Layout, digest: Digest) -> Look | None:
    status = look_at(layout.blob(digest))
    if status is None:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _connect(layout: Layout) -> sqlite3.Connection | None:
    if not is_file(layout.checks):
        return None
    try:
        return connect_database(layout.checks, "rw", timeout_seconds=BUSY_SECONDS)
    except sqlite3.Error:
        return None


def _drop_damaged(layout: Layout, error: Exception) -> None:
    """A disk that is full or a file that another process holds say nothing about what is in it."""
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        with contextlib.suppress(StoreError):
            remove_file(layout.checks)
