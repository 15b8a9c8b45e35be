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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from conceptry.digests import Digest, new_hasher
from conceptry.errors import StoreError
from conceptry.registry.file_reading import digest_file, is_folder, look_at, read_chunks
from conceptry.registry.operations import DatabaseMode, current_operations
from conceptry.registry.os_errors import explain_os_errors

BLOB_MODE: Final = 0o444
STATE_MODE: Final = 0o644

_PAUSES_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


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
        """Appends ``data`` that others hash, if anybody: ``digest`` says nothing from then on. Raises OSError."""
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
    _insist(partial(current_operations().rename, source, target))


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
            _insist(partial(current_operations().unlink, path))
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


def _insist(change: Callable[[], None]) -> None:
    """Does it, for a moment again and again where others keep a file from being moved only by reading it."""
    for seconds in () if current_operations().capabilities.moves_open_files else _PAUSES_SECONDS:
        try:
            return change()
        except PermissionError:
            time.sleep(seconds)
    return change()


def _name_new(source: Path, target: Path, *, named_by_contents: bool) -> bool:
    operations = current_operations()
    try:
        if operations.capabilities.new_name_by == "rename":
            _insist(partial(operations.rename_new, source, target))
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
    """For file systems without hard links; a file cut short by a crash here is found by its digest or its form.

    Who finds it unfinished may take it for such a one and put another in its place: then it is not new.
    """
    operations = current_operations()
    try:
        file = NewFile(target, operations.create(target))
    except FileExistsError:
        return False
    own = operations.status_of(file.descriptor)
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
            if os.path.samestat(operations.status(target), own):
                operations.unlink(target)
        raise
    try:
        return digest_file(target)[0] == file.digest
    except FileNotFoundError:
        return False
