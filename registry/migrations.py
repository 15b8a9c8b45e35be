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


@INDEX_MIGRATIONS(name="0003_lists")
def create_lists(db: Database) -> None:
    """Makes the table of versions anew: the latest, the yanked, their order, and a checksum of each row.

    The rows come from the files, so none is copied. Files get a table, by the digests of their bytes and tensors.
    """
    db.table("versions").disable_fts()
    db.table("versions").drop()
    table = db.table("versions")
    text = (
        "namespace", "name", "version", "sort_key", "digest", "title", "description", "kinds", "families",
        "placeholders", "tags", "license", "origin", "yanked",
    )  # fmt: skip
    table.create(
        {**dict.fromkeys(text, str), "size_bytes": int, "latest": int, "checksum": int},
        not_null={"namespace", "name", "version", "sort_key", "digest", "size_bytes", "origin", "latest"},
    )
    table.create_index(["namespace", "name", "version"], unique=True)
    table.create_index(["digest"])
    db.execute("CREATE UNIQUE INDEX latest_versions ON versions (namespace, name) WHERE latest = 1")
    table.enable_fts(SEARCHED_COLUMNS, tokenize="unicode61 remove_diacritics 2")
    files = db.table("files")
    files.create(
        {"place": int, "path": str, "digest": str, "tensor_digest": str}, not_null={"place", "digest"}
    )
    for column in ("place", "digest", "tensor_digest"):
        files.create_index([column])


@INDEX_MIGRATIONS(name="0004_lines")
def add_lines(db: Database) -> None:
    """Adds what a list prints of each version as one text that carries its own checksum; the rows are made anew."""
    db.execute("ALTER TABLE versions ADD COLUMN line TEXT")


@INDEX_MIGRATIONS(name="0005_checks")
def drop_checked_blobs(db: Database) -> None:
    """Takes out the record of hashed files, which has a file of its own: the index is not changed in place any more."""
    db.table("checked_blobs").drop()
