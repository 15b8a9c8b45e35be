"""Children of a process that has imported everything already: one costs milliseconds instead of a start of Python."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from conceptry.errors import ConceptryError

OK = "ok"
KILLED = "killed"
REFUSED = "refused"


def run_child(work: Callable[[], str | None], *, stop: Callable[[int], None] | None = None) -> str:
    """Return what ``work`` says in a process of its own: its text, ``ok``, ``killed``, ``refused`` or a traceback.

    ``stop`` is told the child's number before it begins, and may wait until somebody watches it.
    """
    reading, writing = os.pipe()
    start, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.close(go)
        os.read(start, 1)
        _say(writing, work)
    os.close(writing)
    os.close(start)
    if stop is not None:
        stop(child)
    os.close(go)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return KILLED if os.WIFSIGNALED(status) else said


def _say(writing: int, work: Callable[[], str | None]) -> None:
    try:
        said = work() or OK
    except ConceptryError as error:
        said = REFUSED if error.hint or error.where else f"no hint: {error}"
    except BaseException:  # noqa: BLE001 - whatever else comes out is what is looked for
        said = traceback.format_exc()
    data = said.encode("utf-8", "replace")
    while data:
        data = data[os.write(writing, data) :]
    os._exit(0)


def copy_fresh(source: Path, target: Path) -> None:
    """Make ``target`` a copy of ``source``, whatever it was."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
