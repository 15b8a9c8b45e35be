"""Scores with floor, ceiling and interval: what a protocol measures, as values.

A score alone says little: 0.8 may be excellent or no better than the bare superclass word. So each carries the two
anchors between which it is normalised, and the interval of its mean over pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_RESAMPLES: Final = 2000
_LEVEL: Final = 0.95
# Student's t at 95 %, for 2, 3, ... values; of more values the last one is taken, which is a little too wide.
_T: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
Values = Sequence[float] | NDArray[np.float64]


def normalise(score: float, floor: float, ceiling: float) -> float:
    """Returns (score - floor) / (ceiling - floor); not a number where the ceiling is not above the floor."""
    span = ceiling - floor
    return (score - floor) / span if span > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """The mean of a score over pictures, between the worst (floor) and the best (ceiling) that can be expected."""

    score: float
    floor: float
    ceiling: float
    interval: tuple[float, float]

    @property
    def normalised(self) -> float:
        """0 at the floor, 1 at the ceiling."""
        return normalise(self.score, self.floor, self.ceiling)

    def to_json(self) -> dict[str, Any]:
        """Returns the measure as ``concepts eval --json`` prints it."""
        return {**asdict(self), "normalised": self.normalised}


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityScore(Measure):
    """Mean likeness of generated pictures and the concept's reference.

    The floor is the base with the superclass word, the ceiling held-out pictures of the thing itself.
    """

    ceiling_raw: float
    """The ceiling without the autoencoder's loss: pictures as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScore:
    """How far pictures show what their prompts ask for, and how far the base model's own do.

    ``floor`` is what the base's pictures reach for prompts that they were not drawn for.
    """

    score: float
    base: float
    floor: float
    interval: tuple[float, float]

    @property
    def normalised(self) -> float:
        """0 for pictures that ignore their prompts, 1 for pictures that follow them as the base's do."""
        return normalise(self.score, self.floor, self.base)

    def to_json(self) -> dict[str, Any]:
        """Returns the score as ``concepts eval --json`` prints it."""
        return {**asdict(self), "ceiling": self.base, "normalised": self.normalised}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptScores:
    """What one protocol measured for one concept; None where a protocol has no such measure."""

    protocol: str
    pictures: int
    identity: IdentityScore
    prompt: PromptScore
    preservation: Measure | None = None
    """How far pictures of the superclass word stay away from the concept while it is attached."""

    diversity: Measure | None = None
    """How far pictures of one prompt differ."""

    leakage: Measure | None = None
    """How seldom a background of the training pictures comes where none was asked for; 1 is never."""

    others: Mapping[str, Measure] = field(default_factory=dict)
    """Further likenesses of the protocol, such as ``clip_i``."""

    def list_measures(self) -> dict[str, Measure | PromptScore]:
        """Returns every measure that was taken, by its name."""
        named = {
            "identity": self.identity,
            "prompt": self.prompt,
            "preservation": self.preservation,
            "diversity": self.diversity,
            "leakage": self.leakage,
            **self.others,
        }
        return {name: found for name, found in named.items() if found is not None}

    def to_json(self) -> dict[str, Any]:
        """Returns the scores as ``concepts eval --json`` prints them."""
        absent = dict.fromkeys(("preservation", "diversity", "leakage"))
        return {
            "protocol": self.protocol,
            "pictures": self.pictures,
            **absent,
            **{name: found.to_json() for name, found in self.list_measures().items()},
        }


def bootstrap_interval(values: Values, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of ``values``, from 2,000 seeded resamples."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, array.size, (_RESAMPLES, array.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def correlate_ranks(one: Values, other: Values) -> float:
    """Returns Spearman's rank correlation: Pearson's of the ranks, ties at their mean rank."""
    first, second = (_rank(np.asarray(values, np.float64)) for values in (one, other))
    return float(np.corrcoef(first, second)[0, 1])


def _rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])


def mean_interval(values: Values) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of a few independent values by Student's t; not a number below two.

    A bootstrap of five values covers too seldom.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float("nan"), float("nan")
    half = _T[min(array.size - 2, len(_T) - 1)] * float(array.std(ddof=1)) / float(np.sqrt(array.size))
    mean = float(array.mean())
    return mean - half, mean + half
