"""Protocol toybox-1 on a base whose pictures are known: each measure moves with what it measures, and no other does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from conceptry.bases import FamilyId
from conceptry.errors import UsageError
from conceptry.evaluation.examination import BasePictures, Candidate, Drawing, Examination, Plan, examine
from conceptry.evaluation.judges import ToyboxJudge, make_judge
from conceptry.evaluation.protocols import find_protocol, load_plain_prompt, load_prompts
from conceptry.evaluation.references import References
from conceptry.evaluation.scores import Measure
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.scorer import Scorer
from tests.evaluation import painters
from tests.evaluation.painters import Behaviour, Painter

IMP = held_out_instance("creature", 7)
PLAN = Plan(
    prompts=load_prompts("instance")[4:9],
    plain=load_plain_prompt("instance"),
    drawing=Drawing(steps=1, guidance=1.0),
    plain_pictures=5,
    superclass_pictures=4,
)
Examine = Callable[[Behaviour], Examination]


@pytest.fixture(scope="module")
def judge() -> ToyboxJudge:
    parts = [render(instance_scenes(IMP, 12, part=part)) for part in (1, 2)]
    beach = [replace(scene, background="beach") for scene in instance_scenes(IMP, 4)]
    truth = References(subject="instance", reference=parts[0], ceiling=parts[1], training=render(beach))
    return ToyboxJudge(Scorer.load(), truth)


@pytest.fixture(scope="module")
def look(judge: ToyboxJudge) -> Examine:
    def examine_behaviour(behaviour: Behaviour) -> Examination:
        painter = Painter(IMP)
        candidate = Candidate(
            word=painters.WORD, superclass="creature", attach=lambda: painter.attached(behaviour)
        )
        return examine(candidate, painter, judge, PLAN)

    return examine_behaviour


@pytest.fixture(scope="module")
def good(look: Examine) -> Examination:
    return look(painters.follow)


def test_a_concept_that_does_all_that_is_asked_reaches_the_ceilings(good: Examination) -> None:
    for name, measure in good.scores.list_measures().items():
        assert measure.interval[0] <= measure.score <= measure.interval[1], name
        assert measure.interval[1] >= (measure.ceiling if isinstance(measure, Measure) else measure.base), (
            name
        )
        assert measure.interval[0] > measure.floor, name


def test_a_concept_that_changes_nothing_stays_at_the_floor_of_identity(look: Examine) -> None:
    scores = look(painters.ignore).scores
    assert abs(scores.identity.normalised) < 0.1
    assert scores.prompt.normalised == pytest.approx(1.0)


def test_prompts_are_scored_from_what_pictures_of_other_prompts_reach_by_chance(judge: ToyboxJudge) -> None:
    painter = Painter(IMP)
    candidate = Candidate(
        word=painters.WORD, superclass="creature", attach=lambda: painter.attached(painters.follow)
    )
    first, second, third = PLAN.prompts[:3]
    asked = (
        first,
        second,
        first,
        third,
    )  # the half of them that comes next asks two pictures for what they show
    plan = replace(PLAN, prompts=asked, plain_pictures=0, superclass_pictures=0)
    found = examine(candidate, painter, judge, plan)
    shown = [one.picture for one in found.drawn if one.role == "base"]
    prompt = found.scores.prompt
    by_chance = judge.measure_prompts((*asked[2:], *asked[:2]), shown, "creature")
    assert prompt.floor == pytest.approx(float(by_chance.mean()))
    assert 0.5 <= prompt.floor < prompt.base == prompt.score


def test_the_ceiling_is_what_the_autoencoder_leaves_of_real_pictures(judge: ToyboxJudge) -> None:
    painter = Painter(IMP)
    painter.vae = painters.Blurring()
    candidate = Candidate(
        word=painters.WORD, superclass="creature", attach=lambda: painter.attached(painters.follow)
    )
    plan = replace(PLAN, prompts=PLAN.prompts[:1], plain_pictures=0, superclass_pictures=0)
    identity = examine(candidate, painter, judge, plan).scores.identity
    seen = round_trip(painter.vae, np.asarray(judge.truth.ceiling))
    assert identity.ceiling == pytest.approx(float(judge.measure_identity(seen).mean()))
    assert identity.ceiling_raw == pytest.approx(float(judge.measure_identity(judge.truth.ceiling).mean()))
    assert identity.ceiling < identity.ceiling_raw - 0.05


@pytest.mark.parametrize(
    ("behaviour", "fallen"),
    [
        (painters.forget, "preservation"),
        (painters.leak, "leakage"),
        (painters.collapse, "diversity"),
        (painters.stay_on_the_beach, "prompt"),
    ],
)
def test_each_fault_shows_in_its_own_measure(
    look: Examine, good: Examination, behaviour: Behaviour, fallen: str
) -> None:
    scores = look(behaviour).scores
    measures, ideal = scores.list_measures(), good.scores.list_measures()
    assert measures[fallen].normalised < 0.25
    assert measures[fallen].interval[1] < ideal[fallen].interval[0]
    assert scores.identity.normalised > 0.85


def test_equal_seeds_give_equal_scores_and_another_seed_other_pictures(
    look: Examine, good: Examination
) -> None:
    again = look(painters.follow)
    assert again.scores == good.scores
    assert all(
        np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
        for one, other in zip(again.drawn, good.drawn, strict=True)
    )


def test_every_picture_of_the_concept_carries_what_was_measured_on_it(good: Examination) -> None:
    rows = [one for one in good.drawn if one.role == "concept"]
    assert [one.prompt for one in rows] == [prompt.with_concept(painters.WORD) for prompt in PLAN.prompts]
    assert np.mean([one.identity for one in rows if one.identity]) == pytest.approx(
        good.scores.identity.score
    )


def test_what_the_base_draws_is_drawn_once_for_all_that_are_compared(judge: ToyboxJudge) -> None:
    painter, base = Painter(IMP), BasePictures(PLAN.drawing)
    candidate = Candidate(
        word=painters.WORD, superclass="creature", attach=lambda: painter.attached(painters.follow)
    )
    plan = replace(PLAN, plain_pictures=0, superclass_pictures=0)
    first = examine(candidate, painter, judge, plan, base=base)
    before = painter.calls
    second = examine(candidate, painter, judge, plan, base=base)
    assert painter.calls - before == 1
    assert first.scores == second.scores
    assert (first.scores.preservation, first.scores.diversity, first.scores.leakage) == (None, None, None)


def test_the_scorer_of_the_toy_world_is_not_asked_about_other_bases(judge: ToyboxJudge) -> None:
    with pytest.raises(UsageError, match="not of Stable Diffusion 1") as caught:
        make_judge(find_protocol("toybox-1"), judge.truth, family=FamilyId("sd1"))
    assert "clip-dino" in str(caught.value.hint)


def test_a_protocol_whose_models_are_not_named_says_which(judge: ToyboxJudge) -> None:
    with pytest.raises(UsageError, match="needs --dino"):
        make_judge(find_protocol("clip-dino"), judge.truth, family=FamilyId("sd1"), models={"clip": "x"})


def test_a_protocol_that_is_not_known_is_named() -> None:
    with pytest.raises(UsageError, match="no protocol is called 'toybox-2'") as caught:
        find_protocol("toybox-2")
    assert caught.value.hint == "did you mean 'toybox-1'?"
