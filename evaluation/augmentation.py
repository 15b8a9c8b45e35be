"""Do generated pictures help a classifier that has few of a rare class? Balanced accuracy with and without them.

The question of surveys of such augmentation (a rare class of skin pictures: 79.9 to 88.7 % balanced accuracy). What a
classifier is given is one frozen row of ``ARMS``; every row is trained on the same splits from the same first weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from conceptry.evaluation.class_pictures import ClassPictures, Split
from conceptry.evaluation.classifiers import fit, measure_recalls, prepare
from conceptry.evaluation.protocols import PROTOCOL, Prompt, load_prompts
from conceptry.evaluation.scores import mean_interval
from conceptry.evaluation.use_context import DRAWERS, FIRST_SEED, Artist, Who
from conceptry.evaluation.use_results import OnStep, Strip, UseResult, as_rows, make_figures
from conceptry.toybox.vocabulary import BACKGROUNDS, POSITION_PHRASES

Source = Literal["none", "base", "concept"]
COLUMNS: Final = (
    "training",
    "rare pictures",
    "balanced accuracy",
    "95 %",
    "recall of the rare class",
    "gain",
    "gain 95 %",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train the classifier."""

    id: str
    title: str
    source: Source = "none"
    """Who draws the further pictures of the rare class."""

    balanced: bool = False
    """Whether the rare class is drawn as often as the others."""


ARMS: Final[tuple[Arm, ...]] = (
    Arm(id="real", title="real pictures alone"),
    Arm(id="repeated", title="real pictures, the rare ones repeated", balanced=True),
    Arm(id="base", title="real pictures and the base's", source="base"),
    Arm(id="concept", title="real pictures and the concept's", source="concept"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is drawn and trained."""

    pictures: int = 40
    """That are generated of the rare class."""

    seeds: int = 5
    steps: int = 300
    """Of each classifier's training."""

    first_seed: int = FIRST_SEED


def augment(classes: ClassPictures, artist: Artist, plan: Plan, on_step: OnStep) -> UseResult:
    """Returns for each row of ``ARMS`` what a classifier reaches, with intervals over seeds.

    Raises:
        IncompatibleError: if the concept does not fit the pipeline.
    """
    drawn = {who: draw_rare(artist, plan, who, on_step) for who in DRAWERS}
    scores = compare_arms(classes, drawn, plan, on_step)
    strips = [
        Strip(caption=f"real pictures of {classes.rare}", pictures=classes.rare_pictures),
        *(Strip(caption=f"drawn by the {source}", pictures=pictures) for source, pictures in drawn.items()),
    ]
    return UseResult(
        use="augment",
        title=f"A classifier with {len(classes.rare_pictures)} real pictures of {classes.rare}",
        columns=COLUMNS,
        rows=as_rows([_describe(one, scores[0], plan, len(classes.rare_pictures)) for one in scores]),
        facts={
            "rare class": classes.rare,
            "classes": len(classes.classes),
            "seeds": plan.seeds,
            "generated pictures": plan.pictures,
            "training steps of a classifier": plan.steps,
            "first seed": plan.first_seed,
        },
        remarks=(
            "Each seed divides the common classes anew and begins from other weights; the rare class's real "
            "pictures are always the same. The base draws the class's word, the concept its own, from the same noise. "
            "Intervals by Student's t over seeds; a gain is paired by seed.",
        ),
        strips=make_figures(strips),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmScore:
    """What one arm reached, seed by seed."""

    arm: Arm
    accuracies: tuple[float, ...]
    rare_recalls: tuple[float, ...]


def compare_arms(
    classes: ClassPictures, drawn: Mapping[Who, Sequence[Image.Image]], plan: Plan, on_step: OnStep
) -> tuple[ArmScore, ...]:
    """Returns the scores of all rows of ``ARMS`` in their order; ``drawn`` are pictures of the rare class by source."""
    count, rare = len(classes.classes), classes.classes.index(classes.rare)
    more: dict[str, Tensor] = {source: prepare(pictures) for source, pictures in drawn.items()}
    recalls: dict[str, list[Any]] = {arm.id: [] for arm in ARMS}
    for seed in range(plan.first_seed, plan.first_seed + plan.seeds):
        split = classes.split(seed)
        for arm in ARMS:
            on_step(f"classifier {seed - plan.first_seed + 1} of {plan.seeds}, {arm.title}")
            pictures, labels = _add(split, more.get(arm.source), rare)
            net = fit(pictures, labels, count, seed=seed, steps=plan.steps, balanced=arm.balanced)
            recalls[arm.id].append(measure_recalls(net, split.test, split.test_labels, count))
    return tuple(
        ArmScore(
            arm=arm,
            accuracies=tuple(float(one.mean()) for one in recalls[arm.id]),
            rare_recalls=tuple(float(one[rare]) for one in recalls[arm.id]),
        )
        for arm in ARMS
    )


def _add(split: Split, more: Tensor | None, rare: int) -> tuple[Tensor, Tensor]:
    if more is None or not len(more):
        return split.training, split.training_labels
    labels = torch.full((len(more),), rare)
    return torch.cat([split.training, more]), torch.cat([split.training_labels, labels])


def _describe(one: ArmScore, first: ArmScore, plan: Plan, real: int) -> tuple[Any, ...]:
    gains = np.subtract(one.accuracies, first.accuracies)
    is_first = one is first
    return (
        one.arm.title,
        real if one.arm.source == "none" else real + plan.pictures,
        float(np.mean(one.accuracies)),
        _bound(one.accuracies),
        float(np.mean(one.rare_recalls)),
        None if is_first else float(gains.mean()),
        None if is_first else _interval(gains),
    )


def _interval(values: Any) -> tuple[float, float] | None:
    """Of a single seed nothing can be said."""
    return mean_interval(values) if len(values) > 1 else None


def _bound(values: Any) -> tuple[float, float] | None:
    """The interval as far as an accuracy can be."""
    found = _interval(values)
    return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw_rare(artist: Artist, plan: Plan, who: Who, on_step: OnStep) -> list[Image.Image]:
    """Returns pictures of the rare class from varied prompts, by the concept or by the base with the class's word."""
    on_step(f"drawing {plan.pictures} pictures by the {who}")
    return artist.draw(vary_prompts(artist.protocol, plan.pictures), who, seed=plan.first_seed)


def vary_prompts(protocol: str, count: int) -> list[Prompt]:
    """Returns ``count`` prompts, each in other surroundings until all are used: of the toy world, all of its own."""
    if protocol != PROTOCOL:
        known = load_prompts("instance", protocol)
    else:
        # Backgrounds are sixteen and places five, so that eighty pairs come before one comes again.
        places, grounds = list(POSITION_PHRASES.values()), list(BACKGROUNDS.values())
        known = tuple(
            Prompt(text=f"a photo of {{}} {places[number % len(places)]} {grounds[number % len(grounds)]}")
            for number in range(len(places) * len(grounds))
        )
    return [known[number % len(known)] for number in range(count)]
