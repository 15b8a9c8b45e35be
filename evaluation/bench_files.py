"""Files of results that several processes fill: each row is written under a lock, upon what is there by then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conceptry.errors import ConflictError
from conceptry.evaluation.bench_conditions import put_row
from conceptry.evaluation.bench_results import ResultFile, ResultRow, read_results, write_results

try:
    import fcntl
except ImportError:  # Windows, where one process at a time fills a folder
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder of results for the time of a block, and waits while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself: no lock file is left among the results
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_results(path: Path, fresh: ResultFile) -> ResultFile:
    """Returns the results of a file, ``fresh`` where there is none.

    Raises:
        ConflictError: if they were measured otherwise.
        InvalidFileError: if it is no file of results.
    """
    if not path.is_file():
        return fresh
    found = read_results(path)
    if found.setting != fresh.setting:
        raise ConflictError(
            f"{str(path)!r} was measured with another suite, protocol, base or budget",
            hint="name another folder with --out, or move these results away",
        )
    return found


def add_row(path: Path, row: ResultRow, fresh: ResultFile) -> None:
    """Writes one more row to a file, in the place of an older one of its subject.

    One that another process wrote meanwhile, and that is as good, stays.
    """
    with locked(path.parent):
        results = open_results(path, fresh)
        write_results(path, results.model_copy(update={"rows": put_row(results.rows, row)}))
