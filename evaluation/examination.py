"""An examination: what a concept draws and what the base draws alone, measured by a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from PIL import Image

from conceptry.bases import FamilyId
from conceptry.composer.generate import generate
from conceptry.evaluation.judges import Judge, Values
from conceptry.evaluation.protocols import Prompt
from conceptry.evaluation.scores import (
    ConceptScores,
    IdentityScore,
    Measure,
    PromptScore,
    bootstrap_interval,
)
from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS

PLAIN_PICTURES: Final = 8
SUPERCLASS_PICTURES: Final = 8
FIRST_SEED: Final = 7_000
_BATCH: Final = 8
_TOYBOX: Final = FamilyId("toybox")
_USUAL_STEPS: Final = 30
_USUAL_GUIDANCE: Final = 7.5
OnProgress = Callable[[int, int], None]
Role = Literal["concept", "plain", "superclass", "base", "base_plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How pictures are drawn: denoising steps and guidance."""

    steps: int
    guidance: float

    @classmethod
    def of_family(cls, family: FamilyId) -> Drawing:
        """Returns how bases of a family are usually drawn with."""
        if family == _TOYBOX:
            return cls(steps=INFERENCE_STEPS, guidance=GUIDANCE_SCALE)
        return cls(steps=_USUAL_STEPS, guidance=_USUAL_GUIDANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is drawn: each prompt once with a seed of its own, the plain prompt several times."""

    prompts: tuple[Prompt, ...]
    plain: Prompt
    drawing: Drawing
    plain_pictures: int = PLAIN_PICTURES
    """0 leaves diversity and leakage unmeasured."""

    superclass_pictures: int = SUPERCLASS_PICTURES
    """0 leaves preservation unmeasured."""

    first_seed: int = FIRST_SEED


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is examined: how prompts call it, and what puts it into the pipeline for the time of a block."""

    word: str
    superclass: str | None
    attach: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One picture of an examination, with what was measured on it."""

    role: Role
    prompt: str
    picture: Image.Image
    identity: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The scores, and the pictures that they were measured on."""

    scores: ConceptScores
    drawn: tuple[Drawn, ...]
    agreements: tuple[float, ...] = ()
    """Of the concept's pictures with their prompts, in the order of the plan."""

    base_agreements: tuple[float, ...] = ()


@dataclass(slots=True)
class BasePictures:
    """What a base draws alone, each row once: methods that are compared share it."""

    drawing: Drawing
    rows: dict[tuple[tuple[str, ...], int], list[Image.Image]] = field(default_factory=dict)

    def draw(
        self, pipeline: Any, prompts: Sequence[str], first_seed: int, tick: Callable[[int], None]
    ) -> list[Image.Image]:
        """Returns the row; ``tick`` is told how many pictures came."""
        key = (tuple(prompts), first_seed)
        if key not in self.rows:
            self.rows[key] = draw_pictures(pipeline, prompts, first_seed, self.drawing, tick)
        else:
            tick(len(prompts))
        return self.rows[key]


def draw_pictures(
    pipeline: Any, prompts: Sequence[str], first_seed: int, drawing: Drawing, tick: Callable[[int], None]
) -> list[Image.Image]:
    """Returns one picture for each prompt, from noise of its own seed; ``tick`` is told how many came."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), _BATCH):
        chunk = list(prompts[start : start + _BATCH])
        seeds = [first_seed + start + index for index in range(len(chunk))]
        pictures += generate(pipeline, chunk, seeds, steps=drawing.steps, guidance=drawing.guidance)
        tick(len(chunk))
    return pictures


def examine(
    candidate: Candidate,
    pipeline: Any,
    judge: Judge,
    plan: Plan,
    *,
    base: BasePictures | None = None,
    on_progress: OnProgress | None = None,
) -> Examination:
    """Returns the candidate's scores and pictures; the pipeline is as before afterwards.

    Args:
        candidate: what is examined.
        pipeline: an open pipeline, alone.
        judge: what measures.
        plan: what is drawn.
        base: rows that the base drew before.
        on_progress: is told how many pictures of how many are there.

    Raises:
        IncompatibleError: if the candidate does not fit the pipeline.
    """
    rows = _draw_rows(candidate, pipeline, plan, base or BasePictures(plan.drawing), on_progress)
    return _measure(rows, candidate, judge, plan, judge.find_ceiling(pipeline.vae))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    concept: list[Image.Image]
    plain: list[Image.Image]
    superclass: list[Image.Image]
    base: list[Image.Image]
    base_plain: list[Image.Image]


def _draw_rows(
    candidate: Candidate, pipeline: Any, plan: Plan, base: BasePictures, on_progress: OnProgress | None
) -> _Rows:
    plain, superclass = [plan.plain] * plan.plain_pictures, plan.prompts[: plan.superclass_pictures]
    total = 2 * len(plan.prompts) + 2 * len(plain) + len(superclass)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, total)

    def name_superclass(prompts: Sequence[Prompt]) -> list[str]:
        return [prompt.with_superclass(candidate.superclass) for prompt in prompts]

    def name_concept(prompts: Sequence[Prompt]) -> list[str]:
        return [prompt.with_concept(candidate.word) for prompt in prompts]

    own = base.draw(pipeline, name_superclass(plan.prompts), plan.first_seed, tick)
    own_plain = base.draw(pipeline, name_superclass(plain), plan.first_seed, tick)
    with candidate.attach():
        return _Rows(
            base=own,
            base_plain=own_plain,
            concept=draw_pictures(pipeline, name_concept(plan.prompts), plan.first_seed, plan.drawing, tick),
            plain=draw_pictures(pipeline, name_concept(plain), plan.first_seed, plan.drawing, tick),
            superclass=draw_pictures(
                pipeline, name_superclass(superclass), plan.first_seed, plan.drawing, tick
            ),
        )


def _measure(
    rows: _Rows, candidate: Candidate, judge: Judge, plan: Plan, ceiling: tuple[Any, Any]
) -> Examination:
    identity, floor = judge.measure_identity(rows.concept), judge.measure_identity(rows.base)
    best = float(judge.measure_identity(ceiling[0]).mean())
    agreements = judge.measure_prompts(plan.prompts, rows.concept, candidate.superclass)
    own = judge.measure_prompts(plan.prompts, rows.base, candidate.superclass)
    turned = [*plan.prompts[len(plan.prompts) // 2 :], *plan.prompts[: len(plan.prompts) // 2]]
    blind = judge.measure_prompts(turned, rows.base, candidate.superclass)
    scores = ConceptScores(
        protocol=judge.protocol,
        pictures=len(rows.concept),
        identity=IdentityScore(
            score=_mean(identity),
            floor=_mean(floor),
            ceiling=best,
            ceiling_raw=_mean(judge.measure_identity(ceiling[1])),
            interval=bootstrap_interval(identity),
        ),
        prompt=PromptScore(
            score=_mean(agreements),
            base=_mean(own),
            floor=_mean(blind),
            interval=bootstrap_interval(agreements),
        ),
        preservation=_measure_preservation(rows, judge, floor, best),
        diversity=_measure_diversity(rows, judge),
        leakage=_measure_leakage(rows, judge),
        others=_measure_others(rows, judge, ceiling[0]),
    )
    return Examination(
        scores=scores,
        drawn=tuple(_list_drawn(rows, candidate, plan, identity, agreements)),
        agreements=tuple(map(float, agreements)),
        base_agreements=tuple(map(float, own)),
    )


def _measure_preservation(rows: _Rows, judge: Judge, floor: Values, best: float) -> Measure | None:
    """Distance of superclass pictures from the concept: 1 as the base's, 0 where each shows the concept."""
    if not rows.superclass:
        return None
    distances = 1.0 - judge.measure_identity(rows.superclass)
    return Measure(
        score=_mean(distances),
        floor=1.0 - best,
        ceiling=1.0 - _mean(floor[: len(distances)]),
        interval=bootstrap_interval(distances),
    )


def _measure_diversity(rows: _Rows, judge: Judge) -> Measure | None:
    """Distances among pictures of one prompt: 0 for the same picture again, 1 as far apart as the base's."""
    if len(rows.plain) < 2:
        return None
    spread = judge.measure_spread(rows.plain)
    return Measure(
        score=_mean(spread),
        floor=0.0,
        ceiling=_mean(judge.measure_spread(rows.base_plain)),
        interval=bootstrap_interval(spread),
    )


def _measure_leakage(rows: _Rows, judge: Judge) -> Measure | None:
    """Share of pictures, asked for no background, that show none of the training pictures'."""
    novel, own = judge.measure_novelty(rows.plain), judge.measure_novelty(rows.base_plain)
    if novel is None or own is None or not len(novel):
        return None
    return Measure(score=_mean(novel), floor=0.0, ceiling=_mean(own), interval=bootstrap_interval(novel))


def _measure_others(rows: _Rows, judge: Judge, ceiling: Any) -> Mapping[str, Measure]:
    own, best = judge.measure_others(rows.base), judge.measure_others(ceiling)
    return {
        name: Measure(
            score=_mean(values),
            floor=_mean(own[name]),
            ceiling=_mean(best[name]),
            interval=bootstrap_interval(values),
        )
        for name, values in judge.measure_others(rows.concept).items()
    }


def _list_drawn(
    rows: _Rows, candidate: Candidate, plan: Plan, identity: Values, agreements: Values
) -> list[Drawn]:
    drawn = [
        Drawn(
            role="concept",
            prompt=prompt.with_concept(candidate.word),
            picture=picture,
            identity=float(likeness),
            agreement=float(share),
        )
        for prompt, picture, likeness, share in zip(
            plan.prompts, rows.concept, identity, agreements, strict=True
        )
    ]
    word, superclass = plan.plain.with_concept(candidate.word), candidate.superclass
    named: tuple[tuple[Role, list[Image.Image], list[str]], ...] = (
        ("plain", rows.plain, [word] * len(rows.plain)),
        ("superclass", rows.superclass, [one.with_superclass(superclass) for one in plan.prompts]),
        ("base", rows.base, [one.with_superclass(superclass) for one in plan.prompts]),
    )
    for role, pictures, prompts in named:
        drawn += [
            Drawn(role=role, prompt=prompt, picture=picture)
            for prompt, picture in zip(prompts, pictures, strict=False)
        ]
    return drawn


def _mean(values: Values) -> float:
    return float(np.mean(values))
