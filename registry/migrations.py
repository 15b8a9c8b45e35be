"""The index's tables, as numbered steps; a step that was released is never edited."""

from __future__ import annotations

from typing import Final

from sqlite_utils import Database, Migrations

INDEX_MIGRATIONS: Final = Migrations("conceptry-index")
SEARCHED_COLUMNS: Final = ("namespace", "name", "title", "tags", "description", "placeholders")


@INDEX_MIGRATIONS(name="0001_versions")
def create_versions(db: Database) -> None:
    """Makes the table of versions, its full-text search, and the state of the index itself.

    No triggers: SQLite refuses them access to full text once the schema of a file is not trusted.
    """
    table = db.table("versions")
    table.create(
        {
            "namespace": str,
            "name": str,
            "version": str,
            "digest": str,
            "title": str,
            "description": str,
            "kinds": str,
            "families": str,
            "placeholders": str,
            "tags": str,
            "license": str,
            "size_bytes": int,
            "origin": str,
        },
        not_null={"namespace", "name", "version", "digest", "size_bytes", "origin"},
    )
    table.create_index(["namespace", "name", "version"], unique=True)
    table.enable_fts(SEARCHED_COLUMNS, tokenize="unicode61 remove_diacritics 2")
    db.table("state").create({"key": str, "value": str}, pk="key")


@INDEX_MIGRATIONS(name="0002_checked_blobs")
def create_checked_blobs(db: Database) -> None:
    """Makes the record of files whose bytes were hashed, and what they looked like to the file system then."""
    db.table("checked_blobs").create(
        {"hex": str, "inode": int, "size_bytes": int, "mtime_ns": int, "ctime_ns": int}, pk="hex"
    )
