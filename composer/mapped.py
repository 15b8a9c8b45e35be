"""Files that stay where they lie: mapped into memory instead of copied, and watched as long as they are used.

Blobs of a store are read-only, are never written to in place, and are named by their digests, which were checked. A
file that somebody may write is not mapped. Beside that its size and the time of its last change are held against those
from before it was looked through, when it goes into a pipeline and before each picture.
"""

from __future__ import annotations

import os
import stat
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from conceptry.errors import IntegrityError

_WRITABLE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class MappedFile:
    """The bytes of a file, and what it was like when they were mapped."""

    path: Path
    data: Tensor
    """Bytes, read from the disk when they are first used."""

    _descriptor: int
    _size_bytes: int
    _changed_ns: int

    def check(self) -> None:
        """Raises IntegrityError if the file was written to since it was mapped; that it was removed does no harm."""
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self._size_bytes, self._changed_ns):
            raise IntegrityError(
                f"the file {self.path.name!r} was written to while it was in use",
                where=str(self.path),
                hint="detach, and concepts verify; then pull the concept again and attach it",
            )


def map_file(path: Path) -> MappedFile | None:
    """Returns a file's bytes where they lie; None for one that somebody may write, or where that is not possible."""
    if os.name != "posix":
        return None  # a mapped file could not be removed
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found, named = os.fstat(descriptor), os.stat(path)
        writable = found.st_mode & _WRITABLE
        if writable or not found.st_size or (found.st_dev, found.st_ino) != (named.st_dev, named.st_ino):
            os.close(descriptor)
            return None
        storage = torch.UntypedStorage.from_file(str(path), False, found.st_size)
        data = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]  # it takes any storage
        mapped = MappedFile(path, data, descriptor, found.st_size, found.st_mtime_ns)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(mapped, os.close, descriptor)
    mapped.check()
    return mapped
