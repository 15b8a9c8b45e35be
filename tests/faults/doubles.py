"""Systems with other rules than this one: Windows, and a share on a network."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, Final

from conceptry.registry.operations import PLATFORMS, DatabaseMode, FileOperations

MOST_CHARS: Final = 260
MOST_PREFIXED_CHARS: Final = 32_767
MOST_NAME_CHARS: Final = 255
RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789")}
)
FORBIDDEN: Final = frozenset('<>:"|?*\\')
FOREIGN: Final = Path("/")
WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES: Final = frozenset(
    {
        "open",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.truncate",
    }
    | {"os.utime"}
)
"""What Python announces of changes to files."""


class WindowsRules(FileOperations):
    """What Windows forbids.

    No name for or from an open file, no removal of one, no second names, no symbolic links, no folder synced, no
    two names that differ by case only, no reserved or ill-formed names, no path beyond 260 characters unless
    ``FileOperations`` gives it a prefix there, and then none beyond 32,767, nor a name beyond 255. Paths are measured
    from ``root``, since tests lie deep.
    """

    def __init__(self, root: Path = FOREIGN) -> None:
        super().__init__(PLATFORMS["nt"])
        self.opened: dict[int, str] = {}
        self._root = root
        self._spelled: dict[str, str] = {}

    def open(self, path: Path | str) -> int:
        """Opens for reading."""
        return self._remember(super().open(path), path)

    def create(self, path: Path) -> int:
        """Opens a new file."""
        self._refuse_name(path)
        return self._remember(super().create(path), path)

    def open_for_update(self, path: Path) -> int:
        """Opens for both."""
        self._refuse_name(path)
        return self._remember(super().open_for_update(path), path)

    def close(self, descriptor: int) -> None:
        """Closes."""
        self.opened.pop(descriptor, None)
        super().close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces, if neither is open."""
        self._refuse_open(source, target)
        self._refuse_name(target)
        super().rename(source, target)

    def rename_new(self, source: Path, target: Path) -> None:
        """Renames, if nothing has the name."""
        self._refuse_open(source, target)
        self._refuse_name(target)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """Removes what is not open."""
        self._refuse_open(path)
        super().unlink(path)
        self._spelled.pop(str(path).casefold(), None)

    def make_folder(self, path: Path, mode: int) -> None:
        """Makes a folder; modes mean nothing."""
        self._refuse_name(path)
        super().make_folder(path, 0o777)

    def link(self, source: Path, target: Path) -> None:
        """Never needed there."""
        raise OSError(errno.ENOTSUP, "a second name for a file")

    def make_symbolic_link(self, target: Path, path: Path) -> None:
        """Not without a privilege."""
        raise OSError(errno.EPERM, "a required privilege is not held by the client")

    def sync_folder(self, folder: Path) -> None:
        """Nothing: a folder cannot be opened there."""
        assert not self.capabilities.syncs_folders

    def _remember(self, descriptor: int, path: Path | str) -> int:
        self.opened[descriptor] = str(path).casefold()
        return descriptor

    def _refuse_open(self, *paths: Path) -> None:
        opened = set(self.opened.values())
        if any(str(path).casefold() in opened for path in paths):
            raise PermissionError(errno.EACCES, "used by another process")

    def _refuse_name(self, path: Path) -> None:
        try:
            inner = path.relative_to(self._root)
        except ValueError:
            return
        for part in inner.parts:
            stem = PureWindowsPath(part).name.partition(".")[0].casefold()
            if stem in RESERVED or part[-1] in ". " or FORBIDDEN & set(part):
                raise OSError(errno.EINVAL, f"the system refuses the name {part!r}")
        most_chars = MOST_PREFIXED_CHARS if self.capabilities.prefixes_long_paths else MOST_CHARS
        too_long = any(len(part) > MOST_NAME_CHARS for part in inner.parts)
        if too_long or len("C:\\Users\\somebody\\AppData\\Local\\conceptry\\") + len(str(inner)) > most_chars:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        spelled = self._spelled.setdefault(str(path).casefold(), str(path))
        if spelled != str(path) and os.path.lexists(spelled):
            raise FileExistsError(errno.EEXIST, f"{spelled!r} differs by case only")


