"""Files that this process wrote and hashed on the way, remembered by what the system says of them.

Whoever is handed such a file need not read it again as long as the system still says the same: inode, size, the time
of its last bytes and that of its last change of any kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from conceptry.digests import Digest


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells a file from others, and from itself after any change."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Returns the stamp of what the system says of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def has_bytes_of(self, other: FileStamp) -> bool:
        """Returns whether it is the same file with the same bytes, though it may have another name or mode."""
        return self._bytes == other._bytes

    @property
    def _bytes(self) -> tuple[int, ...]:
        return self.device, self.inode, self.size_bytes, self.modified_ns


_NOTED: Final[ContextVar[dict[FileStamp, Digest] | None]] = ContextVar("_NOTED", default=None)


@contextmanager
def remember_written_files() -> Iterator[dict[FileStamp, Digest]]:
    """Gives the digests of all files that this thread writes and hashes during the block, by their stamps."""
    found: dict[FileStamp, Digest] = {}
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def note_written_file(path: Path, descriptor_status: os.stat_result, digest: Digest) -> None:
    """Notes the digest of a file that was just written, if somebody wants to know and nobody changed it since.

    ``descriptor_status`` is what the open file's descriptor said once all was written; it has its name since.
    """
    noted = _NOTED.get()
    if noted is None:
        return
    stamp = FileStamp.of(path.stat(follow_symlinks=False))
    if stamp.has_bytes_of(FileStamp.of(descriptor_status)):
        noted[stamp] = digest
