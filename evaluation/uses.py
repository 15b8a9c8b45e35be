"""The uses of concepts that surveys measure, one frozen row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from conceptry.errors import UsageError, suggest_nearest
from conceptry.evaluation.bias import measure_bias
from conceptry.evaluation.drawing_over import transfer_style, vary_pictures
from conceptry.evaluation.use_context import UseContext
from conceptry.evaluation.use_results import UseResult


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRow:
    """One use: what it asks, of which concepts, and what measures it."""

    id: str
    title: str
    asks: str
    subject: Literal["instance", "style", "any"]
    """What the concept must be."""

    pictures: int
    """That are drawn for each line of its table."""

    measure: Callable[[UseContext], UseResult] | None = None
    """None for ``augment``, which wants pictures of classes and has a command of its own."""


USES: Final[tuple[UseRow, ...]] = (
    UseRow(
        id="augment",
        title="more pictures of a rare class",
        asks="Is a classifier with few real pictures of a class better with generated ones?",
        subject="any",
        pictures=40,
    ),
    UseRow(
        id="variation",
        title="image variation",
        asks="How far can a picture of the thing be drawn over before it is another thing?",
        subject="instance",
        pictures=6,
        measure=vary_pictures,
    ),
    UseRow(
        id="style-transfer",
        title="style transfer",
        asks="Do pictures take on the style, and do they still show what they showed?",
        subject="style",
        pictures=8,
        measure=transfer_style,
    ),
    UseRow(
        id="bias",
        title="bias reduction",
        asks="How skewed are the concept's backgrounds, before and after each is asked for in turn?",
        subject="instance",
        pictures=24,
        measure=measure_bias,
    ),
)
USE_BY_ID: Final[Mapping[str, UseRow]] = MappingProxyType({row.id: row for row in USES})


def find_use(id: str) -> UseRow:
    """Returns the use called ``id``. Raises UsageError with the nearest."""
    row = USE_BY_ID.get(id)
    if row is None:
        raise UsageError(
            f"no use is called {id[:80]!r}",
            hint=suggest_nearest(id, USE_BY_ID) or f"uses: {', '.join(USE_BY_ID)}",
        )
    return row
