"""Work on several things at once, that ends soon after the first failure or Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from conceptry.errors import InterruptedByUserError
from conceptry.registry.events import OnEvent, Progress

T = TypeVar("T")
R = TypeVar("R")

WORKERS: Final = 16


class Stop:
    """Tells workers that nobody waits for them any more."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """From now on ``check`` raises."""
        self._event.set()

    def check(self) -> None:
        """Raises InterruptedByUserError once the work was given up; what has arrived is kept."""
        if self._event.is_set():
            raise InterruptedByUserError("given up", hint="run the same command again: it goes on from there")


def run_parallel(work: Callable[[T], R], rows: Sequence[T], *, stop: Stop, workers: int = WORKERS) -> list[R]:
    """Returns the results in the order of ``rows``; the first failure in that order is raised, and ends the rest."""
    if len(rows) < 2 or workers < 2:
        return [work(row) for row in rows]
    pool = ThreadPoolExecutor(max_workers=min(workers, len(rows)), thread_name_prefix="conceptry")
    try:
        return [future.result() for future in [pool.submit(work, row) for row in rows]]
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def tell_one_by_one(on_event: OnEvent, stop: Stop) -> OnEvent:
    """Returns what passes events on, one at a time, and ends those who tell of work that was given up."""
    lock = threading.Lock()

    def tell(event: Progress) -> None:
        stop.check()
        with lock:
            on_event(event)

    return tell
