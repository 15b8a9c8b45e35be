"""Where the bytes of a tensor are: in memory, or in a file that stays open and must not change while it is used."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from conceptry.errors import InvalidFileError

CHUNK_BYTES: Final = 1 << 20


class Source(Protocol):
    """Bytes that are read when they are wanted, as often as they are wanted."""

    def __len__(self) -> int:
        """How many bytes there are."""

    def read(self) -> bytes | memoryview:
        """Returns all of them. Raises InvalidFileError if the file changed."""

    def iter_chunks(self) -> Iterator[bytes | memoryview]:
        """Returns all of them in pieces of at most CHUNK_BYTES. Raises InvalidFileError if the file changed."""


class OpenFile:
    """A file of which ranges are read; it is closed when nothing refers to it any more.

    A range is read by place and not through a memory map: a file that becomes shorter is an error and no signal.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._stat()

    def _stat(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

    def read(self, start: int, size: int) -> bytes:
        """Returns ``size`` bytes from ``start`` on. Raises InvalidFileError if the file changed since it was opened."""
        pieces, left = [], size
        while left:
            try:
                piece = os.pread(self._descriptor, left, start + size - left)
            except OSError as error:
                raise InvalidFileError(f"cannot read {self.name!r}: {error.strerror}") from error
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        if left or self._stat() != self._state:
            raise InvalidFileError(f"{self.name!r} changed while it was read", hint="try again")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@dataclass(frozen=True, slots=True)
class FileRange:
    """A Source: ``size`` bytes of ``file`` from ``start`` on."""

    file: OpenFile
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def read(self) -> bytes:
        """Returns all bytes of the range. Raises InvalidFileError if the file changed."""
        return self.file.read(self.start, self.size)

    def iter_chunks(self) -> Iterator[bytes]:
        """Returns the range in pieces. Raises InvalidFileError if the file changed."""
        for at in range(0, self.size, CHUNK_BYTES):
            yield self.file.read(self.start + at, min(CHUNK_BYTES, self.size - at))


@dataclass(frozen=True, slots=True)
class InMemory:
    """A Source over bytes that are there already."""

    data: bytes | memoryview

    def __len__(self) -> int:
        return len(self.data)

    def read(self) -> bytes | memoryview:
        """Returns the bytes."""
        return self.data

    def iter_chunks(self) -> Iterator[memoryview]:
        """Returns the bytes in pieces."""
        view = memoryview(self.data)
        for at in range(0, len(view), CHUNK_BYTES):
            yield view[at : at + CHUNK_BYTES]
