"""Kernel locks: they save work when several commands run at once.

Nothing is correct only because of a lock. Where the file system has none, work goes on without; a lock is never
broken by its age, and what is written inside it is for messages only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conceptry.errors import StoreError
from conceptry.registry.files import ensure_folder, explain_os_errors

try:
    import fcntl
except ImportError:  # no such locks on this platform; see above
    fcntl = None  # type: ignore[assignment]

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05
_NOTE_BYTES: Final = 512
_BUSY: Final = frozenset({errno.EAGAIN, errno.EACCES})


@contextmanager
def hold_lock(path: Path, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> Iterator[None]:
    """Holds the lock at ``path`` during the block.

    Raises:
        StoreError: if another process holds it all the time; the message names its pid, host and command.
    """
    ensure_folder(path.parent)
    with explain_os_errors("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
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
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Returns False if another process holds the lock of this open file, else True; where there are no locks, True."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def _write_note(descriptor: int) -> None:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    note = f"pid {os.getpid()} on {os.uname().nodename}: {command}".encode()[:_NOTE_BYTES]
    with contextlib.suppress(OSError):  # a full disk must not turn a note into a failure
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note, 0)


def _read_note(descriptor: int) -> str:
    note = os.pread(descriptor, _NOTE_BYTES, 0).decode("utf-8", "replace")
    return note or "a process that left no note"
