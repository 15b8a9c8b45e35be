"""Large blobs, which one thread writes and another hashes: complete or absent like small ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, StoreError
from conceptry.registry import blobs
from conceptry.registry.blobs import add_blob
from conceptry.registry.operations import FileOperations, use_operations
from conceptry.registry.paths import Layout
from tests.registry.folders import files_below

CHUNKS = [bytes([number]) * 70_000 for number in range(9)]
WHOLE = b"".join(CHUNKS)
DIGEST = Digest.of_bytes(WHOLE)


@pytest.fixture(params=[True, False], ids=["two threads", "one"])
def layout(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Give a store in which the blob counts as large, or not."""
    monkeypatch.setattr(blobs, "_LARGE_BYTES", len(WHOLE) + (not request.param))
    return Layout(tmp_path / "store")


def test_blob_has_all_bytes_in_order_and_every_one_is_counted(layout: Layout) -> None:
    counted: list[int] = []
    add_blob(layout, DIGEST, len(WHOLE), iter(CHUNKS), on_bytes=counted.append)
    assert layout.blob(DIGEST).read_bytes() == WHOLE
    assert counted == [len(chunk) for chunk in CHUNKS]
    assert len(files_below(layout.root)) == 1


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        (CHUNKS[:-1], "560000 bytes arrived, 630000 were declared"),
        ([*CHUNKS[1:], CHUNKS[0]], "the bytes have digest"),
        ([*CHUNKS, b"x", b"never read"], "630001 bytes arrived"),
    ],
)
def test_other_bytes_leave_nothing(layout: Layout, chunks: list[bytes], said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        add_blob(layout, DIGEST, len(WHOLE), chunks)
    assert not files_below(layout.root)


def test_source_that_breaks_off_and_a_disk_that_is_full_leave_nothing(layout: Layout) -> None:
    def break_off() -> Iterator[bytes]:
        yield from CHUNKS[:4]
        raise IntegrityError("broken off")

    class Full(FileOperations):
        left = 5

        def write(self, descriptor: int, data: bytes | memoryview) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(descriptor, data)

    with pytest.raises(IntegrityError, match="broken off"):
        add_blob(layout, DIGEST, len(WHOLE), break_off())
    with use_operations(Full()), pytest.raises(StoreError, match=r"(?i)no space left"):
        add_blob(layout, DIGEST, len(WHOLE), CHUNKS)
    assert not files_below(layout.root)
    add_blob(layout, DIGEST, len(WHOLE), CHUNKS)
    assert layout.blob(DIGEST).read_bytes() == WHOLE
