"""Operations that are struck at a chosen call: the process is killed there, or the call fails, once or from then on."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from conceptry.registry.operations import CHANGING_OPERATIONS, FileOperations

KILL: Final = "SIGKILL"
SHORT_WRITE: Final = "short write"


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a call goes wrong."""

    name: str
    code: int = 0
    lasts: bool = False
    """Whether all later calls that can fail so do it too, as on a disk that stays full."""


# What each error can strike: the system reports it from such calls. `lock` answers yes or no and never fails.
_ROOM: Final = frozenset(
    {"create", "open_for_update", "write", "sync", "link", "rename", "make_folder", "connect"}
)
_STRUCK: Final[dict[str, frozenset[str]]] = {
    "ENOSPC": _ROOM,
    "EDQUOT": _ROOM,
    "EMFILE": frozenset({"create", "open_for_update", "open", "sync_folder", "names", "connect"}),
    SHORT_WRITE: frozenset({"write"}),
    "EIO": CHANGING_OPERATIONS - {"lock"} | {"read", "open", "names", "close"},
    "EACCES": CHANGING_OPERATIONS - {"lock", "write", "sync", "truncate"} | {"open"},
}
FAULTS: Final = (
    Fault("EIO", errno.EIO),
    Fault("ENOSPC", errno.ENOSPC),
    Fault("ENOSPC that lasts", errno.ENOSPC, lasts=True),
    Fault("EDQUOT", errno.EDQUOT),
    Fault("EACCES", errno.EACCES),
    Fault("EMFILE", errno.EMFILE),
    Fault(SHORT_WRITE),
)


def list_struck(fault: Fault) -> frozenset[str]:
    """Return the operations that a fault can strike."""
    return _STRUCK[fault.name.partition(" that")[0]]


class CountedOperations(FileOperations):
    """The system's operations, of which some are counted; ``strike`` is told the number of each, from 1."""

    def __init__(self, counted: frozenset[str], strike: Callable[[str, int], int] | None = None) -> None:
        super().__init__()
        self.count = 0
        self._lock = threading.Lock()
        for name in counted:
            setattr(self, name, self._wrap(name, getattr(super(), name), strike))

    def _wrap(self, name: str, real: Callable[..., Any], strike: Callable[[str, int], int] | None) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            with self._lock:
                self.count += 1
                number = self.count
            if (
                name == "close"
            ):  # what close reports is late: the descriptor, and the lock on it, are given back
                real(*arguments)
                return strike and strike(name, number)
            if strike is not None and strike(name, number):  # a short write
                return real(arguments[0], memoryview(arguments[1])[: max(1, len(arguments[1]) // 3)])
            return real(*arguments, **more)

        return call


def kill_at(number: int) -> CountedOperations:
    """Return operations that kill their process in place of the change of files with that number."""

    def strike(name: str, now: int) -> int:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    return CountedOperations(CHANGING_OPERATIONS, strike)


def fail_at(fault: Fault, number: int) -> CountedOperations:
    """Return operations of which the one with that number, among those that can fail so, fails."""

    def strike(name: str, now: int) -> int:
        if now != number and not (fault.lasts and now > number):
            return 0
        if not fault.code:
            return 1
        if name == "connect":
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(fault.code, os.strerror(fault.code))

    return CountedOperations(list_struck(fault), strike)
