"""What the scorers' numbers are worth: near-duplicates are ordered, and a scorer of another kind agrees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conceptry.evaluation.calibration import (
    GRADES,
    change_by_grades,
    grade_instances,
    measure_false_identity,
)
from conceptry.evaluation.identity_thresholds import Thresholds
from conceptry.evaluation.scores import correlate_ranks
from conceptry.evaluation.toybench import load_suite
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.sampling import ATTRIBUTES, make_instance
from conceptry.toybox.scene import Instance, Scene
from conceptry.toybox.scorer import Scorer
from tests.evaluation import painters
from tests.evaluation.painters import Painter


@pytest.fixture(scope="module")
def graded() -> tuple[Any, Any]:
    return grade_instances(Scorer.load(), instances=5, views=2, references=8)


def test_identity_falls_with_every_further_change_of_a_near_duplicate(graded: tuple[Any, Any]) -> None:
    first, _ = graded
    means = first.mean(axis=(0, 2))
    assert len(means) == len(GRADES)
    assert (np.diff(means) < 0).all()
    assert first[:, 0].mean() - first[:, 1].mean() > 0.02


def test_a_scorer_of_another_kind_orders_them_alike(graded: tuple[Any, Any]) -> None:
    first, second = graded
    assert (np.diff(second.mean(axis=(0, 2))) < 0).all()
    assert correlate_ranks(first.ravel(), second.ravel()) > 0.5


def test_grades_change_as_many_attributes_as_they_say() -> None:
    instance = make_instance("creature", 3)
    rows = change_by_grades(instance, np.random.default_rng(0))

    def count(one: Instance) -> int:
        simple = sum(
            getattr(one, name) != getattr(instance, name)
            for name in ("color", "second", "pattern", "width", "build")
        )
        details = sum(a != b for a, b in zip(one.details, instance.details, strict=True))
        return int(simple) + int(details)

    assert rows[0] == instance
    assert [count(row) for row in rows] == list(GRADES)
    assert max(GRADES) == len(ATTRIBUTES)


def test_ranks_correlate_as_spearman_says() -> None:
    assert correlate_ranks([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0]) == pytest.approx(1.0)
    assert correlate_ranks([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert correlate_ranks([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486832980505138)


def test_a_base_that_draws_the_taught_thing_by_itself_counts_as_false_identity() -> None:
    suite = replace(load_suite(), subjects=load_suite().subjects[:1])
    painter = Painter(held_out_instance("creature", 20))
    scorer = Scorer.load()
    few = Thresholds(scorer, others=30)
    assert measure_false_identity(suite, scorer, painter, few) == (1.0, 0.0)
    with painter.attached(half_forget):
        found, false = measure_false_identity(suite, scorer, painter, few)
    assert (found, false) == (1.0, 0.5)


def test_a_threshold_is_reached_by_one_in_a_hundred_other_things_and_by_every_render_of_its_own() -> None:
    scorer = Scorer.load()
    thresholds, own, other = Thresholds(scorer, others=100), list[bool](), list[bool]()
    scenes = [instance_scenes(make_instance("creature", 720_000 + n), 1, part=2)[0] for n in range(40)]
    strangers = [reading.objects for reading in scorer.read(render(scenes))]
    for seed in (20, 21):
        instance = held_out_instance("creature", seed)
        prototype = scorer.prototype(render(instance_scenes(instance, 8, part=1)))
        threshold = thresholds.find(prototype, "creature")
        own += list(scorer.identity(render(instance_scenes(instance, 8, part=2)), prototype) >= threshold)
        other += [max(float(one.embedding @ prototype) for one in row) >= threshold for row in strangers]
    assert np.mean(own) >= 0.99
    assert np.mean(other) < 0.02


def half_forget(painter: Painter, prompt: str, seed: int) -> Scene:
    """Draws the taught instance for every second seed."""
    return (painters.forget if seed % 2 else painters.follow)(painter, prompt, seed)
