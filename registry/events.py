"""What a long operation says while it runs, for progress bars."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Step = Literal["check", "blob", "manifest", "ref"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an operation is: the step, what it is at, and the bytes done of those to do."""

    step: Step
    item: str
    done_bytes: int
    total_bytes: int


OnEvent = Callable[[Progress], None]


def ignore_event(event: Progress) -> None:
    """Takes an event and does nothing."""


class Meter:
    """Adds up bytes, perhaps of several threads, and says how far an operation is."""

    def __init__(self, step: Step, total_bytes: int, on_event: OnEvent) -> None:
        self._step = step
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._on_event = on_event
        self._lock = threading.Lock()

    def start(self, item: str) -> Callable[[int], None]:
        """Returns what counts the bytes of ``item``."""

        def count(count_bytes: int) -> None:
            with self._lock:
                self._done_bytes += count_bytes
            self._say(item)

        self._say(item)
        return count

    def _say(self, item: str) -> None:
        done, total = min(self._done_bytes, self._total_bytes), self._total_bytes
        self._on_event(Progress(step=self._step, item=item, done_bytes=done, total_bytes=total))
