"""The index can be deleted, damaged, foreign or from another version: it is built anew from the files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from conceptry.errors import StoreError
from conceptry.registry import Filter, Registry
from conceptry.registry.entries import iter_entries
from conceptry.registry.index import rebuild_index
from conceptry.registry.migrations import INDEX_MIGRATIONS
from conceptry.registry.operations import DatabaseMode, FileOperations, use_operations
from tests.registry.folders import write_folder

EVERYTHING = Filter(all_versions=True)


@pytest.fixture
def filled(registry: Registry, tmp_path: Path) -> Registry:
    """Give a registry with two concepts, one of them in two versions."""
    registry.publish(write_folder(tmp_path / "a", title="Blue imp", tags=("creature",)))
    registry.publish(write_folder(tmp_path / "b", version="1.10.0", title="Blue imp again"))
    registry.publish(write_folder(tmp_path / "c", name="bob/ukiyo", description="woodblock prints"))
    return registry


def run_sql(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(sql)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(os.urandom(8192)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first page zeroed": lambda path: path.write_bytes(bytes(4096) + path.read_bytes()[4096:]),
    "last pages noise": lambda path: path.write_bytes(
        path.read_bytes()[:8192] + os.urandom(path.stat().st_size - 8192)
    ),
    "of another program": lambda path: run_sql(path, "PRAGMA application_id = 1"),
    "of a newer version": lambda path: run_sql(path, "PRAGMA user_version = 99"),
    "without its table": lambda path: run_sql(path, "DROP TABLE versions"),
    "rows that are nonsense": lambda path: run_sql(
        path, "UPDATE versions SET version = 'x' || version, digest = '../../x'"
    ),
    "lines that are nonsense": lambda path: run_sql(path, "UPDATE versions SET line = 'x' || line"),
    "lines that are missing": lambda path: run_sql(path, "UPDATE versions SET line = NULL"),
    "behind": lambda path: run_sql(path, "DELETE FROM versions; UPDATE state SET value = 'old'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_index_in_any_state_gives_the_same_listing(filled: Registry, damage: str) -> None:
    before, lines = filled.list(EVERYTHING), filled.lines(EVERYTHING)
    DAMAGES[damage](filled.root / "index.sqlite")
    assert filled.lines(EVERYTHING) == lines
    DAMAGES[damage](filled.root / "index.sqlite")
    assert filled.list(EVERYTHING) == before
    assert [str(row.reference) for row in filled.search("woodblock")] == ["bob/ukiyo@1.0.0"]
    assert filled.list(EVERYTHING) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_publishing_works_whatever_the_index_is(filled: Registry, tmp_path: Path, damage: str) -> None:
    DAMAGES[damage](filled.root / "index.sqlite")
    filled.publish(write_folder(tmp_path / "d", name="carol/cup"))
    assert [str(row.reference) for row in filled.list()] == [
        "bob/ukiyo@1.0.0",
        "carol/cup@1.0.0",
        "me/imp@1.10.0",
    ]


def test_folder_in_the_place_of_the_index_does_not_stop_a_listing(filled: Registry) -> None:
    (filled.root / "index.sqlite").unlink()
    (filled.root / "index.sqlite").mkdir()
    assert len(filled.list(EVERYTHING)) == 3


def test_reference_that_came_without_the_index_is_listed_after_verify(
    filled: Registry, tmp_path: Path
) -> None:
    other = Registry(tmp_path / "other")
    other.publish(write_folder(tmp_path / "d", name="carol/cup"))
    for path in sorted(other.root.rglob("*")):
        target = filled.root / path.relative_to(other.root)
        if path.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    assert filled.verify() == ()
    assert "carol/cup@1.0.0" in [str(row.reference) for row in filled.list()]


def test_rebuilt_rows_are_those_that_publishing_wrote(filled: Registry) -> None:
    with closing(sqlite3.connect(filled.root / "index.sqlite")) as connection:
        connection.row_factory = sqlite3.Row
        stored = [
            dict(row)
            for row in connection.execute("SELECT * FROM versions ORDER BY namespace, name, version")
        ]
    made = sorted(
        (entry.row for entry in iter_entries(filled.store.layout)),
        key=lambda row: (row["namespace"], row["name"], row["version"]),
    )
    assert stored == made


def test_an_index_made_anew_is_looked_up_as_one_that_grew(filled: Registry) -> None:
    """Rows that are made all at once get their look-ups afterwards, also those that somebody took out."""
    migrated = Database(memory=True)
    INDEX_MIGRATIONS.apply(migrated)
    path = filled.root / "index.sqlite"
    run_sql(path, "DROP INDEX latest_versions; DROP INDEX idx_files_digest")
    rebuild_index(filled.store)
    with closing(migrated.conn), closing(sqlite3.connect(path)) as connection:
        assert describe_lookups(connection) == describe_lookups(migrated.conn)


def describe_lookups(connection: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Return table, name, uniqueness, rule and columns of every look-up of the rows."""
    found: set[tuple[object, ...]] = set()
    for table in ("versions", "files"):
        for _, name, unique, _, partial in connection.execute(f"PRAGMA index_list({table})"):
            columns = [row[2] for row in connection.execute(f"PRAGMA index_info({name})")]
            (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            rule = sql.partition(" WHERE ")[2] if partial else None
            found.add((table, name, unique, rule, *columns))
    return found


def test_listing_loads_neither_pydantic_nor_sqlite_utils(filled: Registry) -> None:
    program = (
        "import sys; from conceptry.registry import Registry; print(len(Registry().list()));"
        "print({'pydantic', 'sqlite_utils', 'tomlkit', 'torch', 'huggingface_hub'} & set(sys.modules))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CONCEPTRY_HOME": str(filled.root)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout.split() == ["2", "set()"]


def test_full_text_stays_in_step_with_the_rows(filled: Registry) -> None:
    filled.remove("bob/ukiyo@1.0.0")
    assert filled.search("woodblock") == ()
    filled.restore("bob/ukiyo@1.0.0")
    assert len(filled.search("woodblock")) == 1


def test_quick_search_puts_names_first_and_says_where_it_stopped(filled: Registry, tmp_path: Path) -> None:
    filled.publish(write_folder(tmp_path / "d", name="carol/creature", title="Cup"))
    filled.publish(write_folder(tmp_path / "e", name="carol/creatures-of-blue", title="More"))
    wanted = Filter(limit=2, most_found=3)
    found = filled.find("creature", wanted)
    assert [row.concept_text for row in found.rows] == ["carol/creature", "carol/creatures-of-blue"]
    assert (found.count, found.is_all) == (2, True)
    assert filled.find("Creature blu", wanted).rows[0].concept_text == "carol/creatures-of-blue"
    assert filled.find("imp", Filter(limit=1, most_found=1, all_versions=True)).is_all is False
    assert filled.find("imp", Filter(limit=5, most_found=5, namespace="me", all_versions=True)).count == 2
    assert filled.find("nothing-like-it", wanted) == filled.find("nothing-like-it")


@pytest.mark.parametrize("damage", DAMAGES)
def test_quick_search_finds_the_same_in_a_damaged_index(filled: Registry, damage: str) -> None:
    before = filled.find("imp", Filter(limit=5, most_found=5))
    DAMAGES[damage](filled.root / "index.sqlite")
    assert filled.find("imp", Filter(limit=5, most_found=5)) == before


def test_publishing_adds_to_the_index_and_does_not_make_it_anew(filled: Registry, tmp_path: Path) -> None:
    run_sql(filled.root / "index.sqlite", "INSERT INTO state VALUES ('seen', 'yes')")
    filled.publish(write_folder(tmp_path / "d", name="carol/cup", description="porcelain"))
    filled.remove("bob/ukiyo@1.0.0")
    with closing(sqlite3.connect(filled.root / "index.sqlite")) as connection:
        assert connection.execute("SELECT value FROM state WHERE key = 'seen'").fetchall() == [("yes",)]
        connection.execute("INSERT INTO versions_fts (versions_fts, rank) VALUES ('integrity-check', 1)")
    assert len(filled.search("porcelain")) == 1
    assert filled.search("woodblock") == ()


class NoRoom(FileOperations):
    """A disk on which SQLite finds no room."""

    def connect(self, path: Path, mode: DatabaseMode, *, timeout_seconds: float) -> sqlite3.Connection:
        """Refuses."""
        raise sqlite3.OperationalError("database or disk is full")


def test_index_that_finds_no_room_says_what_to_do(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    with use_operations(NoRoom()), pytest.raises(StoreError, match="disk is full") as caught:
        rebuild_index(registry.store)
    assert "then run the same command again" in (caught.value.hint or "")
    assert [row.text for row in registry.list()] == ["me/imp@1.0.0"]
