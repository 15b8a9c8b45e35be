"""METHODS: every way to merge concepts into one, a row each with its paper; adding one is one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from conceptry.composer.merge_closed import merge_closed_form, merge_ridge
from conceptry.composer.merge_layers import Layer, MergedLayer
from conceptry.composer.merge_signs import merge_dare, merge_dare_ties, merge_knots, merge_ties
from conceptry.composer.merge_sums import merge_orthogonal, merge_slots, merge_sum
from conceptry.errors import UsageError, suggest_nearest

MergeMethodId = Literal[
    "sum", "ties", "dare", "dare_ties", "knots", "orthogonal", "slots", "custom_diffusion", "ridge"
]
Reading = Literal["nothing", "encodings", "moments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeMethod:
    """One way to merge."""

    id: MergeMethodId
    title: str
    paper: str
    merge: Callable[[Layer], MergedLayer]
    density: float | None = None
    """The share of entries that stay where nothing else is asked; None where the method drops none."""

    seeded: bool = False
    """It draws at random, from the seed."""

    ordered: bool = False
    """Another order of the concepts gives another result."""

    reads: Reading = "nothing"
    """What it asks of the base: the encodings of the concepts' words, or second moments of what layers read."""

    takes_full: bool = False
    """It takes new weights (kind full) of the layers that it merges, as differences from the base."""

    ridged: bool = False
    """It stays at the base as much as the ridge says."""


METHODS: Final[tuple[MergeMethod, ...]] = (
    MergeMethod(id="sum", title="exact sum, cut to a rank by QR of the factors", paper="-", merge=merge_sum),
    MergeMethod(
        id="ties",
        title="greatest entries that agree in sign",
        paper="arXiv 2306.01708",
        merge=merge_ties,
        density=0.2,
    ),
    MergeMethod(
        id="dare",
        title="entries dropped at random, the rest scaled up, summed",
        paper="arXiv 2311.03099",
        merge=merge_dare,
        density=0.5,
        seeded=True,
    ),
    MergeMethod(
        id="dare_ties",
        title="entries dropped at random, then those that agree in sign",
        paper="arXiv 2311.03099 and 2306.01708",
        merge=merge_dare_ties,
        density=0.5,
        seeded=True,
    ),
    MergeMethod(
        id="knots",
        title="TIES in the singular basis of all deltas",
        paper="arXiv 2410.19735",
        merge=merge_knots,
        density=0.2,
    ),
    MergeMethod(
        id="orthogonal",
        title="later concepts read only inputs that earlier ones do not",
        paper="arXiv 2312.02432, after training",
        merge=merge_orthogonal,
        ordered=True,
    ),
    MergeMethod(
        id="slots",
        title="sum of concepts that were trained in disjoint slots, checked",
        paper="arXiv 2312.02432",
        merge=merge_slots,
    ),
    MergeMethod(
        id="custom_diffusion",
        title="keys and values by constrained least squares on text encodings",
        paper="arXiv 2212.04488, section 3.3",
        merge=merge_closed_form,
        reads="encodings",
        takes_full=True,
    ),
    MergeMethod(
        id="ridge",
        title="gradient fusion of Mix-of-Show as ridge regression on activations",
        paper="arXiv 2305.18292, eq. 3",
        merge=merge_ridge,
        reads="moments",
        ridged=True,
        takes_full=True,
    ),
)
METHOD_BY_ID: Final[dict[str, MergeMethod]] = {row.id: row for row in METHODS}


def find_merge_method(id: str) -> MergeMethod:
    """Returns the row called ``id``. Raises UsageError with the nearest one."""
    row = METHOD_BY_ID.get(id)
    if row is None:
        hint = suggest_nearest(id, METHOD_BY_ID) or f"known: {', '.join(METHOD_BY_ID)}"
        raise UsageError(f"there is no way of merging called {id[:80]!r}", hint=hint)
    return row
