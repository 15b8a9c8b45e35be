"""Disks that fill up: a command on a small tmpfs with room for so much more, in steps of a page."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Final

from tests.faults.children import OK, REFUSED, copy_fresh, run_child
from tests.faults.oracle import look_after, repeat
from tests.faults.points import Counts, Stage, set_stage, void
from tests.registry.folders import temporaries_below

PARTS: Final = ("publish", "publish (first)", "pull", "push", "push (first)", "tag", "index rebuild", "sync")
PAGE_BYTES: Final = 4096
ROOM_BYTES: Final = 64 << 20
SKIPPED: Final = "skipped: only root may mount a small disk"


def can_mount() -> bool:
    """Return whether this process may mount a disk that nobody else sees."""
    tried = ["/usr/bin/env", "unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    found = shutil.which("unshare") is not None and hasattr(os, "geteuid") and os.geteuid() == 0
    return found and subprocess.run(tried, check=False, capture_output=True).returncode == 0


def sweep_sizes(part: str, folder: Path, *, step: int = 1, most: int = 512) -> Counts:
    """Return how a command ended with room for 0, 1, 2 and more pages, until it has succeeded three times."""
    if not can_mount():
        return Counts(Counter([SKIPPED]))
    stage = set_stage(folder, part)
    disk = folder / "disk"
    disk.mkdir()
    counts = Counts()
    subprocess.run(
        ["/usr/bin/env", "mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(disk)], check=True
    )
    try:
        for pages in range(0, most, step):
            counts.add(check_size(stage, disk, pages))
            if counts.points[OK] >= 3:
                break
    finally:
        subprocess.run(["/usr/bin/env", "umount", "--lazy", str(disk)], check=True)
    return counts


def check_size(stage: Stage, disk: Path, pages: int) -> Counts:
    """Return how the command ended with so much room, and what was wrong then; with more room it must succeed."""
    command, folder = stage.command, stage.folder
    resize(disk, ROOM_BYTES)
    copy_fresh(stage.prepared, disk / "work")
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    folder.symlink_to(disk / "work")
    status = os.statvfs(disk)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    resize(disk, used + pages * PAGE_BYTES)
    ended = run_child(lambda: void(command.run(folder)))
    wrong = [] if ended in (OK, REFUSED) else [ended]
    wrong += [f"left behind: {name}" for name in new_temporaries(stage)]
    said = run_child(lambda: look_after(folder, command, stage.before, succeeded=ended == OK))
    wrong += [] if said == OK else [said]
    resize(disk, ROOM_BYTES)
    said = run_child(lambda: repeat(folder, command, stage.before, stage.expected))
    wrong += [] if said == OK else [said]
    label = f"{command.name} with room for {pages} pages"
    return Counts(
        Counter([ended if ended in (OK, REFUSED) else "traceback"]), [f"{label}: {one}" for one in wrong]
    )


def resize(disk: Path, size_bytes: int) -> None:
    """Give the disk another size."""
    subprocess.run(["/usr/bin/env", "mount", "-o", f"remount,size={size_bytes}", str(disk)], check=True)


def new_temporaries(stage: Stage) -> list[str]:
    """Return what the command left behind."""
    store = stage.command.store
    before = temporaries_below(stage.prepared / store)
    return [name for name in temporaries_below(stage.folder / store) if name not in before]
