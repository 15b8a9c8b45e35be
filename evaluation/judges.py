"""What a protocol must be able to say of pictures, and the toybox's way of saying it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from conceptry.bases import FAMILY_BY_ID, FamilyId
from conceptry.errors import UsageError
from conceptry.evaluation.protocols import Prompt, ProtocolRow
from conceptry.evaluation.references import Pictures, References
from conceptry.evaluation.second_scorer import SecondScorer
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.scorer import Reading, Scorer, as_pixels

SECOND: Final = "identity_second"
_COARSE_PIXELS: Final = 16
_KEPT_ROWS: Final = 16
Values = NDArray[np.float64]


class Judge(Protocol):
    """Measures pictures against the references of one concept, under one protocol; one value for each picture."""

    protocol: str

    def measure_identity(self, pictures: Pictures) -> Values:
        """Likeness with the references, 1 for the same thing."""

    def measure_others(self, pictures: Pictures) -> Mapping[str, Values]:
        """Further likenesses of the protocol, by name."""

    def measure_prompts(
        self, prompts: Sequence[Prompt], pictures: Pictures, superclass: str | None
    ) -> Values:
        """How far each picture shows what its prompt asks for."""

    def measure_spread(self, pictures: Pictures) -> Values:
        """Mean distance of each picture to the others, 0 where all are one picture."""

    def measure_novelty(self, pictures: Pictures) -> Values | None:
        """1 where the background is none of the training pictures', 0 where it is; None where that is not known."""

    def find_ceiling(self, vae: Any) -> tuple[Pictures, Pictures]:
        """Held-out pictures of the thing, through the base's autoencoder and as they are."""


class ToyboxJudge:
    """Protocol ``toybox-1``: the bundled scorer reads objects, backgrounds, positions, styles and identities."""

    protocol = "toybox-1"

    def __init__(self, scorer: Scorer, truth: References) -> None:
        self.scorer, self.truth = scorer, truth
        instance = truth.subject == "instance"
        self.prototype = (scorer.prototype if instance else scorer.style_prototype)(truth.reference)
        self._second = SecondScorer(scorer) if instance else None
        self._second_prototype = self._second.prototype(truth.reference) if self._second else None
        self._readings: dict[int, tuple[Pictures, list[Reading]]] = {}
        self._seen = (
            None
            if truth.training is None
            else frozenset(reading.background for reading in scorer.read(truth.training))
        )

    def _read(self, pictures: Pictures) -> list[Reading]:
        """Reads a row of pictures once, however many measures ask for it."""
        known = self._readings.get(id(pictures))
        if known is None:
            while len(self._readings) >= _KEPT_ROWS:
                del self._readings[next(iter(self._readings))]
            known = self._readings[id(pictures)] = (pictures, self.scorer.read(pictures))
        return known[1]

    def measure_identity(self, pictures: Pictures) -> Values:
        """Returns for each picture the best object's cosine with the instance, or its style's with the style."""
        if self.truth.subject == "style":
            likeness = [float(one.style_embedding @ self.prototype) for one in self._read(pictures)]
        else:
            likeness = [
                max(float(found.embedding @ self.prototype) for found in one.objects)
                for one in self._read(pictures)
            ]
        return np.asarray(likeness)

    def measure_others(self, pictures: Pictures) -> Mapping[str, Values]:
        """Returns for instances what a scorer without learned weights says, which guards against the first's taste."""
        if self._second is None or self._second_prototype is None:
            return {}
        return {SECOND: self._second.identity(pictures, self._second_prototype, self._read(pictures))}

    def measure_prompts(
        self, prompts: Sequence[Prompt], pictures: Pictures, superclass: str | None
    ) -> Values:
        """Returns for each picture the share of what its prompt asks for that the scorer found."""
        readings = self._read(pictures)
        return np.asarray([check_reading(prompt, one) for prompt, one in zip(prompts, readings, strict=True)])

    def measure_spread(self, pictures: Pictures) -> Values:
        """Returns mean absolute differences of coarse pictures (16 by 16 pixels, in [0, 1])."""
        pixels = as_pixels(pictures)
        factor = max(1, pixels.shape[-1] // _COARSE_PIXELS)
        coarse = pixels.unfold(2, factor, factor).unfold(3, factor, factor).mean((-1, -2)) / 2
        return mean_distances([row.flatten().numpy().astype(np.float64) for row in coarse], _mean_difference)

    def measure_novelty(self, pictures: Pictures) -> Values | None:
        """Returns 1 for each picture whose background is none of the training pictures'."""
        if self._seen is None:
            return None
        return np.asarray([float(one.background not in self._seen) for one in self._read(pictures)])

    def find_ceiling(self, vae: Any) -> tuple[Pictures, Pictures]:
        """Returns the held-out pictures through ``vae`` and as they are."""
        pixels = as_pixels(self.truth.ceiling).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return round_trip(vae, pixels), self.truth.ceiling


def make_judge(
    row: ProtocolRow, truth: References, *, family: FamilyId, models: Mapping[str, str] | None = None
) -> Judge:
    """Returns what measures under a protocol.

    Args:
        row: the protocol.
        truth: the references.
        family: of the base that draws.
        models: where the models lie that the protocol needs, by its names for them.

    Raises:
        UsageError: if the protocol cannot read pictures of that base, or a model is not named.
        NotFoundError: if a model or the scorer is not on this machine.
        InvalidFileError: if a model cannot be read.
    """
    if row.family is not None and row.family != family:
        raise UsageError(
            f"protocol {row.id} reads pictures of {FAMILY_BY_ID[row.family].title} only, not of "
            f"{FAMILY_BY_ID[family].title}",
            hint="concepts eval --protocol clip-dino --clip DIR --dino DIR measures any base",
        )
    missing = [name for name in row.needs if not (models or {}).get(name)]
    if missing:
        raise UsageError(
            f"protocol {row.id} needs {' and '.join(f'--{name}' for name in missing)}",
            hint="name folders with transformers models; none is ever fetched",
        )
    if not row.needs:
        return ToyboxJudge(Scorer.load(), truth)
    from conceptry.evaluation.clip_dino import ClipDinoJudge, load_models

    given = models or {}
    return ClipDinoJudge(load_models(Path(given["clip"]), Path(given["dino"])), truth)


def check_reading(prompt: Prompt, reading: Reading) -> float:
    """Returns the share of what ``prompt`` asks for that the scorer found; 1 where it asks for nothing."""
    answers: list[bool] = []
    if prompt.background is not None:
        answers.append(reading.background == prompt.background)
    if prompt.position is not None:
        answers.append(reading.position == prompt.position)
    if prompt.kind is not None:
        answers.append(any(found.kind == prompt.kind for found in reading.objects))
    if prompt.style is not None:
        answers.append(reading.style == prompt.style)
    if prompt.objects is not None:
        answers.append(len(reading.objects) == prompt.objects)
    return float(np.mean(answers)) if answers else 1.0


def mean_distances(vectors: Sequence[Values], distance: Callable[[Values, Values], float]) -> Values:
    """Returns for each vector its mean distance to the others; nothing for fewer than two."""
    count = len(vectors)
    if count < 2:
        return np.zeros(0)
    table = np.asarray([[distance(one, other) for other in vectors] for one in vectors])
    return np.asarray(table.sum(axis=1) / (count - 1))


def _mean_difference(one: Values, other: Values) -> float:
    return float(np.abs(one - other).mean())
