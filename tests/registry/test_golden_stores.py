"""Stores that earlier versions wrote are read and go on being used; a golden is never made anew."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conceptry.manifest import FullMethod, parse_manifest
from conceptry.methods import CompositionMethod
from conceptry.names import RemoteName, Tag, parse_version
from conceptry.registry import Filter, Registry
from conceptry.registry.index import is_index_equal
from conceptry.registry.listing import INDEX_FORMAT
from conceptry.registry.packing import pack_project, unpack_project
from tests.registry.folders import write_folder

GOLDEN = Path(__file__).parent.parent / "golden" / "registry"
MADE_AT = "file:///tmp/golden-made/remote-1"
SECOND = [
    "carol/cup@1.0.0",
    "me/both@0.1.0",
    "me/hat@1.0.0",
    "me/imp@1.0.0",
    "me/imp@1.1.0",
    "me/imp@2.0.0-RC.1",
    "me/look@1.0.0",
    "me/tune@1.2.3",
    "me/tune@1.2.4",
]
VERSIONS = ["bob/ukiyo@1.0.0", "carol/cup@1.0.0", "me/imp@1.0.0", "me/imp@1.10.0-RC.1"]


@pytest.fixture
def old(tmp_path: Path) -> Registry:
    """Give a copy of a store as the first version left it."""
    return Registry(copy_golden("store-1", tmp_path / "home"))


@pytest.fixture
def second(tmp_path: Path) -> Registry:
    """Give a copy of a store with an index of format 5, whose remote is a copy too."""
    copy_golden("remote-1", tmp_path / "remote")
    home = copy_golden("store-2", tmp_path / "home")
    config = home / "config.toml"
    text = config.read_text(encoding="utf-8").replace(MADE_AT, (tmp_path / "remote").as_uri())
    config.write_text(text, encoding="utf-8")
    return Registry(home)


def copy_golden(name: str, to: Path) -> Path:
    """Return the copy of a golden folder, with the modes that a store has and git does not keep."""
    shutil.copytree(GOLDEN / name, to)
    for path in to.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o644)
    to.chmod(0o700)
    return to


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


def test_every_golden_is_read_by_a_test() -> None:
    assert {path.name for path in GOLDEN.iterdir()} - {"README.md"} == {
        *("bundle-1.tar", "concepts-1.lock", "remote-1", "store-1", "store-2")
    }


def test_store_of_the_second_golden_is_whole_and_its_index_is_believed(second: Registry) -> None:
    before = (second.root / "index.sqlite").read_bytes()
    assert [row.text for row in second.list(Filter(all_versions=True))] == SECOND
    assert [row.text for row in second.search("woodblock")] == []
    assert [row.text for row in second.search("larger")] == ["me/imp@1.1.0"]
    assert second.verify() == ()
    assert second.examine() == ()
    assert is_index_equal(second.store)
    assert (second.root / "index.sqlite").read_bytes()[:100] == before[:100]


def test_a_lost_index_of_the_second_golden_is_made_again_the_same(second: Registry) -> None:
    (second.root / "index.sqlite").unlink()
    assert [row.text for row in second.list(Filter(all_versions=True))] == SECOND
    assert is_index_equal(second.store)


def test_what_the_second_golden_says_of_its_versions_is_read(second: Registry) -> None:
    shown = second.show("me/imp:stable")
    assert str(shown.reference) == "me/imp@1.1.0"
    assert [str(move.version) for move in shown.history[Tag("stable")]] == ["1.0.0", "1.1.0"]
    assert second.show("me/imp@2.0.0-RC.1").yanked == "too small"
    assert second.show("me/hat").record is not None
    assert second.show("carol/cup").origin == "pulled"
    assert str(second.restore("me/gone@0.9.0").reference) == "me/gone@0.9.0"
    assert second.collect_garbage(grace_seconds=1e12).items == ()


def test_manifests_of_a_packed_fine_tune_and_of_a_composition_keep_their_bytes(second: Registry) -> None:
    packed, both = second.get("me/tune@1.2.4"), second.get("me/both")
    for concept in (packed, both):
        data = second.store.layout.manifest(concept.digest).read_bytes()
        assert parse_manifest(data).to_bytes() == data
    method = packed.manifest.builds[0].parts[0].method
    assert isinstance(method, FullMethod)
    assert method.packing is not None
    assert method.packing[0].lossless
    named = both.manifest.builds[0].parts[0].method
    assert isinstance(named, CompositionMethod)
    assert [member.label for member in named.members] == ["me/imp@1.0.0", "me/look@1.0.0"]
    for member in named.members:
        assert second.resolve(member.label).digest == member.digest


def test_remote_of_an_earlier_version_is_pulled_from_and_pushed_to(second: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    studio = RemoteName("studio")
    other.add_remote(studio, (tmp_path / "remote").as_uri())
    assert [str(row.name) for row in other.search_remote(studio)] == [
        *("carol/cup", "me/both", "me/hat", "me/imp", "me/look", "me/tune")
    ]
    other.pull("studio::me/both")
    other.pull("studio::me/imp:stable")
    assert [row.text for row in other.list(Filter(all_versions=True))] == [
        *("me/both@0.1.0", "me/imp@1.0.0", "me/imp@1.1.0", "me/look@1.0.0")
    ]
    assert other.verify() == ()
    for text in ("me/imp@1.0.0", "me/tune@1.2.4", "me/both"):
        repeated = second.push(text, studio)
        assert (repeated.created, repeated.sent_bytes) == (False, 0)
    second.publish(write_folder(tmp_path / "next", version="3.0.0"))
    assert second.push("me/imp@3.0.0", studio).created
    assert other.pull("studio::me/imp").reference.version == parse_version("3.0.0")


def test_bundle_of_an_earlier_version_is_taken_in(tmp_path: Path) -> None:
    island = Registry(tmp_path / "island")
    folder = tmp_path / "project"
    folder.mkdir()
    workspace, synced = unpack_project(island, GOLDEN / "bundle-1.tar", folder)
    assert len(synced.installed) == synced.concepts == 3
    assert [row.text for row in island.list(Filter(all_versions=True))] == [
        *("me/both@0.1.0", "me/imp@1.0.0", "me/look@1.0.0")
    ]
    assert island.verify() == ()
    again = pack_project(workspace, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (GOLDEN / "bundle-1.tar").read_bytes()
    assert again.concepts == 3
