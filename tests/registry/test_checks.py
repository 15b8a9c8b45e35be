"""A blob is hashed again whenever its file changed, and not otherwise."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import IntegrityError
from conceptry.registry import Registry, checks
from conceptry.registry.blobs import is_intact
from conceptry.registry.paths import Layout
from tests.registry.folders import CONTENTS


@pytest.fixture
def blob(registry: Registry, imp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the path of a published blob whose last change counts as settled at once."""
    monkeypatch.setattr(checks, "_CLOCK_NS", 0)
    registry.publish(imp)
    (file,) = registry.manifest("me/imp").iter_files()
    return registry.root / "blobs" / "sha256" / file.sha256.hex


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the list of blobs that are read from now on."""
    read: list[str] = []

    def count(layout: Layout, digest: Digest, size_bytes: int) -> bool:
        read.append(str(digest))
        return is_intact(layout, digest, size_bytes)

    monkeypatch.setattr(checks, "is_intact", count)
    return read


def test_unchanged_blob_is_read_once(registry: Registry, blob: Path, reads: list[str]) -> None:
    for _ in range(3):
        registry.get("me/imp")
    assert len(reads) == 1
    assert blob.read_bytes() == CONTENTS


def test_change_that_hides_behind_an_old_modification_time_is_found(registry: Registry, blob: Path) -> None:
    registry.get("me/imp")
    before = blob.stat()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"X")
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert blob.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(IntegrityError):
        registry.get("me/imp")


def test_file_in_the_place_of_a_blob_is_read_again(registry: Registry, blob: Path, reads: list[str]) -> None:
    registry.get("me/imp")
    other = blob.parent / "other"
    other.write_bytes(CONTENTS)
    other.replace(blob)
    registry.get("me/imp")
    assert len(reads) == 2


def test_change_that_is_too_fresh_for_the_clock_is_not_recorded(
    registry: Registry, blob: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_CLOCK_NS", 10**12)
    registry.get("me/imp")
    registry.get("me/imp")
    assert len(reads) == 2


def test_file_from_the_future_is_not_recorded(registry: Registry, blob: Path, reads: list[str]) -> None:
    future = time.time_ns() + 10**15
    os.utime(blob, ns=(future, future))
    registry.get("me/imp")
    registry.get("me/imp")
    assert len(reads) == 2


def test_verify_reads_a_blob_however_often_it_was_checked(registry: Registry, blob: Path) -> None:
    registry.get("me/imp")
    look = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"X" * len(CONTENTS))
    faked = (look.st_ino, look.st_size, blob.stat().st_mtime_ns, blob.stat().st_ctime_ns)
    checks._record(registry.store.layout, {blob.name: faked})
    registry.get("me/imp")
    assert len(registry.verify()) == 1
    with pytest.raises(IntegrityError):
        registry.get("me/imp")


@pytest.mark.parametrize("damage", [b"no database" * 1000, b""])
def test_damaged_record_of_what_was_hashed_is_made_anew(
    registry: Registry, blob: Path, reads: list[str], damage: bytes
) -> None:
    registry.get("me/imp")
    (registry.root / "checks.sqlite").write_bytes(damage)
    for _ in range(4):
        registry.get("me/imp")
    assert len(reads) in (2, 3)
