"""``examine_concept``: what a protocol measures on one concept, and the pictures that it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.fingerprints import find_pipeline_family
from conceptry.concepts import Concept
from conceptry.evaluation.examination import (
    FIRST_SEED,
    PLAIN_PICTURES,
    SUPERCLASS_PICTURES,
    Candidate,
    Drawing,
    Examination,
    OnProgress,
    Plan,
    examine,
)
from conceptry.evaluation.judges import check_reading, make_judge
from conceptry.evaluation.protocols import PROTOCOL, Subject, find_protocol, load_plain_prompt, load_prompts
from conceptry.evaluation.references import find_references
from conceptry.evaluation.scores import ConceptScores

__all__ = ["ExamOptions", "check_reading", "evaluate_concept", "examine_concept", "find_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamOptions:
    """How a concept is examined."""

    protocol: str = PROTOCOL
    references: Path | None = None
    """A folder of held-out pictures, where the manifest names no toybox instance."""

    subject: Subject = "instance"
    """What the pictures of ``references`` share."""

    training: Path | None = None
    """The folder that it was taught from, whose backgrounds could leak; renders need none."""

    models: Mapping[str, str] | None = None
    """Where the models of the protocol lie."""

    pictures_per_prompt: int | None = None
    """None takes the protocol's."""

    strength: float | None = None
    """None takes what the manifest recommends."""

    steps: int | None = None
    """Denoising steps; None takes what is usual for the base."""

    seed: int = FIRST_SEED
    thorough: bool = True
    """Whether preservation, diversity and leakage are measured too, which takes further pictures."""


def examine_concept(
    concept: Concept,
    pipeline: Any,
    options: ExamOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Examination:
    """Returns the concept's scores and pictures on ``pipeline``, which is as before afterwards.

    Raises:
        UsageError: for an unknown protocol, one that cannot read this base, or too few pictures to compare with.
        NotFoundError: if the scorer or a model is not on this machine.
        IncompatibleError: if the concept does not fit the pipeline.
    """
    chosen = options or ExamOptions()
    row, family = find_protocol(chosen.protocol), find_pipeline_family(pipeline)
    truth = find_references(
        concept.manifest, chosen.references, subject=chosen.subject, training=chosen.training
    )
    judge = make_judge(row, truth, family=family, models=chosen.models)
    word, superclass = find_words(concept)
    strength = concept.manifest.usage.strength if chosen.strength is None else chosen.strength
    drawing = Drawing.of_family(family)
    count = chosen.pictures_per_prompt or row.pictures_per_prompt
    plan = Plan(
        prompts=tuple(one for one in load_prompts(truth.subject, row.id) for _ in range(count)),
        plain=load_plain_prompt(truth.subject, row.id),
        drawing=drawing if chosen.steps is None else replace(drawing, steps=chosen.steps),
        plain_pictures=PLAIN_PICTURES if chosen.thorough else 0,
        superclass_pictures=SUPERCLASS_PICTURES if chosen.thorough else 0,
        first_seed=chosen.seed,
    )
    candidate = Candidate(
        word=word, superclass=superclass, attach=lambda: attach(Composition(concept * strength), pipeline)
    )
    return examine(candidate, pipeline, judge, plan, on_progress=on_progress)


def evaluate_concept(
    concept: Concept,
    pipeline: Any,
    options: ExamOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> ConceptScores:
    """Returns the scores of ``examine_concept`` alone. Raises as it does."""
    return examine_concept(concept, pipeline, options, on_progress=on_progress).scores


def find_words(concept: Concept) -> tuple[str, str | None]:
    """Returns how prompts call the concept, and its superclass: "<x>", or "<x> creature" where it was taught so."""
    token = next((token for token in concept.manifest.tokens if token.role != "negative"), None)
    if token is None:
        return "", None
    both = f"{token.placeholder} {token.superclass}"
    named = token.vectors == 0 or any(both in prompt for prompt in concept.manifest.usage.prompts)
    return (both if named and token.superclass is not None else token.placeholder), token.superclass
