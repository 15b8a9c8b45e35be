"""Locks and compositions keep what they need in the store alive, wherever they lie now."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, NotFoundError
from conceptry.registry import Registry
from conceptry.registry.roots import forget_root, keep_root, list_roots
from tests.registry.folders import files_below

ONE, TWO = Digest("1" * 64), Digest("2" * 64)


def test_what_a_lock_needs_is_kept_with_its_path(registry: Registry, tmp_path: Path) -> None:
    lock = tmp_path / "project" / "concepts.lock"
    keep_root(registry.store, "lock", lock, [TWO, ONE])
    (root,) = list_roots(registry.store.layout)
    assert (root.kind, root.path) == ("lock", str(lock))
    assert root.digests == {ONE, TWO}


def test_a_later_sync_takes_the_place_of_an_earlier_one(registry: Registry, tmp_path: Path) -> None:
    lock = tmp_path / "concepts.lock"
    keep_root(registry.store, "lock", lock, [ONE])
    keep_root(registry.store, "lock", lock, [TWO])
    assert [root.digests for root in list_roots(registry.store.layout)] == [{TWO}]


@pytest.mark.parametrize("named", ["concepts.lock", "."])
def test_lock_is_forgotten_by_its_file_or_its_folder(registry: Registry, tmp_path: Path, named: str) -> None:
    keep_root(registry.store, "lock", tmp_path / "concepts.lock", [ONE])
    path = tmp_path if named == "." else tmp_path / named
    assert forget_root(registry.store, path).digests == {ONE}
    assert list_roots(registry.store.layout) == ()


def test_unknown_lock_cannot_be_forgotten(registry: Registry, tmp_path: Path) -> None:
    keep_root(registry.store, "lock", tmp_path / "concepts.lock", [ONE])
    with pytest.raises(NotFoundError) as caught:
        forget_root(registry.store, tmp_path / "concept.lock")
    assert caught.value.hint == f"did you mean '{tmp_path}/concepts.lock'?"
    assert len(list_roots(registry.store.layout)) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x", "path": "/a", "digests": []}'])
def test_damaged_copy_is_an_error_because_what_it_kept_is_unknown(
    registry: Registry, tmp_path: Path, text: str
) -> None:
    keep_root(registry.store, "lock", tmp_path / "concepts.lock", [ONE])
    (name,) = [name for name in files_below(registry.root) if name.startswith("roots/")]
    (registry.root / name).write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError, match="copy of a lock"):
        list_roots(registry.store.layout)
