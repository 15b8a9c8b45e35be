"""The store on this machine: what it is, whether it may be used, and what happens around a change of references."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.errors import StoreError
from conceptry.registry.file_reading import is_file, is_folder, look_at, names_in, read_small_file
from conceptry.registry.files import change_mode, ensure_folder, write_file
from conceptry.registry.generations import Change, begin_change
from conceptry.registry.locks import hold_lock
from conceptry.registry.operations import current_operations
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout, choose_home

FORMAT: Final = 1
_FOLDER_MODE: Final = 0o700
_LIMIT_BYTES: Final = 4096
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store. Opening makes nothing; the folders appear with the first write."""

    layout: Layout

    @property
    def root(self) -> Path:
        """The folder of the store."""
        return self.layout.root

    @property
    def exists(self) -> bool:
        """Whether anything was ever written here."""
        return is_file(self.layout.marker)

    @property
    def is_shared(self) -> bool:
        """Whether its owner lets other users write here. Raises StoreError."""
        marker = _read_marker(self.layout)
        return marker is not None and marker.get("shared") is True

    def prepare_for_writing(self) -> None:
        """Makes the folder (for this user only) and its marker where they are missing. Raises StoreError."""
        if self.exists:
            return
        ensure_folder(self.root.parent)
        ensure_folder(self.root, mode=_FOLDER_MODE)
        if _is_own(self.root) and not names_in(self.root):
            change_mode(self.root, _FOLDER_MODE)
        _check_owner(self.root, shared=False)
        document = json.dumps({"format": FORMAT, "program": "conceptry"}, sort_keys=True) + "\n"
        write_file(self.layout.marker, document.encode("ascii"), temporary=self.layout.temporary())

    @contextmanager
    def change_refs(self) -> Iterator[Change]:
        """Marks the index as behind, then yields; references may be changed inside, and the index brought up to date.

        A command that dies inside leaves an index that knows it is behind, and is rebuilt by the next one.

        Raises:
            StoreError: if the store cannot be written, or is being changed by another command all the time.
        """
        self.prepare_for_writing()
        with hold_lock(self.layout.refs_lock), begin_change(self.layout) as change:
            yield change


def open_store(root: Path | None = None) -> Store:
    """Returns the store at ``root``, else the user's, which need not exist yet.

    Raises:
        StoreError: if it was written by a newer version, is no store, or others could have changed it.
    """
    store = Store(Layout((root or choose_home()).absolute()))
    marker = _read_marker(store.layout)
    if marker is None:
        if look_at(store.root) is not None and not is_folder(store.root):
            raise StoreError(f"{str(store.root)!r} is no folder", hint="name a folder with CONCEPTRY_HOME")
        return store
    found = marker.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise StoreError(
            f"the store {str(store.root)!r} has format {found}, this version knows {FORMAT}",
            hint="update conceptry: python -m pip install --upgrade conceptry",
        )
    if found != FORMAT:
        raise _damaged_marker(store.layout)
    _check_owner(store.root, shared=marker.get("shared") is True)
    return store


def _read_marker(layout: Layout) -> dict[str, Any] | None:
    data = read_small_file(layout.marker, _LIMIT_BYTES)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _damaged_marker(layout) from error
    if not isinstance(value, dict):
        raise _damaged_marker(layout)
    return value


def _damaged_marker(layout: Layout) -> StoreError:
    return StoreError(
        f"{str(layout.marker)!r} does not say which format the store has",
        hint=f'if this is your store, write {{"format": {FORMAT}}} into that file',
    )


def _is_own(root: Path) -> bool:
    if not current_operations().capabilities.has_owners:
        return False
    status = look_at(root)
    return status is not None and status.st_uid == os.geteuid()


def _check_owner(root: Path, *, shared: bool) -> None:
    """What others can change, they could fill with references of their choice."""
    if shared or not current_operations().capabilities.has_owners:
        return
    with explain_os_errors("read", root):
        status = current_operations().followed_status(root)
    if status.st_uid not in (os.geteuid(), 0):
        raise StoreError(
            f"the store {str(root)!r} belongs to another user (id {status.st_uid})",
            hint='its owner can write "shared": true into store.json; else name another with CONCEPTRY_HOME',
        )
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise StoreError(
            f"the store {str(root)!r} can be written by other users",
            hint=f"chmod go-w {root}",
        )
