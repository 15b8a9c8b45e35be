"""Files that are either complete or absent.

A write goes to a private temporary name, is hashed on the way, reaches the disk, and only then gets its real name,
without ever replacing a file that must not change. What the operating system refuses becomes a StoreError.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conceptry.digests import Digest, new_hasher
from conceptry.errors import StoreError

CHUNK_BYTES: Final = 1 << 20
BLOB_MODE: Final = 0o444
STATE_MODE: Final = 0o644

_HINTS: Final[dict[int, str]] = {
    errno.ENOSPC: "free some space on that disk, then run the same command again",
    errno.EDQUOT: "your quota is used up: free some space, then run the same command again",
    errno.EFBIG: "files of this size are not allowed there: raise the limit (ulimit -f) or use another disk",
    errno.EACCES: "give yourself permission, or use another folder (CONCEPTRY_HOME names the store)",
    errno.EPERM: "give yourself permission, or use another folder (CONCEPTRY_HOME names the store)",
    errno.EROFS: "it can be read but not changed: use another folder (CONCEPTRY_HOME names the store)",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.EIO: "the disk reports an error: check it, then run concepts verify",
}
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@contextmanager
def explain_os_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a StoreError with the path and the next step."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = _HINTS.get(error.errno or 0, "check the folder, then run the same command again")
        raise StoreError(f"cannot {doing} {str(path)!r}: {reason}", hint=hint) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ensure_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Makes ``folder`` and its parents where they are missing, each one on disk before the next. Raises StoreError."""
    if folder.is_dir():
        return
    ensure_folder(folder.parent, mode=mode)
    with explain_os_errors("make the folder", folder):
        folder.mkdir(mode=mode, exist_ok=True)
        sync_folder(folder.parent)


class NewFile:
    """A file that is being written under a private name and hashed on the way."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size_bytes = 0
        self._descriptor = descriptor
        self._hasher = new_hasher()

    @property
    def digest(self) -> Digest:
        """The digest of what was written so far."""
        return Digest(self._hasher.hexdigest())

    def write(self, data: bytes | memoryview) -> None:
        """Appends ``data``. Raises OSError."""
        rest = memoryview(data)
        self._hasher.update(rest)
        self.size_bytes += len(rest)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def commit(self, target: Path, *, mode: int, replace: bool = False) -> bool:
        """Returns True once the file is on disk as ``target``, False if that exists already and may not be replaced.

        Raises:
            StoreError: if the disk refuses; then ``target`` is as it was.
        """
        ensure_folder(target.parent)
        with explain_os_errors("write", target):
            os.fchmod(self._descriptor, mode)
            os.fsync(self._descriptor)
            if replace:
                self.path.replace(target)
            elif not _link_new(self.path, target):
                return False
            sync_folder(target.parent)
        return True


@contextmanager
def write_new_file(path: Path) -> Iterator[NewFile]:
    """Yields a file to write under the private name ``path``, which is gone afterwards, whatever happens.

    Raises:
        StoreError: if the disk refuses.
    """
    ensure_folder(path.parent)
    with explain_os_errors("write to", path.parent):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    try:
        with explain_os_errors("write to", path.parent):
            yield NewFile(path, descriptor)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def write_file(
    target: Path, data: bytes, *, temporary: Path, mode: int = STATE_MODE, replace: bool = False
) -> bool:
    """Returns True once ``target`` holds ``data``; False if it exists and ``replace`` is not set. Raises StoreError."""
    with write_new_file(temporary) as file:
        file.write(data)
        return file.commit(target, mode=mode, replace=replace)


def read_small_file(path: Path, limit_bytes: int) -> bytes | None:
    """Returns the bytes of ``path``, None if there is no such file; at most one byte more than the limit is read.

    Raises:
        StoreError: if the file cannot be read.
    """
    with explain_os_errors("read", path):
        try:
            with open_regular(path) as file:
                return file.read(limit_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None


class OpenFile:
    """An open file, read in full pieces."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def read(self, count: int) -> bytes:
        """Returns the next ``count`` bytes, fewer only at the end."""
        pieces: list[bytes] = []
        while count > 0 and (piece := os.read(self.descriptor, min(count, CHUNK_BYTES))):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def iter_chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yields the bytes from ``offset`` on."""
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        while piece := os.read(self.descriptor, CHUNK_BYTES):
            yield piece


@contextmanager
def open_regular(path: Path) -> Iterator[OpenFile]:
    """Yields ``path`` opened for reading. Raises OSError, also for anything but a regular file, such as a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        yield OpenFile(descriptor)
    finally:
        os.close(descriptor)


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


def names_in(folder: Path) -> list[str]:
    """Returns the names in ``folder`` in order, none if it is absent. Raises StoreError."""
    with explain_os_errors("read", folder):
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def _link_new(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _copy_new(source, target)
    return True


def _copy_new(source: Path, target: Path) -> bool:
    """For file systems without hard links; a file cut short by a crash here is found by its digest or its form."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(read_chunks(source))
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), source.stat().st_mode & 0o777)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True
