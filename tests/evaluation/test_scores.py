"""Scores: normalised between floor and ceiling, with intervals that hold what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from conceptry.evaluation.scores import ConceptScores, IdentityScore, PromptScore, bootstrap_interval


def make_identity(score: float, floor: float, ceiling: float) -> IdentityScore:
    return IdentityScore(score=score, floor=floor, ceiling=ceiling, ceiling_raw=1.0, interval=(score, score))


@pytest.mark.parametrize(
    ("score", "floor", "ceiling", "expected"),
    [(0.3, 0.3, 0.9, 0.0), (0.9, 0.3, 0.9, 1.0), (0.6, 0.3, 0.9, 0.5)],
)
def test_identity_is_normalised_between_floor_and_ceiling(
    score: float, floor: float, ceiling: float, expected: float
) -> None:
    assert make_identity(score, floor, ceiling).normalised == pytest.approx(expected)


def test_a_ceiling_below_the_floor_gives_no_number_instead_of_a_wrong_one() -> None:
    assert np.isnan(make_identity(0.5, 0.9, 0.8).normalised)


def test_the_interval_of_equal_values_is_that_value() -> None:
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(size=40), seed=trial) for trial in range(200)]
    assert 0.88 < np.mean([low <= 0.0 <= high for low, high in intervals]) <= 1.0


def test_an_interval_of_nothing_is_not_a_number() -> None:
    assert all(np.isnan(bootstrap_interval([])))


def test_scores_print_as_plain_json() -> None:
    scores = ConceptScores(
        protocol="toybox-1",
        pictures=4,
        identity=make_identity(0.6, 0.3, 0.9),
        prompt=PromptScore(score=0.8, base=0.9, floor=0.1, interval=(0.7, 0.9)),
    )
    document = scores.to_json()
    assert document["identity"]["normalised"] == pytest.approx(0.5)
    assert document["prompt"]["normalised"] == pytest.approx(0.875)
    assert (document["prompt"]["score"], document["prompt"]["base"]) == (0.8, 0.9)
    assert document["diversity"] is None