class NetworkShare(FileOperations):
    """A share with close-to-open caching, as one machine sees it: locks always succeed, and what was seen stays so.

    Names of a folder, sizes and times of a file, and that there is no such file may be ``CACHE_SECONDS`` old, unless
    this process changed them itself (tests that do it by hand are part of it). A file that is found is opened as it is
    then, and what has it open keeps its bytes when another takes its name. There are no second names.
    """

    CACHE_SECONDS: ClassVar = 0.05
    _at_work: ClassVar = threading.local()
    """Says of each thread whether it is one of these machines that changes something, and not a test."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, list[str]]] = {}
        self._looked: dict[tuple[str, str], tuple[float, os.stat_result | None]] = {}
        self._written: dict[int, Path] = {}
        self._changes = 0
        sys.addaudithook(self._notice)

    def lock(self, descriptor: int) -> bool:
        """Says yes to everybody."""
        return True

    def names(self, folder: Path | str) -> list[str]:
        """Returns the names as they were seen last."""
        text, now = str(folder), time.monotonic()
        known = self._seen.get(text)
        if known is None or now - known[0] > self.CACHE_SECONDS:
            changes = self._changes
            known = now, super().names(folder)
            if changes == self._changes:
                self._seen[text] = known
        return list(known[1])

    def status(self, path: Path | str) -> os.stat_result:
        """Returns what was seen last, also that nothing was there."""
        return self._look("name", path, super().status)

    def followed_status(self, path: Path) -> os.stat_result:
        """Returns what was seen last, also that nothing was there."""
        return self._look("target", path, super().followed_status)

    def open(self, path: Path | str) -> int:
        """Opens what is there now, unless it was not there a moment ago."""
        known = self._looked.get(("name", str(path)))
        if known is not None and known[1] is None and time.monotonic() - known[0] <= self.CACHE_SECONDS:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return super().open(path)

    def link(self, source: Path, target: Path) -> None:
        """Refuses, as many shares do."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def create(self, path: Path) -> int:
        """Opens a new file; whether it is new, the server says."""
        with self._changing(path):
            descriptor = super().create(path)
        self._written[descriptor] = path
        return descriptor

    def open_for_update(self, path: Path) -> int:
        """Opens for both."""
        with self._changing(path):
            descriptor = super().open_for_update(path)
        self._written[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Writes."""
        self._forget(*filter(None, [self._written.get(descriptor)]))
        return super().write(descriptor, data)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cuts."""
        with self._changing(*filter(None, [self._written.get(descriptor)])):
            super().truncate(descriptor, size_bytes)

    def close(self, descriptor: int) -> None:
        """Closes; from now on others see what was written."""
        self._forget(*filter(None, [self._written.pop(descriptor, None)]))
        super().close(descriptor)

    def change_mode(self, path: Path, mode: int) -> None:
        """Changes a mode."""
        with self._changing(path):
            super().change_mode(path, mode)

    def rename(self, source: Path, target: Path) -> None:
        """Renames."""
        with self._changing(source, target):
            super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """Removes."""
        with self._changing(path):
            super().unlink(path)

    def make_folder(self, path: Path, mode: int) -> None:
        """Makes a folder."""
        with self._changing(path):
            super().make_folder(path, mode)

    def remove_folder(self, path: Path) -> None:
        """Removes a folder."""
        with self._changing(path, path / "x"):
            super().remove_folder(path)

    def make_symbolic_link(self, target: Path, path: Path) -> None:
        """Makes a link."""
        with self._changing(path):
            super().make_symbolic_link(target, path)

    def connect(self, path: Path, mode: DatabaseMode, *, timeout_seconds: float) -> sqlite3.Connection:
        """Opens an SQLite file, which may be made by that."""
        with self._changing(path):
            return super().connect(path, mode, timeout_seconds=timeout_seconds)

    def _look(self, way: str, path: Path | str, ask: Callable[[Any], os.stat_result]) -> os.stat_result:
        key, now = (way, str(path)), time.monotonic()
        known = self._looked.get(key)
        if known is None or now - known[0] > self.CACHE_SECONDS:
            changes = self._changes
            try:
                known = now, ask(path)
            except FileNotFoundError:
                known = now, None
            if changes == self._changes:  # what another thread changed meanwhile, this machine knows
                self._looked[key] = known
        if known[1] is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return known[1]

    @contextmanager
    def _changing(self, *paths: Path) -> Iterator[None]:
        self._at_work.is_ours = True
        try:
            yield
        finally:
            self._at_work.is_ours = False
            self._forget(*paths)

    def _forget(self, *paths: Path) -> None:
        self._changes += 1
        for path in paths:
            self._seen.pop(str(path.parent), None)
            for known in (path, path.parent):
                for way in ("name", "target"):
                    self._looked.pop((way, str(known)), None)

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What a test does to files by hand, this machine knows at once; what other processes do it does not."""
        if event not in CHANGES or getattr(self._at_work, "is_ours", False):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        self._changes += 1
        self._seen.clear()
        self._looked.clear()
