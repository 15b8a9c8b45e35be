"""Files that are either complete or absent.

A write goes to a private temporary name, is hashed on the way, reaches the disk, and only then gets its real name,
without ever replacing a file that must not change. What the operating system refuses becomes a StoreError. The calls
to the system itself are those of ``registry/operations.py``.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from conceptry.digests import Digest, new_hasher
from conceptry.errors import StoreError
from conceptry.registry.operations import DatabaseMode, FileOperations, current_operations

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
        raise _explain(doing, path, error) from error


def _explain(doing: str, path: Path | str, error: OSError) -> StoreError:
    reason = (error.strerror or str(error)).lower()
    hint = _HINTS.get(error.errno or 0, "check the folder, then run the same command again")
    return StoreError(f"cannot {doing} {str(path)!r}: {reason}", hint=hint)


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` survive a loss of power. Raises OSError."""
    current_operations().sync_folder(folder)


def ensure_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Makes ``folder`` and its parents where they are missing, each one on disk before the next. Raises StoreError."""
    if is_folder(folder):
        return
    ensure_folder(folder.parent, mode=mode)
    with explain_os_errors("make the folder", folder):
        try:
            current_operations().make_folder(folder, mode)
        except FileExistsError:
            if not is_folder(folder):
                raise
        sync_folder(folder.parent)


# --- looking -------------------------------------------------------------------------------------------------------


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


# --- writing -------------------------------------------------------------------------------------------------------


class NewFile:
    """A file that is being written under a private name and hashed on the way."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size_bytes = 0
        self._descriptor: int | None = descriptor
        self._hasher = new_hasher()

    @property
    def digest(self) -> Digest:
        """The digest of what was written so far."""
        return Digest(self._hasher.hexdigest())

    @property
    def descriptor(self) -> int:
        """The open file. Raises StoreError once it has its name."""
        if self._descriptor is None:
            raise StoreError(f"{str(self.path)!r} is written already")
        return self._descriptor

    def write(self, data: bytes | memoryview) -> None:
        """Appends ``data``. Raises OSError."""
        self._hasher.update(data)
        self.write_unhashed(data)

    def write_unhashed(self, data: bytes | memoryview) -> None:
        """Appends ``data`` whose digest nobody will ask for: ``digest`` says nothing from then on. Raises OSError."""
        rest = memoryview(data)
        self.size_bytes += len(rest)
        while rest:
            count = current_operations().write(self.descriptor, rest)
            if count <= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[count:]

    def close(self) -> None:
        """Closes the file, once. Raises OSError: what a disk refused may show only here."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            current_operations().close(descriptor)

    def commit(
        self, target: Path, *, mode: int, replace: bool = False, named_by_contents: bool = False
    ) -> bool:
        """Returns True once the file is on disk as ``target``, False if that exists already and may not be replaced.

        The file is closed before it gets its name, which not every system gives to an open one. Who is
        ``named_by_contents`` may replace what took the name in the last moment, which has the same bytes.

        Raises:
            StoreError: if the disk refuses; then ``target`` is as it was.
        """
        ensure_folder(target.parent)
        with explain_os_errors("write", target):
            if self._descriptor is not None:
                current_operations().change_mode(self.path, mode)
                current_operations().sync(self.descriptor)
                self.close()
            if replace:
                replace_name(self.path, target)
            elif not _name_new(self.path, target, named_by_contents=named_by_contents):
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
        file = NewFile(path, current_operations().create(path))
    try:
        with explain_os_errors("write to", path.parent):
            yield file
    finally:
        with suppress(OSError):  # what counts was closed by commit
            file.close()
        with suppress(OSError):  # a name that stays is gone with the next gc
            current_operations().unlink(path)


def write_file(
    target: Path,
    data: bytes,
    *,
    temporary: Path,
    mode: int = STATE_MODE,
    replace: bool = False,
    named_by_contents: bool = False,
) -> bool:
    """Returns True once ``target`` holds ``data``; False if it exists and ``replace`` is not set. Raises StoreError."""
    with write_new_file(temporary) as file:
        file.write(data)
        return file.commit(target, mode=mode, replace=replace, named_by_contents=named_by_contents)


def replace_name(source: Path, target: Path) -> None:
    """Gives a closed file another name, replacing what had it. Raises OSError."""
    current_operations().rename(source, target)


def give_new_name(source: Path, target: Path) -> bool:
    """Returns True once a closed file, whose bytes ``target`` is named by, is called so too, or only so.

    False if something is called so already.

    Raises:
        StoreError: if the disk refuses.
    """
    ensure_folder(target.parent)
    with explain_os_errors("write", target):
        if not _name_new(source, target, named_by_contents=True):
            return False
        sync_folder(target.parent)
    return True


def move_file(source: Path, target: Path) -> bool:
    """Returns True once ``source`` is called ``target``, which it replaces; False if it is not there.

    Raises:
        StoreError: if the disk refuses.
    """
    ensure_folder(target.parent)
    with explain_os_errors("move", source):
        try:
            replace_name(source, target)
        except FileNotFoundError:
            return False
        sync_folder(target.parent)
        sync_folder(source.parent)
    return True


def remove_file(path: Path) -> bool:
    """Returns True once ``path`` is gone, False if it was not there. Raises StoreError."""
    with explain_os_errors("remove", path):
        try:
            current_operations().unlink(path)
        except FileNotFoundError:
            return False
        sync_folder(path.parent)
        return True


def remove_empty_folder(path: Path) -> bool:
    """Returns whether ``path`` was an empty folder, which is gone now."""
    try:
        current_operations().remove_folder(path)
    except OSError:
        return False
    return True


def change_mode(path: Path, mode: int) -> None:
    """Sets who may do what with ``path``. Raises StoreError."""
    with explain_os_errors("change the permissions of", path):
        current_operations().change_mode(path, mode)


@contextmanager
def open_for_update(path: Path) -> Iterator[int]:
    """Yields the descriptor of a file that may be read and written, made where it is missing. Raises StoreError."""
    ensure_folder(path.parent)
    with explain_os_errors("open", path):
        descriptor = current_operations().open_for_update(path)
    try:
        yield descriptor
    finally:
        with suppress(
            OSError
        ):  # a lock's note is for messages: it must not turn what was done into a failure
            current_operations().close(descriptor)


def connect_database(path: Path, mode: DatabaseMode, *, timeout_seconds: float) -> sqlite3.Connection:
    """Returns an SQLite file. Raises sqlite3.Error."""
    return current_operations().connect(path, mode, timeout_seconds=timeout_seconds)


# --- reading -------------------------------------------------------------------------------------------------------


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
        raise _explain("read", path, error) from error


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
        raise _explain("read", folder, error) from error


def _name_new(source: Path, target: Path, *, named_by_contents: bool) -> bool:
    operations = current_operations()
    try:
        if operations.capabilities.new_name_by == "rename":
            operations.rename_new(source, target)
        else:
            operations.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _move_new(source, target) if named_by_contents else _copy_new(source, target)
    return True


def _move_new(source: Path, target: Path) -> bool:
    """For file systems without hard links; nobody ever sees half of it."""
    if look_at(target) is not None:
        return False
    replace_name(source, target)
    return True


def _copy_new(source: Path, target: Path) -> bool:
    """For file systems without hard links; a file cut short by a crash here is found by its digest or its form."""
    operations = current_operations()
    try:
        file = NewFile(target, operations.create(target))
    except FileExistsError:
        return False
    try:
        for chunk in read_chunks(source):
            file.write(chunk)
        operations.change_mode(target, stat.S_IMODE(operations.status(source).st_mode))
        operations.sync(file.descriptor)
        file.close()
    except BaseException:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            operations.unlink(target)
        raise
    return True
