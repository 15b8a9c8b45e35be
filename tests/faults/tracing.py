"""Kills by the tracer of system calls: at each call that may change files, also those of SQLite's own C code."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.faults.children import copy_fresh, run_child
from tests.faults.points import Counts, Stage, check_point, void

CALLS: Final = (
    "write,pwrite64,writev,fsync,fdatasync,ftruncate,fallocate,rename,renameat,renameat2,link,linkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,symlink,symlinkat,chmod,fchmod,fchmodat,openat,flock,copy_file_range,sendfile"
)
HAS_STRACE: Final = shutil.which("strace") is not None


def list_calls(stage: Stage) -> list[tuple[str, int]]:
    """Return each such call of the undisturbed command: its name, and which of that name it is in its thread.

    So strace counts; of threads that do the same, the first to come so far is killed.
    """
    copy_fresh(stage.prepared, stage.folder)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "trace"
        run_child(
            lambda: void(stage.command.run(stage.folder)),
            stop=lambda child: _attach(child, ["-o", str(log), "-e", f"trace={CALLS}"]),
        )
        end_tracers()
        text = log.read_text(encoding="utf-8", errors="replace")
    seen: Counter[tuple[str, str]] = Counter()
    calls: dict[tuple[str, int], None] = {}
    matches = [match for line in text.splitlines() if (match := re.match(r"(\d*) *([a-z0-9_]+)\(", line))]
    for match in matches[:-1]:  # the last is the child's report
        seen[match[1], match[2]] += 1
        calls[match[2], seen[match[1], match[2]]] = None
    return list(calls)


def sweep_calls(stage: Stage, *, step: int = 1) -> Iterator[Counts]:
    """Yield what each kill came to: one on entry of every STEP-th call."""
    for call, number in list_calls(stage)[::step]:
        inject = ["-o", os.devnull, "-e", f"inject={call}:signal=KILL:when={number}"]
        yield check_point(
            stage,
            f"SIGKILL at {call} {number}",
            lambda: void(stage.command.run(stage.folder)),
            watch=lambda child, options=inject: _attach(child, options),  # type: ignore[misc]
        )


def _attach(child: int, options: list[str]) -> None:
    """Returns once the tracer watches the child, which waits for that; the tracer ends with the child."""
    tracer = subprocess.Popen(
        ["/usr/bin/env", "strace", "-f", "-p", str(child), *options], stderr=subprocess.PIPE, text=True
    )
    for line in tracer.stderr or ():
        if "attached" in line:
            break
    _TRACERS.append(tracer)
    for old in [one for one in _TRACERS if one.poll() is not None]:
        if old.stderr is not None:
            old.stderr.close()
        _TRACERS.remove(old)


_TRACERS: Final[list[subprocess.Popen[str]]] = []


def end_tracers() -> None:
    """Ends those that still run."""
    for tracer in _TRACERS:
        tracer.send_signal(signal.SIGTERM)
        tracer.wait(timeout=10)
        if tracer.stderr is not None:
            tracer.stderr.close()
    _TRACERS.clear()
