"""What reaches a training of the benchmark: a study's words, a variant's settings and gate, and one budget for all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.bases import FamilyId
from conceptry.concepts import Concept
from conceptry.errors import TrainingError
from conceptry.evaluation.bench_methods import (
    Lesson,
    Taught,
    find_method,
    list_studies,
    load_studies,
    plan_job,
)
from conceptry.evaluation.toybench import load_suite
from conceptry.trainer import training
from conceptry.trainer.jobs import ResolvedJob, TrainJob, resolve
from conceptry.trainer.methods import TRAINERS
from conceptry.trainer.words import init_rows
from tests.evaluation.lessons import make_lesson
from tests.fakes.concepts import make_rank_one
from tests.fakes.pipelines import make_pipeline

SUITE = load_suite()
TOYBOX = FamilyId("toybox")


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    return make_lesson(tmp_path, workdir=tmp_path / "work")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """Give the jobs that are asked to be trained; none is."""
    asked: list[TrainJob] = []

    def refuse(job: TrainJob, **more: Any) -> None:
        asked.append(job)
        raise TrainingError("asked only")

    monkeypatch.setattr(training, "train", refuse)
    return asked


def ask(id: str, lesson: Lesson, jobs: list[TrainJob]) -> ResolvedJob:
    """Returns what a method of the benchmark would train."""
    with pytest.raises(TrainingError, match="asked only"):
        find_method(id, SUITE).teach(lesson)
    return resolve(jobs[-1], lesson.family)


def test_the_words_of_a_study_reach_the_training(lesson: Lesson, jobs: list[TrainJob]) -> None:
    asked = {study.id: ask(study.id, lesson, jobs) for study in list_studies()}
    assert asked["dreambooth-wrong-class"].word == "sks flower"
    assert asked["dreambooth-no-class"].job.superclass == "picture"
    assert asked["textual_inversion-far-start"].job.superclass == "road"
    assert asked["lora-strong-word"].word == "blue cup"
    assert asked["textual_inversion-random-start"].settings.start == "random"
    for row in load_studies()["studies"]:
        plain = ask(row["method"], lesson, jobs)
        assert plain.recipe != asked[row["id"]].recipe
        assert plain.job.superclass == "cup"


def test_a_random_start_knows_nothing_of_the_superclass_and_is_the_same_for_a_seed() -> None:
    pipeline = make_pipeline("sd1")

    def start(superclass: str, seed: int, **more: Any) -> torch.Tensor:
        (rows,) = init_rows(pipeline, superclass, vectors=64, seed=seed, **more).values()
        return rows.detach()

    random = start("cat", 1, start="random")
    assert torch.equal(random, start("dog", 1, start="random"))
    assert not torch.equal(random, start("cat", 2, start="random"))
    assert not torch.equal(start("cat", 1), start("dog", 1))
    table = pipeline.text_encoder.get_input_embeddings().weight.detach()
    assert float(random.std()) == pytest.approx(float(table.std()), rel=0.1)
    own = start("cat", 1).mean(dim=0)
    usual = float((table - own).norm(dim=1).mean())  # as far from the superclass as any word
    assert float((random - own).norm(dim=1).mean()) == pytest.approx(usual, rel=0.1)


def test_the_settings_of_a_variant_reach_the_training(lesson: Lesson, jobs: list[TrainJob]) -> None:
    ranks = {id: ask(id, lesson, jobs).settings.rank for id in ("lora-rank-1", "lora-rank-4", "lora-rank-32")}
    assert ranks == {"lora-rank-1": 1, "lora-rank-4": 4, "lora-rank-32": 32}
    assert ask("dreambooth-no-prior", lesson, jobs).settings.prior == "none"
    assert ask("dreambooth", lesson, jobs).settings.prior != "none"
    for variant in SUITE.variants:
        settings = ask(variant.id, lesson, jobs).settings.model_dump(mode="json")
        assert settings.items() >= dict(variant.settings).items(), variant.id


def test_variants_that_differ_in_their_gate_share_one_training_and_are_used_with_their_own(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline("sd1")
    lesson = replace(lesson, pipeline=pipeline, family=FamilyId("sd1"))
    concept = make_rank_one(tmp_path / "edit", pipeline)
    folders: list[Path] = []

    def train(job: TrainJob, *, workdir: Path, **more: Any) -> Any:
        folders.append(workdir)
        raise TrainingError("asked only")

    monkeypatch.setattr(training, "train", train)
    gates = {variant.id: variant.gate for variant in SUITE.variants if variant.gate is not None}
    for id in gates:
        with pytest.raises(TrainingError):
            find_method(id, SUITE).teach(lesson)
    (folder,) = set(folders)
    folder.mkdir(parents=True)
    (tmp_path / "edit").rename(folder / "concept")
    (folder / "bench.json").write_text(json.dumps({"steps": 1, "seconds": 1.0}), encoding="utf-8")
    for id, gate in gates.items():
        assert gate is not None
        taught: Taught = find_method(id, SUITE).teach(lesson)
        assert isinstance(taught.concept, Concept)
        (part,) = taught.concept.manifest.builds[0].parts
        assert part.method.kind == "rank_one"
        assert (part.method.gate.bias, part.method.gate.temperature) == (gate["bias"], gate["temperature"])
        assert taught.concept.blobs.keys() == concept.blobs.keys()


def test_pictures_of_a_prior_count_in_the_budget(lesson: Lesson) -> None:
    with_prior = set()
    for row in TRAINERS:
        settings = resolve(plan_job(lesson, row, {}), TOYBOX).settings
        pictures = settings.steps * settings.batch_size * settings.accumulation_steps
        if settings.prior != "none" and settings.prior_weight > 0:
            with_prior.add(row.id)
            pictures += settings.steps * settings.batch_size * settings.accumulation_steps
        assert 0.9 * SUITE.sample_passes < pictures <= SUITE.sample_passes, row.id
    assert "dreambooth" in with_prior
