"""Damage of any kind is found: each bit, each length, each sector; nothing damaged is ever handed out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from conceptry.errors import ConceptryError
from conceptry.registry import Filter, Registry
from conceptry.registry.index import is_index_equal
from tests.registry.folders import write_folder

EVERYTHING = Filter(all_versions=True)
SECTOR_BYTES = 512


@pytest.fixture
def small(registry: Registry, tmp_path: Path) -> Registry:
    """Give a registry with one concept whose blob is small enough to try every bit of it."""
    registry.publish(write_folder(tmp_path / "imp", title="Blue imp", file=bytes(range(64))))
    return registry


def blob_of(registry: Registry) -> Path:
    (path,) = (registry.root / "blobs" / "sha256").iterdir()
    return path


def manifest_of(registry: Registry) -> Path:
    (path,) = (registry.root / "manifests" / "sha256").iterdir()
    return path


def is_found(registry: Registry, path: Path, data: bytes) -> bool:
    """Return whether the damage is named by verify, and the concept not handed out."""
    path.chmod(0o644)
    path.write_bytes(data)
    try:
        registry.get("me/imp")
    except ConceptryError:
        return bool(registry.verify())
    return False


def flips_of(data: bytes) -> list[bytes]:
    return [
        data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        for place in range(len(data))
        for bit in range(8)
    ]


def truncations_of(data: bytes) -> list[bytes]:
    return [data[:size] for size in range(len(data))] + [data + b"\0"]


def undetected(registry: Registry, path: Path, damages: list[bytes]) -> int:
    whole = path.read_bytes()
    count = sum(not is_found(registry, path, data) for data in damages)
    path.write_bytes(whole)
    assert registry.verify() == ()
    return count


def test_sampled_damage_of_a_blob_and_a_manifest_is_found(small: Registry) -> None:
    chance = random.Random(5)
    for path in (blob_of(small), manifest_of(small)):
        data = path.read_bytes()
        damages = [
            *chance.sample(flips_of(data), 20),
            *chance.sample(truncations_of(data), 10),
            b"",
            data + b"\0",
        ]
        assert undetected(small, path, damages) == 0


@pytest.mark.slow
def test_every_bit_and_length_of_a_blob_and_a_manifest_is_found(small: Registry) -> None:
    for path in (blob_of(small), manifest_of(small)):
        data = path.read_bytes()
        assert undetected(small, path, [*flips_of(data), *truncations_of(data)]) == 0


def test_swapped_blobs_are_found(registry: Registry, tmp_path: Path) -> None:
    registry.publish(write_folder(tmp_path / "a", file=b"first weights"))
    registry.publish(write_folder(tmp_path / "b", name="me/cup", file=b"other weights"))
    one, two = sorted((registry.root / "blobs" / "sha256").iterdir())
    first, second = one.read_bytes(), two.read_bytes()
    for path, data in ((one, second), (two, first)):
        path.chmod(0o644)
        path.write_bytes(data)
    assert {finding.fault for finding in registry.verify()} == {"bytes"}
    for name in ("me/imp", "me/cup"):
        with pytest.raises(ConceptryError):
            registry.get(name)


# --- the index -----------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(registry: Registry, tmp_path: Path) -> Registry:
    """Give a registry whose index has rows of all kinds."""
    for number in range(6):
        folder = write_folder(
            tmp_path / str(number), f"me/imp{number % 3}", f"1.{number}.0", title=f"Imp {number}"
        )
        registry.publish(folder)
    registry.yank("me/imp1@1.4.0", "wrong pictures")
    return registry


def sectors_of(index: Path) -> list[int]:
    return list(range(0, index.stat().st_size, SECTOR_BYTES))


def damage_sector(index: Path, offset: int, data: bytes) -> None:
    with index.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def lists_right_after(registry: Registry, offset: int, data: bytes) -> bool:
    """Return whether a damaged sector changes nothing that is listed, and a verified store has an equal index again."""
    index = registry.root / "index.sqlite"
    before = registry.list(EVERYTHING), registry.list()
    whole = index.read_bytes()
    damage_sector(index, offset, data)
    right = (registry.list(EVERYTHING), registry.list()) == before
    registry.verify()
    right = right and is_index_equal(registry.store) and registry.list(EVERYTHING) == before[0]
    index.write_bytes(whole)
    return right


@pytest.mark.parametrize("fill", ["zeros", "ones", "noise"])
def test_damaged_sectors_of_the_index_change_no_listing(filled: Registry, fill: str) -> None:
    chance = random.Random(fill)
    sectors = sectors_of(filled.root / "index.sqlite")
    for offset in [0, *chance.sample(sectors, 8)]:
        data = {"zeros": bytes(SECTOR_BYTES), "ones": b"\xff" * SECTOR_BYTES}.get(fill) or chance.randbytes(
            SECTOR_BYTES
        )
        assert lists_right_after(filled, offset, data), f"sector at {offset}"


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["zeros", "ones", "noise"])
def test_no_damaged_sector_of_the_index_changes_a_listing(filled: Registry, fill: str) -> None:
    chance = random.Random(fill)
    wrong = []
    for offset in sectors_of(filled.root / "index.sqlite"):
        data = {"zeros": bytes(SECTOR_BYTES), "ones": b"\xff" * SECTOR_BYTES}.get(fill) or chance.randbytes(
            SECTOR_BYTES
        )
        wrong += [] if lists_right_after(filled, offset, data) else [offset]
    assert wrong == []


@pytest.mark.parametrize("suffix", ["-journal", "-wal", "-shm"])
def test_files_that_sqlite_left_beside_the_index_change_no_listing(filled: Registry, suffix: str) -> None:
    before = filled.list(EVERYTHING)
    (filled.root / f"index.sqlite{suffix}").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(1000))
    assert filled.list(EVERYTHING) == before
