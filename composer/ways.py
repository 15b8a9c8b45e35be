"""WAYS: how the concepts of a composition share the steps of a drawing, a row each with its paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from conceptry.composition import Way


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One run of the denoiser: what each concept's strength is multiplied by, and how much its answer counts."""

    factors: tuple[float, ...]
    weight: float | Tensor = 1.0
    region: int | None = None
    """The place of the concept whose region this is, where it has a prompt of its own."""


Arrange = Callable[[Sequence[bool], int, int], tuple[Pass, ...]]
"""Which concepts change the denoiser, the number of the step, and the period -> what is run in this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayRow:
    """One way of using several concepts at once."""

    id: Way
    title: str
    paper: str
    arrange: Arrange
    passes: bool = False
    """It runs the denoiser several times a step."""

    focused: bool = False
    """The first pass is the base's, each other a concept's, which counts where it changes most."""


def _run_together(steerable: Sequence[bool], step: int, period: int) -> tuple[Pass, ...]:
    return (Pass(tuple(1.0 for _ in steerable)),)


def _take_turns(steerable: Sequence[bool], step: int, period: int) -> tuple[Pass, ...]:
    """One concept at a time, for ``period`` steps each, in the order of the composition."""
    places = [place for place, changes in enumerate(steerable) if changes]
    active = places[step // period % len(places)] if places else -1
    return (Pass(tuple(float(place == active) for place in range(len(steerable)))),)


def _average(steerable: Sequence[bool], step: int, period: int) -> tuple[Pass, ...]:
    """Each concept alone; guidance is linear in predictions, so their mean is the paper's composed score."""
    places = [place for place, changes in enumerate(steerable) if changes]
    if len(places) < 2:
        return _run_together(steerable, step, period)
    return tuple(
        Pass(tuple(float(place == active) for place in range(len(steerable))), 1 / len(places))
        for active in places
    )


def _each_alone(steerable: Sequence[bool], step: int, period: int) -> tuple[Pass, ...]:
    """No concept, then each by itself; those that change words only are told apart by the prompts."""
    places = range(len(steerable))
    if len(steerable) < 2:
        return _run_together(steerable, step, period)
    return tuple(Pass(tuple(float(place == active) for place in places)) for active in (-1, *places))


WAYS: Final[tuple[WayRow, ...]] = (
    WayRow(id="sum", title="all deltas at once", paper="-", arrange=_run_together),
    WayRow(id="switch", title="LoRA Switch", paper="arXiv 2402.16843, eq. 3", arrange=_take_turns),
    WayRow(
        id="composite",
        title="LoRA Composite",
        paper="arXiv 2402.16843, eq. 5",
        arrange=_average,
        passes=True,
    ),
    WayRow(
        id="focus",
        title="each by itself, where it changes most",
        paper="after arXiv 2206.01714 and 2210.11427",
        arrange=_each_alone,
        passes=True,
        focused=True,
    ),
)
WAY_BY_ID: Final[dict[str, WayRow]] = {row.id: row for row in WAYS}
