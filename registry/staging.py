"""Private folders in the store's file system: what is written there becomes a blob by a change of its name."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conceptry.errors import StoreError
from conceptry.registry.file_reading import look_at, names_in
from conceptry.registry.files import ensure_folder, remove_file
from conceptry.registry.operations import current_operations
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import locate_entry
from conceptry.registry.store import Store

_FOLDER_MODE: Final = 0o700


@contextmanager
def stage_folder(store: Store) -> Iterator[Path]:
    """Gives a new folder for this user only, which is gone afterwards with all that is left in it.

    Raises:
        StoreError: if the store cannot be written.
    """
    store.prepare_for_writing()
    folder = store.layout.temporary()
    ensure_folder(folder, mode=_FOLDER_MODE)
    try:
        yield folder
    finally:
        _discard(folder)


def _discard(path: Path) -> None:
    """Removes a file, or a folder and all in it, as far as that goes: what stays is gone with the next gc.

    Nothing waits for the disk, which may be full: private names need not be gone for good after a loss of power.
    """
    status = look_at(path)
    if status is None or not stat.S_ISDIR(status.st_mode):
        with contextlib.suppress(OSError):
            current_operations().unlink(path)
        return
    with contextlib.suppress(StoreError):
        for name in names_in(path):
            _discard(locate_entry(path, name))
    with contextlib.suppress(OSError):
        current_operations().remove_folder(path)


def remove_tree(path: Path) -> int:
    """Returns how many files were removed: ``path``, or all that a folder of this name holds, and the folder.

    Links are removed and never followed. Raises StoreError.
    """
    status = look_at(path)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return int(remove_file(path))
    count = sum(remove_tree(locate_entry(path, name)) for name in names_in(path))
    with explain_os_errors("remove", path):
        current_operations().remove_folder(path)
    return count


def weigh_tree(path: Path) -> int:
    """Returns the bytes of a file, or of all that lie in a folder. Raises StoreError."""
    status = look_at(path)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return 0 if status is None else status.st_size
    return sum(weigh_tree(locate_entry(path, name)) for name in names_in(path))
