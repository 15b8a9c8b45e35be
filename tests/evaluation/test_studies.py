"""Studies that claims ask for, on a small real base: their figures lie where the summary reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conceptry.bases import FamilyId
from conceptry.evaluation.bench_running import Bench, BenchOptions
from conceptry.evaluation.claims import Numbers, judge_claims, load_claims
from conceptry.evaluation.loss_study import METHOD, Moment, correlate_losses, follow_training, plan_length
from conceptry.evaluation.moved_weights import MATRICES, OTHER, study_moves
from conceptry.evaluation.toybench import list_own_subjects, load_suite
from conceptry.trainer.jobs import resolve
from conceptry.trainer.methods import find_trainer
from tests.evaluation.models import save_models
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import paint_pictures

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' remarks


def moment(steps: int, raw: float, fixed: float, identity: float) -> Moment:
    return Moment(steps=steps, raw_loss=raw, fixed_loss=fixed, identity=identity)


def test_a_loss_follows_identity_where_it_falls_as_identity_rises() -> None:
    rows = [
        moment(5, 0.3, 0.9, 0.1),
        moment(10, 0.5, 0.8, 0.2),
        moment(20, 0.2, 0.7, 0.4),
        moment(40, 0.4, 0.6, 0.5),
    ]
    found = correlate_losses(rows)
    assert found["fixed_loss_follows_identity"] == pytest.approx(1.0)
    assert found["raw_loss_follows_identity"] == pytest.approx(0.0, abs=0.25)
    assert set(correlate_losses(rows[:1]).values()) == {0.0}


def test_the_figures_of_studies_answer_their_claims(tmp_path: Path) -> None:
    paint_pictures(tmp_path / "subjects" / "cat-1", 4)
    save_models(tmp_path / "models")
    options = BenchOptions(
        out=tmp_path / "results",
        workdir=tmp_path / "work",
        protocol="clip-dino",
        models={name: str(tmp_path / "models" / name) for name in ("clip", "dino")},
        sample_passes=4,
        steps=1,
    )
    bench = Bench(load_suite(), make_pipeline("sd1"), options)
    subjects = list_own_subjects(tmp_path / "subjects")
    moves = study_moves(bench, subjects, str)
    assert set(moves) == {*MATRICES, OTHER}
    assert min(value for row in moves.values() for value in row.values()) > 0
    assert all(set(row) == {subjects[0].id} for row in moves.values())
    short, long = follow_training(bench, subjects[0], lengths=(1, 2), pictures=1)
    assert (short.steps, long.steps) == (1, 2)
    assert short.fixed_loss != long.fixed_loss
    lesson, trainer = replace(bench.make_lesson(subjects[0]), sample_passes=64), find_trainer(METHOD)
    planned = resolve(plan_length(lesson, trainer), FamilyId("toybox")).settings
    assert (planned.schedule, planned.warmup_steps, planned.keep) == ("constant", 0, "last")
    figures = {**moves, **correlate_losses((short, long))}
    answered = {
        one.claim.id: one.answer for one in judge_claims(Numbers(figures=json.loads(json.dumps(figures))))
    }
    assert len(answered) == len(load_claims())
    assert {answered["fixed-batch"], answered["query-key-output-move-most"]} <= {"confirmed", "refuted"}
