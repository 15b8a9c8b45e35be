"""``evaluate_concept``: identity and prompt agreement of one concept under protocol ``toybox-1``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.generate import generate
from conceptry.concepts import Concept
from conceptry.evaluation.protocols import PROTOCOL, Prompt, load_prompts
from conceptry.evaluation.references import References, find_references
from conceptry.evaluation.scores import ConceptScores, IdentityScore, PromptScore, bootstrap_interval
from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.scorer import Reading, Scorer

PICTURES_PER_PROMPT: Final = 2
_FIRST_SEED: Final = 7_000
OnProgress = Callable[[int, int], None]
Scores = NDArray[np.float32]


def evaluate_concept(
    concept: Concept,
    pipeline: Any,
    *,
    references: Path | None = None,
    pictures_per_prompt: int = PICTURES_PER_PROMPT,
    strength: float | None = None,
    on_progress: OnProgress | None = None,
) -> ConceptScores:
    """Returns the concept's scores on ``pipeline``, which is as before afterwards.

    Args:
        concept: the concept, made for the toybox base.
        pipeline: an open toybox pipeline.
        references: a folder of held-out pictures, where the manifest names no toybox instance.
        pictures_per_prompt: pictures of each prompt, by the concept and by the base alone.
        strength: None takes the strength that the manifest recommends.
        on_progress: is told how many pictures of how many are drawn.

    Raises:
        UsageError: if there is nothing to compare with.
        IncompatibleError: if the concept does not fit the pipeline.
    """
    truth = find_references(concept.manifest, references)
    scorer = Scorer.load()
    prompts = [prompt for prompt in load_prompts(truth.subject) for _ in range(pictures_per_prompt)]
    draw = _Drawer(pipeline, len(prompts), on_progress)
    word, superclass = find_words(concept)
    base_pictures = draw([prompt.with_superclass(superclass) for prompt in prompts])
    with attach(
        Composition(concept * (concept.manifest.usage.strength if strength is None else strength)), pipeline
    ):
        pictures = draw([prompt.with_concept(word) for prompt in prompts])
    return ConceptScores(
        protocol=PROTOCOL,
        pictures=len(pictures),
        identity=_measure_identity(scorer, truth, pictures, base_pictures, pipeline.vae),
        prompt=_measure_prompts(scorer, prompts, pictures, base_pictures),
    )


def find_words(concept: Concept) -> tuple[str, str | None]:
    """Returns how prompts call the concept, and its superclass: "<x>", or "<x> creature" for plain-text kinds."""
    token = next((token for token in concept.manifest.tokens if token.role != "negative"), None)
    if token is None:
        return "", None
    plain = token.vectors == 0 and token.superclass is not None
    return (f"{token.placeholder} {token.superclass}" if plain else token.placeholder), token.superclass


class _Drawer:
    """Draws prompts with one seed each, equal for the concept and the base, and counts."""

    def __init__(self, pipeline: Any, prompts: int, on_progress: OnProgress | None) -> None:
        self._pipeline, self._total, self._on_progress = pipeline, 2 * prompts, on_progress
        self._done = 0

    def __call__(self, prompts: Sequence[str]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), 8):
            chunk = list(prompts[start : start + 8])
            seeds = [_FIRST_SEED + start + index for index in range(len(chunk))]
            pictures += generate(self._pipeline, chunk, seeds, steps=INFERENCE_STEPS, guidance=GUIDANCE_SCALE)
            self._done += len(chunk)
            if self._on_progress:
                self._on_progress(self._done, self._total)
        return pictures


def _measure_identity(
    scorer: Scorer, truth: References, pictures: list[Image.Image], base: list[Image.Image], vae: Any
) -> IdentityScore:
    if truth.subject == "instance":
        prototype, measure = scorer.prototype(truth.reference), scorer.identity
    else:
        prototype, measure = scorer.style_prototype(truth.reference), scorer.style
    scores = measure(pictures, prototype)
    return IdentityScore(
        score=_mean(scores),
        floor=_mean(measure(base, prototype)),
        ceiling=_mean(measure(round_trip(vae, truth.ceiling), prototype)),
        ceiling_raw=_mean(measure(truth.ceiling, prototype)),
        interval=bootstrap_interval(scores.astype(np.float64)),
    )


def _measure_prompts(
    scorer: Scorer, prompts: Sequence[Prompt], pictures: list[Image.Image], base: list[Image.Image]
) -> PromptScore:
    shares = [check_reading(prompt, one) for prompt, one in zip(prompts, scorer.read(pictures), strict=True)]
    own = [check_reading(prompt, one) for prompt, one in zip(prompts, scorer.read(base), strict=True)]
    return PromptScore(
        score=float(np.mean(shares)), base=float(np.mean(own)), interval=bootstrap_interval(shares)
    )


def check_reading(prompt: Prompt, reading: Reading) -> float:
    """Returns the share of what ``prompt`` asks for that the scorer found."""
    answers: list[bool] = []
    if prompt.background is not None:
        answers.append(reading.background == prompt.background)
    if prompt.position is not None:
        answers.append(reading.position == prompt.position)
    if prompt.kind is not None:
        answers.append(any(found.kind == prompt.kind for found in reading.objects))
    return float(np.mean(answers))


def _mean(scores: Scores) -> float:
    return float(np.mean(scores))
