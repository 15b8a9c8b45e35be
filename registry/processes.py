"""Which process this is, and whether another one still runs: for names of private files and for messages."""

from __future__ import annotations

import os
import re
import sys
import zlib
from typing import Final

_MARK: Final = re.compile(r"([0-9a-f]{8})-([0-9]{1,10})(?:-|\Z)", re.ASCII)
_QUERY_RIGHT: Final = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION of Windows


def own_mark() -> str:
    """Returns ``host-pid``: what private names of this process begin with. The host is a checksum, not its name."""
    return f"{_host():08x}-{os.getpid()}"


def is_running(name: str) -> bool | None:
    """Returns whether the process whose mark a private name begins with still runs; None where nobody here can tell.

    A number that was given to a new process counts as running: what it left is then judged by its age.
    """
    match = _MARK.match(name)
    if match is None or int(match[1], 16) != _host():
        return None
    return _has_process(int(match[2]))


def describe_process() -> str:
    """Returns this process in words: number, host and command."""
    import platform

    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return f"pid {os.getpid()} on {platform.node()}: {command}"


def _host() -> int:
    import platform  # here and above: a listing starts without it

    return zlib.crc32(platform.node().encode("utf-8", "replace"))


def _has_process(number: int) -> bool:
    if os.name == "nt":
        import ctypes

        kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - known to type checkers on Windows only
        handle = kernel.OpenProcess(_QUERY_RIGHT, False, number)
        if handle:
            kernel.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
