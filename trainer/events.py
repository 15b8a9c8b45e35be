"""What a run tells its caller while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


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


OnEvent = Callable[[TrainEvent], None]


def ignore(event: TrainEvent) -> None:
    """Drops the event."""
