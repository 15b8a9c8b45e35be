"""Progress: one bar on stderr at a terminal; elsewhere sparse lines, and those with ``--verbose`` only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from conceptry.cli.output import Output, has_terminal
from conceptry.cli.text import make_visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from conceptry.registry.events import Progress as TransferProgress
    from conceptry.trainer.events import TrainEvent

_LINE_EVERY_SECONDS: Final = 5.0


class Meter(Protocol):
    """Shows how far something is."""

    def phase(self, text: str) -> None:
        """Says what begins now; how long it takes is not known."""

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Says how much of how much is done."""


class _SilentMeter:
    """Shows nothing."""

    def phase(self, text: str) -> None:
        """Shows nothing."""

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Shows nothing."""


class _LineMeter:
    """Writes a line for each phase, and one every few seconds in between."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._next = time.monotonic() + _LINE_EVERY_SECONDS

    def phase(self, text: str) -> None:
        """Writes the line."""
        self._out.log(text)

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Writes a line if the last one is some seconds old."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_EVERY_SECONDS
            share = f"{done / total:4.0%}" if total else ""
            self._out.log(f"{share} {detail}".strip())


class _BarMeter:
    """Moves a bar."""

    def __init__(self, bar: Any, title: str) -> None:
        self._bar = bar
        self._task = bar.add_task(make_visible(title), total=None, detail="")

    def phase(self, text: str) -> None:
        """Writes the text before a bar that moves without an end."""
        self._bar.update(self._task, description=make_visible(text), total=None, detail="")

    def update(self, done: float, total: float, detail: str = "") -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=done, total=total or None, detail=make_visible(detail))


def is_tracked(out: Output) -> bool:
    """Returns whether somebody sees how far something is."""
    return out.verbose or (out.mode == "human" and has_terminal(sys.stderr))


@contextmanager
def track(out: Output, title: str) -> Iterator[Meter]:
    """Gives a meter for the block; its bar is gone afterwards."""
    if out.mode == "human" and has_terminal(sys.stderr):
        with _open_bar() as bar:
            yield _BarMeter(bar, title)
    elif out.verbose:
        out.log(title)
        yield _LineMeter(out)
    else:
        yield _SilentMeter()


def _open_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )


def follow_transfer(meter: Meter) -> Callable[[TransferProgress], None]:
    """Returns what takes the registry's events to ``meter``."""
    return lambda event: meter.update(event.done_bytes, event.total_bytes, event.item)


def follow_training(meter: Meter, out: Output) -> Callable[[TrainEvent], None]:
    """Returns what takes the trainer's events to ``meter``; warnings are said at once."""
    first: dict[str, tuple[int, float]] = {}

    def name_speed(event: TrainEvent) -> str:
        step, seconds = first.setdefault(event.job, (event.step, event.seconds))
        if event.step == step or event.seconds <= seconds:
            return ""
        share = "" if event.share is None else f", {event.share:.0%} of the device's limit"
        return f", {(event.step - step) / (event.seconds - seconds):.3g} steps/s{share}"

    def show(event: TrainEvent) -> None:
        if event.kind == "warning":
            out.warn(f"{event.job}: {event.message}" if event.job else event.message)
        elif event.kind == "phase":
            meter.phase(event.message)
        else:
            loss = "" if event.loss is None else f", loss {event.loss:.4f}"
            name = f"{event.job}: " if event.job else ""
            meter.update(
                event.step, event.total, f"{name}step {event.step} of {event.total}{loss}{name_speed(event)}"
            )

    return show
