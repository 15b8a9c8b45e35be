"""Opening a store: what is refused, and what is made when."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conceptry.errors import StoreError
from conceptry.registry import Registry
from conceptry.registry.locks import hold_lock
from tests.registry.folders import write_folder


def test_looking_at_an_empty_store_makes_nothing(registry: Registry) -> None:
    assert registry.list() == ()
    assert registry.search("imp") == ()
    assert registry.verify() == ()
    assert dict(registry.remotes()) == {}
    assert not registry.root.exists()


def test_store_of_a_newer_version_is_refused_and_left_as_it_is(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    marker = registry.root / "store.json"
    marker.chmod(0o644)
    marker.write_text(json.dumps({"format": 2, "layout": "something else"}), encoding="utf-8")
    before = sorted((path, path.stat().st_mtime_ns) for path in registry.root.rglob("*"))
    with pytest.raises(StoreError, match="has format 2, this version knows 1") as caught:
        Registry(registry.root)
    assert caught.value.exit_code == 1
    assert caught.value.hint is not None
    assert "update conceptry" in caught.value.hint
    assert sorted((path, path.stat().st_mtime_ns) for path in registry.root.rglob("*")) == before


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"format": "1"}', '{"format": 0}', "\xff"])
def test_store_whose_marker_says_nothing_is_refused(registry: Registry, text: str) -> None:
    registry.root.mkdir()
    (registry.root / "store.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match="does not say which format"):
        Registry(registry.root)


def test_file_in_the_place_of_the_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("x", encoding="utf-8")
    with pytest.raises(StoreError):
        Registry(tmp_path / "home")


def test_store_that_others_can_write_is_refused(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    registry.root.chmod(0o777)
    with pytest.raises(StoreError, match="can be written by other users") as caught:
        Registry(registry.root)
    assert caught.value.hint == f"chmod go-w {registry.root}"


def test_store_that_is_marked_as_shared_may_be_written_by_others(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    (registry.root / "store.json").write_text('{"format": 1, "shared": true}', encoding="utf-8")
    registry.root.chmod(0o777)
    assert len(Registry(registry.root).list()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_store_of_another_user_is_refused(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    os.chown(registry.root, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to another user"):
        Registry(registry.root)


def test_empty_folder_made_beforehand_becomes_private(registry: Registry, imp: Path) -> None:
    registry.root.mkdir()
    registry.root.chmod(0o775)
    registry.publish(imp)
    assert registry.root.stat().st_mode & 0o777 == 0o700


def test_lock_held_by_another_process_is_waited_for_and_then_named(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    path = registry.store.layout.refs_lock
    with (
        hold_lock(path),
        pytest.raises(StoreError, match=rf"pid {os.getpid()} on ") as caught,
        hold_lock(path, timeout_seconds=0.1),
    ):
        pytest.fail("two hold the lock")
    assert caught.value.hint is not None


def test_lock_left_by_a_dead_process_stops_nobody(registry: Registry, imp: Path, tmp_path: Path) -> None:
    registry.publish(imp)
    registry.store.layout.refs_lock.write_text("pid 1 on elsewhere: concepts publish", encoding="utf-8")
    assert registry.publish(write_folder(tmp_path / "next", version="2.0.0")).created


@pytest.mark.parametrize("broken", [lambda *_: None, "unsupported"])
def test_everything_works_where_locks_do_not(
    registry: Registry, imp: Path, monkeypatch: pytest.MonkeyPatch, broken: object
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="of POSIX")

    def refuse(*_: object) -> None:
        raise OSError(37, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse if broken == "unsupported" else broken)
    registry.publish(imp)
    registry.push("me/imp", (imp.parent / "studio").as_uri())
    assert [str(row.reference) for row in registry.list()] == ["me/imp@1.0.0"]
    assert registry.verify() == ()
