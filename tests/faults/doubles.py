"""Systems with other rules than this one: Windows, and a share on a network."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path, PureWindowsPath
from typing import Final

from conceptry.registry.operations import PLATFORMS, FileOperations

MOST_CHARS: Final = 260
RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789")}
)
FORBIDDEN: Final = frozenset('<>:"|?*\\')
FOREIGN: Final = Path("/")


class WindowsRules(FileOperations):
    """What Windows forbids.

    No name for or from an open file, no removal of one, no second names, no symbolic links, no folder synced, no
    two names that differ by case only, no reserved or ill-formed names, no path beyond 260 characters (without the
    prefix that ``FileOperations`` gives it there). Paths are measured from ``root``, since tests lie deep.
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
        if len("C:\\Users\\somebody\\AppData\\Local\\conceptry\\") + len(str(inner)) > MOST_CHARS:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        spelled = self._spelled.setdefault(str(path).casefold(), str(path))
        if spelled != str(path) and os.path.lexists(spelled):
            raise FileExistsError(errno.EEXIST, f"{spelled!r} differs by case only")


class NetworkShare(FileOperations):
    """A share with close-to-open caching: locks always succeed, and what was seen of a folder stays so for a while.

    Bytes of a file are those of the moment when it was opened; names and sizes may be ``CACHE_SECONDS`` old, unless
    this process changed the folder itself. There are no second names.
    """

    CACHE_SECONDS: Final = 0.05

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, list[str]]] = {}

    def lock(self, descriptor: int) -> bool:
        """Says yes to everybody."""
        return True

    def names(self, folder: Path | str) -> list[str]:
        """Returns the names as they were seen last."""
        text, now = str(folder), time.monotonic()
        known = self._seen.get(text)
        if known is None or now - known[0] > self.CACHE_SECONDS:
            known = now, super().names(folder)
            self._seen[text] = known
        return list(known[1])

    def link(self, source: Path, target: Path) -> None:
        """Refuses, as many shares do."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def create(self, path: Path) -> int:
        """Opens a new file."""
        self._forget(path)
        return super().create(path)

    def open_for_update(self, path: Path) -> int:
        """Opens for both."""
        self._forget(path)
        return super().open_for_update(path)

    def rename(self, source: Path, target: Path) -> None:
        """Renames."""
        self._forget(source, target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        """Removes."""
        self._forget(path)
        super().unlink(path)

    def make_folder(self, path: Path, mode: int) -> None:
        """Makes a folder."""
        self._forget(path)
        super().make_folder(path, mode)

    def remove_folder(self, path: Path) -> None:
        """Removes a folder."""
        self._forget(path, path / "x")
        super().remove_folder(path)

    def _forget(self, *paths: Path) -> None:
        for path in paths:
            self._seen.pop(str(path.parent), None)
