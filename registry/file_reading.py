"""What is in files and folders, read as it is now; what is absent is told from what cannot be read."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conceptry.digests import Digest, new_hasher
from conceptry.registry.operations import FileOperations, current_operations
from conceptry.registry.os_errors import explain_os_error

CHUNK_BYTES: Final = 1 << 20

_PAUSE_SECONDS: Final = 0.01


def look_at(path: Path | str) -> os.stat_result | None:
    """Returns what the system says of ``path``, links not followed; None if nothing is there or it cannot be seen."""
    try:
        return current_operations().status(path)
    except (OSError, ValueError):
        return None


def is_file(path: Path) -> bool:
    """Returns whether ``path`` is a regular file and no link to one."""
    status = look_at(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """Returns whether ``path`` is a folder, or a link to one."""
    try:
        current_operations().names(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def read_small_file(path: Path | str, limit_bytes: int) -> bytes | None:
    """Returns the bytes of ``path``, None if there is no such file; at most one byte more than the limit is read.

    Raises:
        StoreError: if the file cannot be read.
    """
    operations = current_operations()
    try:  # no context managers: an index is made of thousands of small files
        descriptor = operations.open(path)
        try:
            _refuse_irregular(operations.status_of(descriptor))
            return _read_pieces(operations, descriptor, limit_bytes + 1)
        finally:
            operations.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise explain_os_error("read", path, error) from error


def read_once_whole(
    path: Path, limit_bytes: int, *, is_whole: Callable[[bytes], bool], patience_seconds: float
) -> bytes | None:
    """Returns the bytes of a small file, which somebody may be writing at this moment; None if there is none.

    Where files have no second names, a new file is called so before it is whole, and may be written to as long. The
    bytes are not whole if nobody finished them in ``patience_seconds``, or nobody can: a crash cut them short.

    Raises:
        StoreError: if the file cannot be read.
    """
    deadline = time.monotonic() + patience_seconds
    data = read_small_file(path, limit_bytes)
    is_over = False
    while data is not None and not is_whole(data) and not is_over:
        is_over = not _is_writable(path) or time.monotonic() > deadline
        if not is_over:
            time.sleep(_PAUSE_SECONDS)
        data = read_small_file(path, limit_bytes)  # once more when it is over: it may just have been finished
    return data


def _is_writable(path: Path) -> bool:
    status = look_at(path)
    return status is not None and bool(status.st_mode & stat.S_IWUSR)


def _read_pieces(operations: FileOperations, descriptor: int, count: int) -> bytes:
    pieces: list[bytes] = []
    while count > 0 and (piece := operations.read(descriptor, min(count, CHUNK_BYTES))):
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class OpenFile:
    """An open file, read in full pieces."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, count: int) -> bytes:
        """Returns the next ``count`` bytes, fewer only at the end."""
        return _read_pieces(current_operations(), self.descriptor, count)

    def iter_chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yields the bytes from ``offset`` on."""
        operations = current_operations()
        operations.seek(self.descriptor, offset)
        while piece := operations.read(self.descriptor, CHUNK_BYTES):
            yield piece


@contextmanager
def open_regular(path: Path) -> Iterator[OpenFile]:
    """Yields ``path`` opened for reading. Raises OSError, also for anything but a regular file, such as a link."""
    operations = current_operations()
    descriptor = operations.open(path)
    try:
        _refuse_irregular(operations.status_of(descriptor))
        yield OpenFile(descriptor)
    finally:
        operations.close(descriptor)


def _refuse_irregular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file")


def read_chunks(path: Path, offset: int = 0) -> Iterator[bytes]:
    """Yields the bytes of ``path`` from ``offset`` on. Raises OSError."""
    with open_regular(path) as file:
        yield from file.iter_chunks(offset)


def digest_file(path: Path) -> tuple[Digest, int]:
    """Returns the digest and size of the bytes of ``path``. Raises OSError."""
    hasher, size = new_hasher(), 0
    for chunk in read_chunks(path):
        hasher.update(chunk)
        size += len(chunk)
    return Digest(hasher.hexdigest()), size


def names_in(folder: Path | str) -> list[str]:
    """Returns the names in ``folder`` in order, none if it is absent. Raises StoreError."""
    try:
        return sorted(current_operations().names(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise explain_os_error("read", folder, error) from error
