"""What tests need of the system beyond Python; said here of a module by which the fuzzer's record is kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

NEEDS_LIMITS: Final = "test_hostile_files.py"
"""Stands on limits of processes (``resource``), which Windows has not."""

_HERE: Final = {
    "test_environment_and_open_files_do_not_reach_the_process": (
        Path("/proc/self/fd").is_dir(),
        "nothing lists a process' open files here",
    ),
    "test_hostile_file_needs_little_memory_here": (
        sys.platform != "darwin",
        "macOS tells the greatest memory in another unit",
    ),
}

try:
    import resource
except ImportError:
    collect_ignore = [NEEDS_LIMITS]
else:
    del resource


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what cannot be seen on this system, with its reason."""
    for item in items:
        there, reason = _HERE.get(item.name, (True, ""))
        if not there:
            item.add_marker(pytest.mark.skip(reason=reason))
