"""Executions of one target, by number: what ended in another way than a value or an error of our own."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from types import FrameType
from typing import Final

from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS, list_seeds, list_words

MAX_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that a reader did not bear."""

    target: str
    number: int
    data: bytes
    reason: str


class _TooLong(BaseException):
    """Raised in the middle of an execution that takes too much of the processor's time."""


def make_input(target: str, number: int) -> bytes:
    """Returns the input of one execution; the same number gives the same input."""
    row, random = TARGETS[target], Random(f"{target}:{number}")
    seeds = list_seeds(target)
    return row.wrap(mutate(random.choice(seeds), seeds, list_words(target), random), random)


def execute(target: str, numbers: range) -> Iterator[Failure]:
    """Gives the failures among the executions with these numbers."""
    run = TARGETS[target].run
    with _alarm():
        for number in numbers:
            data = make_input(target, number)
            started = time.thread_time()
            signal.setitimer(signal.ITIMER_PROF, 3 * MAX_SECONDS)
            try:
                run(data)
            except (Exception, _TooLong) as error:  # noqa: BLE001 - whatever else escapes is what is looked for
                yield Failure(target, number, data, f"{type(error).__name__}: {str(error)[:200]}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if time.thread_time() - started > MAX_SECONDS:
                yield Failure(target, number, data, f"took more than {MAX_SECONDS} s of the processor")


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    previous = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
