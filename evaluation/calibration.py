"""What the scorers' numbers are worth: read rates, false identities, graded changes, and whether two scorers agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from conceptry.bases import FamilyId
from conceptry.evaluation.examination import Drawing, draw_pictures
from conceptry.evaluation.identity_thresholds import Thresholds
from conceptry.evaluation.scores import correlate_ranks
from conceptry.evaluation.second_scorer import SecondScorer
from conceptry.evaluation.toybench import Suite
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.measures import measure_scorer
from conceptry.toybox.render import render
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.sampling import ATTRIBUTES, change_attribute, make_instance
from conceptry.toybox.scene import Instance
from conceptry.toybox.scorer import Scorer
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES

REFERENCES: Final = 24
GRADES: Final = (0, 1, 2, 4, 8)
_FIRST_INSTANCE: Final = 650_000
_FIRST_SEED: Final = 5_000
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the scorers' numbers are worth."""

    renders: dict[str, float]
    """Share of held-out renders that are read right, by what is read."""

    graded: tuple[float, ...]
    """Mean identity with 0, 1, 2, 4 and 8 attributes changed."""

    ordered: float
    """Share of instances whose identity falls from grade to grade throughout."""

    found: float | None
    """Share of held-out renders, through the autoencoder, that are taken for their own instance."""

    false_identity: float | None
    """Share of the base's own pictures of a class that are taken for an instance of the suite."""

    agreement: float
    """Rank correlation of the two scorers over pictures that differ in 0 to 8 attributes."""


def calibrate(
    suite: Suite, pipeline: Any | None, *, renders: int = 256, instances: int = 12, views: int = 4
) -> Calibration:
    """Returns the figures of the bundled scorer; without a pipeline those that need the base are None."""
    scorer = Scorer.load()
    read = measure_scorer(scorer, renders)
    first, second = grade_instances(scorer, instances=instances, views=views)
    means = first.mean(axis=(0, 2))
    falls = np.diff(first.mean(axis=2), axis=1) < 0
    found, false = (None, None) if pipeline is None else measure_false_identity(suite, scorer, pipeline)
    return Calibration(
        renders=read,
        graded=tuple(float(value) for value in means),
        ordered=float(falls.all(axis=1).mean()),
        found=found,
        false_identity=false,
        agreement=correlate_ranks(first.ravel(), second.ravel()),
    )


def grade_instances(
    scorer: Scorer, *, instances: int, views: int, references: int = REFERENCES
) -> tuple[Values, Values]:
    """Returns identities (instances, grades, views) by both scorers, of near-duplicates with ever more changes."""
    rng, second = np.random.default_rng(31), SecondScorer(scorer)
    rows: list[tuple[list[Values], list[Values]]] = []
    for number in range(instances):
        instance = make_instance(CLASSES[number % len(CLASSES)], _FIRST_INSTANCE + number)
        truth = render(instance_scenes(instance, references, part=1))
        one, other = scorer.prototype(truth), second.prototype(truth)
        pictures = [
            render(instance_scenes(changed, views, part=2)) for changed in change_by_grades(instance, rng)
        ]
        rows.append(
            (
                [scorer.identity(row, one).astype(np.float64) for row in pictures],
                [second.identity(row, other) for row in pictures],
            )
        )
    return np.asarray([row[0] for row in rows]), np.asarray([row[1] for row in rows])


def change_by_grades(instance: Instance, rng: np.random.Generator) -> list[Instance]:
    """Returns the instance with 0, 1, 2, 4 and 8 attributes changed, each one upon the last."""
    changed, made, rows = instance, 0, list[Instance]()
    order = rng.permutation(len(ATTRIBUTES))
    for grade in GRADES:
        for place in order[made:grade]:
            changed = change_attribute(changed, ATTRIBUTES[int(place)], rng)
        made = max(made, grade)
        rows.append(changed)
    return rows


def measure_false_identity(
    suite: Suite, scorer: Scorer, pipeline: Any, thresholds: Thresholds | None = None
) -> tuple[float, float]:
    """Returns how often held-out renders are taken for their own instance, and the base's pictures of its class are.

    By the thresholds of the multi-concept part, which come from renders of other instances: neither the pictures that
    are counted here nor the base has a part in them.
    """
    hits, errors = list[bool](), list[bool]()
    drawn: dict[str, list[Any]] = {}
    known = thresholds or Thresholds(scorer)
    for subject in suite.subjects:
        if subject.cls is None or subject.seed is None:
            continue
        if subject.cls not in drawn:
            texts = [f"a photo of a {subject.cls} {BACKGROUNDS[name]}" for name in list(BACKGROUNDS)[:8]]
            drawn[subject.cls] = draw_pictures(
                pipeline, texts, _FIRST_SEED, Drawing.of_family(FamilyId("toybox")), lambda count: None
            )
        instance = held_out_instance(subject.cls, subject.seed)
        prototype = scorer.prototype(render(instance_scenes(instance, REFERENCES, part=1)))
        seen = round_trip(pipeline.vae, render(instance_scenes(instance, 8, part=2)))
        own, other = scorer.identity(seen, prototype), scorer.identity(drawn[subject.cls], prototype)
        threshold = known.find(prototype, subject.cls)
        hits += list(own >= threshold)
        errors += list(other >= threshold)
    return float(np.mean(hits)), float(np.mean(errors))
