"""Kernel locks: they save work when several commands run at once.

Nothing is correct only because of a lock. Where the file system has none, work goes on without; a lock is never
broken by its age, and what is written inside it is for messages only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conceptry.errors import StoreError
from conceptry.registry.files import open_for_update
from conceptry.registry.operations import current_operations
from conceptry.registry.processes import describe_process

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05
_NOTE_BYTES: Final = 512


@contextmanager
def hold_lock(path: Path, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Iterator[None]:
    """Holds the lock at ``path`` during the block.

    Raises:
        StoreError: if another process holds it all the time; the message names its pid, host and command.
    """
    with open_for_update(path) as descriptor:
        deadline = time.monotonic() + timeout_seconds
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another command has been changing the store for {timeout_seconds:g} s: "
                    f"{_read_note(descriptor)}",
                    hint="wait until it ends, or end it, then run the same command again",
                )
            time.sleep(_POLL_SECONDS)
        _write_note(descriptor)
        yield


def try_lock(descriptor: int) -> bool:
    """Returns False if another process holds the lock of this open file, else True; where there are no locks, True."""
    return current_operations().lock(descriptor)


def _write_note(descriptor: int) -> None:
    note = describe_process().encode()[:_NOTE_BYTES]
    operations = current_operations()
    with contextlib.suppress(OSError):  # a full disk must not turn a note into a failure
        operations.truncate(descriptor, 0)
        operations.seek(descriptor, 0)
        operations.write(descriptor, note)


def _read_note(descriptor: int) -> str:
    operations = current_operations()
    with contextlib.suppress(OSError):
        operations.seek(descriptor, 0)
        note = operations.read(descriptor, _NOTE_BYTES).decode("utf-8", "replace")
        return note or "a process that left no note"
    return "a process whose note cannot be read"
