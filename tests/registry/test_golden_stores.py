"""Stores that earlier versions wrote are read and go on being used; a golden is never made anew."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conceptry.names import Tag
from conceptry.registry import Filter, Registry
from conceptry.registry.index import is_index_equal
from conceptry.registry.listing import INDEX_FORMAT
from tests.registry.folders import write_folder

GOLDEN = Path(__file__).parent.parent / "golden" / "registry"
VERSIONS = ["bob/ukiyo@1.0.0", "carol/cup@1.0.0", "me/imp@1.0.0", "me/imp@1.10.0-RC.1"]


@pytest.fixture(params=sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """Give a copy of a store as an earlier version left it."""
    home = tmp_path / "home"
    shutil.copytree(GOLDEN / str(request.param), home)
    for path in home.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o644)
    home.chmod(0o700)
    return Registry(home)


def test_every_version_of_an_old_store_is_listed_whole(old: Registry) -> None:
    assert [row.text for row in old.list(Filter(all_versions=True))] == VERSIONS
    assert [row.text for row in old.list()] == ["bob/ukiyo@1.0.0", "carol/cup@1.0.0", "me/imp@1.0.0"]
    for text in VERSIONS:
        assert old.get(text).label == text
    assert old.verify() == ()
    assert [row.text for row in old.search("woodblock")] == ["bob/ukiyo@1.0.0"]


def test_tags_records_remotes_and_removed_versions_of_an_old_store_are_there(old: Registry) -> None:
    shown = old.show("me/imp:stable")
    assert str(shown.reference) == "me/imp@1.10.0-RC.1"
    assert [(str(move.version), move.time) for move in shown.history[Tag("stable")]] == [
        ("1.0.0", None),
        ("1.10.0-RC.1", None),
    ]
    assert shown.record is not None
    assert old.show("carol/cup").origin == "pulled"
    assert dict(old.remotes()) == {"studio": "file:///srv/studio"}
    assert str(old.restore("bob/ukiyo@0.9.0").reference) == "bob/ukiyo@0.9.0"
    assert old.get("bob/ukiyo@0.9.0").label == "bob/ukiyo@0.9.0"


def test_old_store_is_written_as_if_it_were_new(old: Registry, tmp_path: Path) -> None:
    old.publish(write_folder(tmp_path / "next", version="2.0.0"))
    old.tag("me/imp@2.0.0", Tag("stable"))
    old.yank("me/imp@1.0.0", "old")
    assert str(old.resolve("me/imp").reference) == "me/imp@2.0.0"
    assert len(old.show("me/imp").history[Tag("stable")]) == 3
    assert old.collect_garbage(grace_seconds=1e12).items == ()
    assert old.verify() == ()
    assert old.examine() == ()


def test_old_index_is_brought_up_to_date(old: Registry) -> None:
    assert [row.text for row in old.list(Filter(all_versions=True))] == VERSIONS
    with closing(sqlite3.connect(old.root / "index.sqlite")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (INDEX_FORMAT,)
    assert is_index_equal(old.store)
