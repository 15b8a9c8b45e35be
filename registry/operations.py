"""The calls to the operating system that change or read files: the one place where this room makes any.

``registry/files.py`` and ``file_reading.py`` make what the rest of the room uses out of these; nothing else calls the
system itself, and ``tests/registry/test_operations.py`` holds the modules to that. So a test can put a double in their
place that fails at a chosen call, or that has the rules of another system or of a network share.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

try:
    import fcntl
except ImportError:  # Windows has its own locks, see _WindowsOperations
    fcntl = None  # type: ignore[assignment]

_BUSY: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_CLONE_REQUEST: Final = 0x40049409  # FICLONE of linux/fs.h
_LONG_PATH_CHARS: Final = 240
# Flags that a platform lacks mean nothing there.
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)

DatabaseMode = Literal["fixed", "rw", "rwc"]
"""A file that nobody changes any more, one to be changed, or one to be made where it is missing."""

# What is immutable is read without locks, and without what somebody may have left beside it.
_DATABASE_MODES: Final[dict[DatabaseMode, str]] = {
    "fixed": "mode=ro&immutable=1",
    "rw": "mode=rw",
    "rwc": "mode=rwc",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a system can do with files; a row of ``PLATFORMS``."""

    syncs_folders: bool
    """Whether a folder can be opened and its names be made to survive a loss of power."""

    new_name_by: Literal["link", "rename"]
    """What gives a file a name only if nothing has it: a second link, or a rename that refuses to replace."""

    has_owners: bool
    """Whether files belong to users, and modes say what others may do."""

    removes_read_only: bool
    """Whether a file without permission to write can be removed."""

    moves_open_files: bool
    """Whether a file can be renamed, replaced and removed while somebody has it open."""

    prefixes_long_paths: bool
    r"""Whether paths beyond 260 characters must begin with ``\\?\``."""


PLATFORMS: Final[dict[str, Capabilities]] = {
    "posix": Capabilities(
        syncs_folders=True,
        new_name_by="link",
        has_owners=True,
        removes_read_only=True,
        moves_open_files=True,
        prefixes_long_paths=False,
    ),
    "nt": Capabilities(
        syncs_folders=False,
        new_name_by="rename",
        has_owners=False,
        removes_read_only=False,
        moves_open_files=False,
        prefixes_long_paths=True,
    ),
}

# Every operation below, by what it does: whoever counts or fails them goes through these names.
CHANGING_OPERATIONS: Final = frozenset(
    {
        "create",
        "open_for_update",
        "write",
        "truncate",
        "sync",
        "sync_folder",
        "link",
        "rename",
        "rename_new",
        "unlink",
        "make_folder",
        "remove_folder",
        "change_mode",
        "clone",
        "make_symbolic_link",
        "lock",
        "connect",
    }
)
READING_OPERATIONS: Final = frozenset(
    {"open", "close", "read", "seek", "status", "status_of", "followed_status", "names"}
)


