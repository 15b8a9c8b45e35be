"""Ctrl-C during training: noted at once, obeyed between two steps, when the state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the run to stop."""

    requested: bool = False


@contextmanager
def catch_interrupt() -> Iterator[StopRequest]:
    """Gives the request that the first SIGINT or SIGTERM sets; a second one ends the block at once.

    Outside the main thread signals cannot be caught; then only the caller's own KeyboardInterrupt stops the run.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
