"""Garbage collection takes what nothing needs, keeps everything else, and can be undone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, NotFoundError
from conceptry.registry import Registry, collection, manifests, publish, trash
from conceptry.registry.collection import delete_trash
from conceptry.registry.leases import hold_lease
from conceptry.registry.processes import own_mark
from conceptry.registry.roots import forget_root, keep_root
from conceptry.registry.trash import Item, undo_collection
from tests.registry.folders import files_below, temporaries_below, write_folder

WEIGHTS = b"weights that nobody wants"
DAY = 86_400


def digests_of(items: tuple[Item, ...]) -> set[str]:
    return {f"{item.kind} {item.digest}" for item in items}


@pytest.fixture
def removed(registry: Registry, imp: Path, tmp_path: Path) -> Registry:
    """Give a registry with one version, and one that was removed from it."""
    registry.publish(imp)
    registry.publish(write_folder(tmp_path / "other", name="me/cup", file=WEIGHTS))
    registry.remove("me/cup@1.0.0")
    return registry


def test_fresh_store_has_no_garbage(registry: Registry, imp: Path) -> None:
    assert registry.collect_garbage().items == ()
    registry.publish(imp)
    before = files_below(registry.root)
    assert registry.collect_garbage(grace_seconds=0).items == ()
    assert [name for name in before if not name.startswith("locks/")] == [
        name for name in files_below(registry.root) if not name.startswith("locks/")
    ]


def test_removed_version_is_kept_for_the_grace_period(removed: Registry) -> None:
    assert removed.collect_garbage().items == ()
    assert removed.collect_garbage(grace_seconds=DAY).items == ()
    taken = removed.collect_garbage(grace_seconds=0)
    assert f"blob {Digest.of_bytes(WEIGHTS)}" in digests_of(taken.items)
    assert {item.kind for item in taken.items} == {"blob", "manifest"}
    assert removed.verify() == ()


def test_dry_run_says_what_would_be_taken_and_takes_nothing(removed: Registry) -> None:
    before = files_below(removed.root)
    said = removed.collect_garbage(grace_seconds=0, dry_run=True)
    assert files_below(removed.root) == before
    assert removed.collect_garbage(grace_seconds=0).items == said.items


def test_collection_can_be_undone(removed: Registry) -> None:
    taken = removed.collect_garbage(grace_seconds=0)
    assert set(undo_collection(removed.store.layout)) == set(taken.items)
    removed.restore("me/cup@1.0.0")
    assert removed.get("me/cup").label == "me/cup@1.0.0"
    with pytest.raises(NotFoundError):
        undo_collection(removed.store.layout)


def test_restoring_a_removed_version_brings_back_what_was_collected(removed: Registry) -> None:
    removed.collect_garbage(grace_seconds=0)
    removed.restore("me/cup@1.0.0")
    assert removed.verify() == ()
    concept = removed.get("me/cup")
    assert concept.locate(next(concept.manifest.iter_files())).read_bytes() == WEIGHTS
    assert removed.verify() == ()


def test_publishing_again_after_a_collection_works(removed: Registry, tmp_path: Path) -> None:
    removed.collect_garbage(grace_seconds=0)
    assert removed.publish(tmp_path / "other").created
    assert removed.verify() == ()


def test_trained_imported_and_pulled_versions_are_never_collected(
    registry: Registry, imp: Path, tmp_path: Path
) -> None:
    registry.publish(imp)
    registry.push("me/imp", (tmp_path / "studio").as_uri())
    second = Registry(tmp_path / "second")
    for store in (registry, second):
        if store is second:
            from conceptry.names import RemoteName

            store.add_remote(RemoteName("studio"), (tmp_path / "studio").as_uri())
            store.pull("studio::me/imp")
        for path in store.root.rglob("*"):
            os.utime(path, (0, 0))
        assert store.collect_garbage(grace_seconds=0).items == ()
        assert store.get("me/imp").label == "me/imp@1.0.0"


def test_lock_keeps_a_removed_version_until_it_is_forgotten(removed: Registry, tmp_path: Path) -> None:
    digest = Digest(
        (next((removed.root / "trash").rglob("0*")).read_text().split()[0]).removeprefix("sha256:")
    )
    keep_root(removed.store, "lock", tmp_path / "gone" / "concepts.lock", [digest])
    assert removed.collect_garbage(grace_seconds=0).items == ()
    forget_root(removed.store, tmp_path / "gone")
    assert len(removed.collect_garbage(grace_seconds=0).items) == 2


def test_operation_in_progress_keeps_what_it_needs(removed: Registry) -> None:
    with hold_lease(removed.store, [Digest.of_bytes(WEIGHTS)]):
        assert {item.kind for item in removed.collect_garbage(grace_seconds=0).items} == {"manifest"}
    assert {item.kind for item in removed.collect_garbage(grace_seconds=0).items} == {"blob"}


def test_lease_of_a_process_that_is_gone_keeps_nothing_and_goes(removed: Registry) -> None:
    with hold_lease(removed.store, [Digest.of_bytes(WEIGHTS)]):
        (lease,) = (removed.root / "leases").iterdir()
        host, _, drawn = lease.name.split("-")
        dead = lease.rename(lease.with_name(f"{host}-4194999-{drawn}"))
        assert len(removed.collect_garbage(grace_seconds=0).items) == 2
        assert not dead.exists()


def test_what_somebody_begins_to_need_during_a_collection_comes_back(
    removed: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = trash.take_away

    def publish_meanwhile(*arguments: object, **more: object) -> None:
        removed.publish(tmp_path / "other")
        real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(collection, "take_away", publish_meanwhile)
    assert removed.collect_garbage(grace_seconds=0).items == ()
    assert removed.verify() == ()


def test_publish_that_lost_its_blobs_to_a_collection_finds_them_again(
    removed: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    real = manifests.add_manifest

    def collect_meanwhile(*arguments: object) -> object:
        for lease in (removed.root / "leases").iterdir():
            lease.unlink()
        assert len(removed.collect_garbage(grace_seconds=0).items) >= 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(publish, "add_manifest", collect_meanwhile)
    removed.publish(tmp_path / "other")
    assert removed.verify() == ()


def test_damaged_manifest_stops_a_collection_because_its_needs_are_unknown(removed: Registry) -> None:
    (path,) = [
        path
        for path in (removed.root / "manifests").rglob("*")
        if path.is_file() and b"me/imp" in path.read_bytes()
    ]
    path.chmod(0o644)
    path.write_bytes(b"{}")
    before = files_below(removed.root / "blobs")
    with pytest.raises(IntegrityError, match="nothing was collected"):
        removed.collect_garbage(grace_seconds=0)
    assert files_below(removed.root / "blobs") == before


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(registry: Registry, imp: Path) -> None:
    registry.publish(imp)
    folder = registry.root / "tmp"
    host = own_mark().split("-", maxsplit=1)[0]
    dead, living, elsewhere = (
        folder / f"{host}-4194999-aa",
        folder / f"{own_mark()}-bb",
        folder / f"00000000-{os.getpid()}-cc",
    )
    for path in (dead, living, elsewhere):
        path.write_bytes(b"half")
    assert registry.collect_garbage().leftovers == 1
    assert temporaries_below(registry.root) == sorted(f"tmp/{path.name}" for path in (living, elsewhere))
    os.utime(elsewhere, (0, 0))
    assert registry.collect_garbage().leftover_bytes == 4


def test_partial_download_is_kept_for_a_week_or_until_its_blob_is_there(
    registry: Registry, imp: Path
) -> None:
    registry.publish(imp)
    blob = next((registry.root / "blobs" / "sha256").iterdir()).name
    folder = registry.root / "partial"
    folder.mkdir()
    fresh, old, arrived = folder / ("1" * 64), folder / ("2" * 64), folder / blob
    for path in (fresh, old, arrived):
        path.write_bytes(b"beginning")
    os.utime(old, (time.time() - 8 * DAY,) * 2)
    assert registry.collect_garbage().leftovers == 2
    assert temporaries_below(registry.root) == [f"partial/{fresh.name}"]


def test_emptied_trash_is_gone_and_nothing_else_is(removed: Registry) -> None:
    taken = removed.collect_garbage(grace_seconds=0)
    count, size_bytes = delete_trash(removed.store)
    assert count == len(taken.items) + 1  # and the removed reference
    assert size_bytes >= taken.size_bytes
    assert files_below(removed.root / "trash") == []
    assert removed.get("me/imp").label == "me/imp@1.0.0"
    with pytest.raises(NotFoundError):
        removed.restore("me/cup@1.0.0")


def test_emptying_the_trash_brings_back_what_is_needed_after_all(removed: Registry, tmp_path: Path) -> None:
    (manifest, blob) = sorted(
        removed.collect_garbage(grace_seconds=0).items, key=lambda item: item.kind != "manifest"
    )
    keep_root(removed.store, "lock", tmp_path / "concepts.lock", [manifest.digest])
    delete_trash(removed.store)
    assert removed.store.layout.blob(blob.digest).is_file()
    assert removed.store.layout.manifest(manifest.digest).is_file()


def test_clock_that_jumped_far_ahead_loses_nothing_for_good(
    removed: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "time_ns", lambda: 4 * 10**18)
    removed.collect_garbage()
    monkeypatch.undo()
    removed.restore("me/cup@1.0.0")
    assert removed.get("me/cup").label == "me/cup@1.0.0"


def test_files_from_the_future_are_not_garbage_yet(removed: Registry) -> None:
    ahead = time.time() + 20 * 365 * DAY
    for path in removed.root.rglob("*"):
        os.utime(path, (ahead, ahead))
    assert removed.collect_garbage(grace_seconds=DAY).items == ()