class FileOperations:
    """The operations of the system that this runs on. All raise OSError, ``connect`` raises sqlite3.Error."""

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        self.capabilities = capabilities or PLATFORMS[os.name]

    # --- open files --------------------------------------------------------------------------------------------

    def open(self, path: Path | str) -> int:
        """Returns a descriptor for reading; a symbolic link in the place of the file is refused."""
        return os.open(self._name(path), os.O_RDONLY | _NOFOLLOW | _NONBLOCK | _CLOEXEC)

    def create(self, path: Path) -> int:
        """Returns a descriptor for writing a file that must not exist yet; for this user only."""
        return os.open(self._name(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, 0o600)

    def open_for_update(self, path: Path) -> int:
        """Returns a descriptor for reading and writing a file, made where it is missing."""
        return os.open(self._name(path), os.O_RDWR | os.O_CREAT | _NOFOLLOW | _CLOEXEC, 0o600)

    def close(self, descriptor: int) -> None:
        """Closes an open file."""
        os.close(descriptor)

    def read(self, descriptor: int, count: int) -> bytes:
        """Returns up to ``count`` of the next bytes; none at the end."""
        return os.read(descriptor, count)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Writes some of ``data`` and returns how many bytes."""
        return os.write(descriptor, data)

    def seek(self, descriptor: int, offset: int) -> None:
        """Goes on at ``offset`` from the beginning."""
        os.lseek(descriptor, offset, os.SEEK_SET)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cuts an open file to a size."""
        os.ftruncate(descriptor, size_bytes)

    def sync(self, descriptor: int) -> None:
        """Waits until the bytes of an open file are on the disk itself; macOS needs more than fsync for that."""
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is None:
            os.fsync(descriptor)
        else:
            fcntl.fcntl(descriptor, full)

    def status_of(self, descriptor: int) -> os.stat_result:
        """Returns what the system says of an open file."""
        return os.fstat(descriptor)

    def lock(self, descriptor: int) -> bool:
        """Returns False if another process holds the lock of this file, else True; where there are no locks, True."""
        if fcntl is None:
            return _lock_on_windows(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _BUSY
        return True

    def clone(self, source: int, target: int) -> None:
        """Makes ``target`` share the blocks of ``source`` until one of them is changed."""
        if fcntl is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        fcntl.ioctl(target, _CLONE_REQUEST, source)

    # --- names -------------------------------------------------------------------------------------------------

    def status(self, path: Path | str) -> os.stat_result:
        """Returns what the system says of a name, links not followed."""
        return os.lstat(self._name(path))

    def followed_status(self, path: Path) -> os.stat_result:
        """Returns what the system says of what a name leads to."""
        return os.stat(self._name(path))

    def names(self, folder: Path | str) -> list[str]:
        """Returns the names in a folder."""
        return os.listdir(self._name(folder))

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name that nothing had."""
        os.link(self._name(source), self._name(target), follow_symlinks=False)

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file another name, replacing what had it."""
        os.replace(self._name(source), self._name(target))

    def rename_new(self, source: Path, target: Path) -> None:
        """Gives a file another name that nothing had; only where ``new_name_by`` says so."""
        os.rename(self._name(source), self._name(target))

    def unlink(self, path: Path) -> None:
        """Takes a name away."""
        if not self.capabilities.removes_read_only:
            os.chmod(self._name(path), 0o600)
        os.unlink(self._name(path))

    def make_folder(self, path: Path, mode: int) -> None:
        """Makes a folder."""
        os.mkdir(self._name(path), mode)

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        os.rmdir(self._name(path))

    def change_mode(self, path: Path, mode: int) -> None:
        """Sets who may do what; where files have no owners, only whether it may be written."""
        os.chmod(self._name(path), mode)

    def make_symbolic_link(self, target: Path, path: Path) -> None:
        """Makes a symbolic link to ``target``."""
        os.symlink(self._name(target), self._name(path))

    def sync_folder(self, folder: Path) -> None:
        """Makes the names in a folder survive a loss of power, where the system can do that."""
        if not self.capabilities.syncs_folders:
            return
        descriptor = os.open(folder, os.O_RDONLY | _DIRECTORY | _CLOEXEC)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    # --- SQLite ------------------------------------------------------------------------------------------------

    def connect(self, path: Path, mode: DatabaseMode, *, timeout_seconds: float) -> sqlite3.Connection:
        """Returns an SQLite file, opened as the mode says."""
        uri = f"{path.as_uri()}?{_DATABASE_MODES[mode]}"
        return sqlite3.connect(uri, uri=True, timeout=timeout_seconds)

    def _name(self, path: Path | str) -> str:
        text = os.fspath(path)
        long = self.capabilities.prefixes_long_paths and len(text) > _LONG_PATH_CHARS
        if not long or os.name != "nt" or text.startswith("\\\\"):
            return text
        return f"\\\\?\\{text}"


class _Current:
    """The operations that are in use; one for the process, since threads work on one store."""

    def __init__(self) -> None:
        self.operations: Any = None


_CURRENT: Final = _Current()


def current_operations() -> FileOperations:
    """Returns the operations in use: the system's, or what a test put in their place."""
    if _CURRENT.operations is None:
        _CURRENT.operations = FileOperations()
    operations: FileOperations = _CURRENT.operations
    return operations


@contextmanager
def use_operations(operations: FileOperations) -> Iterator[FileOperations]:
    """Puts other operations in the place of the system's during the block; for tests."""
    before = current_operations()
    _CURRENT.operations = operations
    try:
        yield operations
    finally:
        _CURRENT.operations = before


def _lock_on_windows(descriptor: int) -> bool:
    try:
        import msvcrt
    except ImportError:  # no locks at all: they only save work
        return True
    locking: Any = msvcrt
    os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # a byte beyond the note, which stays readable
    try:
        locking.locking(descriptor, locking.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in _BUSY
    return True


@contextmanager
def make_scratch() -> Iterator[str]:
    """Yields a new empty folder outside the store, which is gone afterwards with all that was put into it."""
    from tempfile import TemporaryDirectory  # few commands need it, and a listing starts in milliseconds

    with TemporaryDirectory(prefix="conceptry-") as folder:
        yield folder
