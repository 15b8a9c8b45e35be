"""The doctor names each thing that is wrong, puts right what can be, and says what became of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.names import RemoteName, Tag
from conceptry.registry import Filter, Registry
from tests.registry.folders import CONTENTS, files_below, temporaries_below, write_folder

BLOB = Digest.of_bytes(CONTENTS)


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.fixture
def filled(registry: Registry, imp: Path, tmp_path: Path) -> Registry:
    """Give a registry with two versions, a tag that moved, and a remote that has one of the versions."""
    registry.publish(imp)
    registry.tag("me/imp@1.0.0", Tag("stable"))
    registry.publish(write_folder(tmp_path / "next", version="2.0.0", file=b"other weights"))
    registry.tag("me/imp@2.0.0", Tag("stable"))
    studio = (tmp_path / "studio").as_uri()
    registry.push("me/imp@1.0.0", studio)
    registry.add_remote(RemoteName("studio"), studio)
    return registry


def test_healthy_store_has_no_findings(filled: Registry) -> None:
    before = files_below(filled.root)
    assert filled.examine() == ()
    assert filled.examine(dry_run=True) == ()
    assert set(before) <= set(files_below(filled.root))


def damage_blob(home: Path) -> None:
    overwrite(home / "blobs" / "sha256" / BLOB.hex, b"x" * len(CONTENTS))


def cut_blob(home: Path) -> None:
    overwrite(home / "blobs" / "sha256" / BLOB.hex, CONTENTS[:-1])


def lose_blob(home: Path) -> None:
    (home / "blobs" / "sha256" / BLOB.hex).unlink()


def manifest_of(home: Path) -> Path:
    (line,) = (home / "refs" / "me" / "imp" / "versions" / "1.0.0").read_text(encoding="ascii").splitlines()
    return home / "manifests" / "sha256" / line[7:71]


def damage_manifest(home: Path) -> None:
    overwrite(manifest_of(home), b"{}")


def lose_manifest(home: Path) -> None:
    manifest_of(home).unlink()


FETCHED = {
    "bytes": damage_blob,
    "size": cut_blob,
    "missing": lose_blob,
    "manifest": damage_manifest,
    "manifest that is gone": lose_manifest,
}


@pytest.mark.parametrize("fault", FETCHED)
def test_what_a_remote_has_is_brought_back(filled: Registry, fault: str) -> None:
    FETCHED[fault](filled.root)
    (seen,) = [row for row in filled.examine(dry_run=True) if row.fault != "index"]
    assert (seen.fault, seen.state) == (fault.split(maxsplit=1)[0], "found")
    (treated,) = [row for row in filled.examine() if row.fault != "index"]
    assert (treated.state, treated.done) == ("repaired", "brought back from a remote")
    assert filled.verify() == ()
    assert filled.get("me/imp@1.0.0").label == "me/imp@1.0.0"
    assert filled.examine() == ()


def test_what_the_trash_has_is_brought_back_without_a_remote(filled: Registry) -> None:
    filled.remove_remote(RemoteName("studio"))
    trash = filled.root / "trash" / "blobs"
    trash.mkdir(parents=True)
    (filled.root / "blobs" / "sha256" / BLOB.hex).rename(trash / BLOB.hex)
    (treated,) = filled.examine()
    assert (treated.state, treated.done) == ("repaired", "brought back from the trash")
    assert filled.verify() == ()


def test_what_nobody_has_is_said_with_the_next_step_and_the_damaged_bytes_are_kept(filled: Registry) -> None:
    filled.remove_remote(RemoteName("studio"))
    damage_blob(filled.root)
    (lost,) = filled.examine()
    assert lost.state == "lost"
    assert lost.done == (
        "no remote that is known here has it: publish me/imp@1.0.0 again, or concepts remove me/imp@1.0.0"
    )
    assert any(path.name.startswith(BLOB.hex) for path in (filled.root / "trash" / "damaged").iterdir())
    assert [row.state for row in filled.examine()] == ["lost"]


def test_tag_whose_last_move_is_damaged_points_where_it_was_before(filled: Registry) -> None:
    overwrite(filled.root / "refs" / "me" / "imp" / "tags" / "stable" / "00000002", b"nonsense")
    (treated,) = filled.examine()
    assert (treated.fault, treated.done) == ("tag", "me/imp:stable points to 1.0.0 again")
    assert str(filled.resolve("me/imp:stable").reference) == "me/imp@1.0.0"


def test_tag_that_leads_nowhere_points_where_it_was_before(filled: Registry) -> None:
    filled.remove("me/imp@2.0.0")
    (treated,) = filled.examine()
    assert treated.done == "me/imp:stable points to 1.0.0 again"


def test_reference_that_cannot_be_read_goes_to_the_trash(filled: Registry) -> None:
    overwrite(filled.root / "refs" / "me" / "imp" / "versions" / "1.0.0", b"nonsense")
    treated = [row for row in filled.examine() if row.fault == "reference"]
    assert [row.state for row in treated] == ["repaired"]
    filled.pull("studio::me/imp@1.0.0")
    assert filled.verify() == ()


def break_rows(index: Path) -> None:
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("UPDATE versions SET title = 'another'")
        connection.commit()


INDEXES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda index: index.unlink(),
    "damaged": lambda index: index.write_bytes(bytes(8192)),
    "with other rows": break_rows,
}


@pytest.mark.parametrize("state", INDEXES)
def test_index_is_built_anew(filled: Registry, state: str) -> None:
    before = filled.list(Filter(all_versions=True))
    INDEXES[state](filled.root / "index.sqlite")
    assert [row.fault for row in filled.examine(dry_run=True)] == ["index"]
    assert [(row.fault, row.state) for row in filled.examine()] == [("index", "repaired")]
    assert filled.list(Filter(all_versions=True)) == before
    assert filled.examine() == ()


def test_leftovers_of_dead_commands_are_deleted(filled: Registry) -> None:
    host = next(iter(filled.store.layout.temporary().name.split("-")))
    (filled.root / "tmp" / f"{host}-4194999-aa").write_bytes(b"half")
    assert [row.state for row in filled.examine(dry_run=True)] == ["found"]
    assert [(row.fault, row.done) for row in filled.examine()] == [("leftovers", "deleted")]
    assert temporaries_below(filled.root) == []


def test_folder_that_others_can_write_is_made_private_unless_the_store_is_shared(filled: Registry) -> None:
    folder = filled.root / "refs"
    folder.chmod(0o777)
    assert [(row.fault, row.state) for row in filled.examine()] == [("permissions", "repaired")]
    assert folder.stat().st_mode & 0o777 == 0o755
    folder.chmod(0o777)
    overwrite(filled.root / "store.json", b'{"format": 1, "shared": true}')
    assert filled.examine() == ()


def test_blob_that_no_version_names_and_that_is_wrong_goes_to_the_trash(filled: Registry) -> None:
    (filled.root / "blobs" / "sha256" / ("1" * 64)).write_bytes(b"not ones")
    assert [(row.fault, row.state) for row in filled.examine()] == [("stray", "repaired")]
    assert filled.examine() == ()


def test_damaged_copy_of_a_lock_is_named(filled: Registry) -> None:
    (filled.root / "roots").mkdir()
    (filled.root / "roots" / f"{'1' * 64}.json").write_bytes(b"{")
    assert [(row.fault, row.state) for row in filled.examine()] == [("root", "lost")]


def test_store_that_was_never_written_is_healthy_and_not_made(tmp_path: Path) -> None:
    assert Registry(tmp_path / "none").examine() == ()
    assert not (tmp_path / "none").exists()
