"""What a run tells its caller while it works."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainEvent:
    """A step that is done, a phase that begins, or a warning.

    ``loss`` is the running mean, read back from the device now and then: None until it is known.
    """

    kind: Literal["step", "phase", "warning"]
    job: str = ""
    """The name of the concept, where several are trained together."""

    message: str = ""
    step: int = 0
    total: int = 0
    loss: float | None = None
    seconds: float = 0.0
    share: float | None = None
    """Of a step: the share so far of what the device can multiply; None where nobody counts."""


OnEvent = Callable[[TrainEvent], None]


def ignore(event: TrainEvent) -> None:
    """Drops the event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """What is wanted of a run beside its result; nothing of it is part of the recipe."""

    previews: bool = False
    """Pictures at 0, 25, 50, 75 and 100 % in the run's folder."""

    curves: bool = False
    """``curves.png`` in the run's folder."""

    tensorboard: Path | None = None
    """Where TensorBoard's events go."""

    share: bool = False
    """Whether events say how near the run comes to what its device can multiply."""


class Onlooker:
    """What looks on between the steps of a run and changes nothing of it; this one sees nothing."""

    def counted(self, runs: int) -> AbstractContextManager[None]:
        """Returns the context of one step of so many runs."""
        return nullcontext()

    def look(self, run: Any) -> None:
        """Is called before the first step and after each."""

    def note_measure(self, step: int, loss: float) -> None:
        """Is told the loss on held-out noise of the values after ``step``."""


NOBODY: Final = Onlooker()
