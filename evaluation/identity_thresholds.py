"""From which likeness on a picture is taken for one particular thing: at a stated share of false acceptances.

The threshold of a thing is the likeness that one in a hundred renders of other things of its class reaches, so that it
depends on how like each other the things of a class are, and on nothing that is measured with it. (The operating point
at a fixed false match rate, ISO/IEC 19795-1.)
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.examples import instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.sampling import make_instance
from conceptry.toybox.scorer import Scorer

RULE: Final = "false-match-1-in-100"
EARLIER_RULE: Final = "halfway-between-means"
"""By which rows were judged that name no rule."""

FALSE_SHARE: Final = 0.01
OTHERS: Final = 200
_FIRST_INSTANCE: Final = 700_000


class Thresholds:
    """The thresholds of one scorer; the other things of a class are rendered and read once."""

    def __init__(self, scorer: Scorer | None = None, *, others: int = OTHERS) -> None:
        self.scorer, self.others = scorer or Scorer.load(), others
        self._others: dict[str, tuple[NDArray[np.float32], ...]] = {}

    def find(self, prototype: NDArray[np.float32], kind: str) -> float:
        """Returns the likeness with ``prototype`` that one in a hundred renders of other things of ``kind`` reaches."""
        likeness = [float((objects @ prototype).max()) for objects in self._read_others(kind)]
        return float(np.quantile(likeness, 1.0 - FALSE_SHARE))

    def _read_others(self, kind: str) -> tuple[NDArray[np.float32], ...]:
        """Embeddings of the objects of each render, a thing of its own in each."""
        if kind not in self._others:
            scenes = [
                instance_scenes(make_instance(kind, _FIRST_INSTANCE + number), 1, part=2)[0]
                for number in range(self.others)
            ]
            readings = self.scorer.read(render(scenes))
            self._others[kind] = tuple(
                np.stack([one.embedding for one in reading.objects]) for reading in readings
            )
        return self._others[kind]
