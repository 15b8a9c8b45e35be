"""Scores with floor, ceiling and interval: what a protocol measures, as values.

A score alone says little: 0.8 may be excellent or no better than the bare superclass word. So every identity carries
its floor (the base model with the superclass word) and its ceiling (held-out pictures of the true thing), and is
normalised between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_RESAMPLES: Final = 2000
_LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityScore:
    """Mean cosine of generated pictures with the concept's reference, between floor and ceiling."""

    score: float
    floor: float
    ceiling: float
    ceiling_raw: float
    """The ceiling without the autoencoder's loss: renders as they are."""

    interval: tuple[float, float]

    @property
    def normalised(self) -> float:
        """(score - floor) / (ceiling - floor): 0 is the superclass word, 1 the thing itself."""
        span = self.ceiling - self.floor
        return (self.score - self.floor) / span if span > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScore:
    """Share of what the prompts ask for that the pictures show, and the base model's own share."""

    score: float
    base: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptScores:
    """What one protocol measured for one concept."""

    protocol: str
    pictures: int
    identity: IdentityScore
    prompt: PromptScore

    def to_json(self) -> dict[str, Any]:
        """Returns the scores as ``concepts eval --json`` prints them."""
        document = asdict(self)
        document["identity"]["normalised"] = self.identity.normalised
        return document


def bootstrap_interval(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of ``values``, from 2,000 seeded resamples."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, array.size, (_RESAMPLES, array.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
