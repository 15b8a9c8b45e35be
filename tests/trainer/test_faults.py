"""What goes wrong in one run: it is explained, its neighbours end as if nothing had been, nothing dead comes out."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.errors import TrainingError, UsageError
from conceptry.trainer import loop, many, staging
from conceptry.trainer.dreambooth import DreamBooth
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.exhaustion import is_exhaustion
from conceptry.trainer.images import Picture
from conceptry.trainer.jobs import make_job
from conceptry.trainer.textual_inversion import TextualInversion
from conceptry.trainer.training import train
from tests.fakes.pipelines import assert_same, make_pipeline, snapshot
from tests.trainer.runs import write_job
from tests.trainer.test_many import measure_difference, run_many, write_jobs


def run(folder: Path, method: str = "textual_inversion", **changes: Any) -> staging.TrainResult:
    job = write_job(method, folder, **changes)
    return train(job, base=make_pipeline(), workdir=folder / "work", cache_folder=folder / "cache")


# --- memory --------------------------------------------------------------------------------------------------------


def exhaust(*args: Any, **options: Any) -> Any:
    """Asks for more memory than any machine has, so that the allocator's own words are met."""
    return torch.empty(10**15)


def test_what_the_allocator_of_a_processor_says_is_known_as_no_memory_left() -> None:
    with pytest.raises(RuntimeError) as caught:
        exhaust()
    assert is_exhaustion(caught.value)
    assert not is_exhaustion(RuntimeError("Calculated padded input size per channel: (2 x 2)"))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (staging, "load_pipeline"),
        (staging, "encode_pictures"),
        (loop, "measure_fixed_loss"),
        pytest.param(loop, "_run_step", marks=pytest.mark.slow),
        pytest.param(loop, "_offer_best", marks=pytest.mark.slow),
        pytest.param(staging, "judge_learner", marks=pytest.mark.slow),
    ],
)
def test_no_memory_left_is_explained_wherever_it_happens(
    module: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, exhaust)
    job = write_job("textual_inversion", tmp_path, steps=2, settings={"evaluate_every_steps": 1})
    base = None if name == "load_pipeline" else make_pipeline()
    with pytest.raises(TrainingError, match="no memory left") as caught:
        train(job, base=base, workdir=tmp_path / "work", cache_folder=tmp_path / "cache")
    assert caught.value.hint
    assert not (tmp_path / "work" / "concept").exists()


# --- numbers -------------------------------------------------------------------------------------------------------


def test_what_is_a_hundredth_above_its_start_is_no_divergence_and_a_fifth_is() -> None:
    staging._refuse_diverged(0.20, 0.202)
    with pytest.raises(TrainingError, match="worse than the base"):
        staging._refuse_diverged(0.20, 0.24)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_run_that_ends_far_above_its_start_is_refused_and_can_be_looked_at(
    keep: str, tmp_path: Path
) -> None:
    settings = {
        "learning_rates": {"weights": 0.1},
        "prior": "none",
        "clip_norm": None,
        "evaluate_every_steps": 2,
        "checkpoint_every_steps": 2,
        "keep": keep,
    }
    with pytest.raises(TrainingError, match="worse than the base") as caught:
        run(tmp_path, "dreambooth", steps=5, settings=settings)
    assert "learning rate" in str(caught.value.hint)
    assert not (tmp_path / "work" / "concept").exists()
    assert (tmp_path / "work" / "checkpoints" / "step-00000004").is_dir()


def test_pictures_too_small_for_the_denoiser_are_refused_with_the_least_side(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resolution_pixels") as caught:
        run(tmp_path, settings={"resolution_pixels": 1})
    assert caught.value.where == "settings.resolution_pixels"


# --- many ----------------------------------------------------------------------------------------------------------


class Broken(Exception):
    """What nobody expects."""


FAULTS: dict[str, tuple[Any, str, int]] = {
    "staging": (many, "check_fit", 0),
    "start": (loop, "measure_fixed_loss", 0),
    "step": (TextualInversion, "condition", 2),
    "update": (TextualInversion, "finish_step", 1),
    "finish": (TextualInversion, "draft", 0),
}
"""Where a fault is: what meets it, and after how many calls that went well."""


def fail_in(where: str, monkeypatch: pytest.MonkeyPatch, *, calls: int | None = None) -> None:
    """The second job meets a fault of the program, its neighbours do not."""
    owner, name, good = FAULTS[where]
    real = getattr(owner, name)
    seen = iter(range(1000))

    def fail(first: Any, *rest: Any) -> Any:
        context = getattr(first, "context", first)
        counts = where != "step" or torch.is_grad_enabled()
        if (
            str(context.job.job.name) == "tests/imp-1"
            and counts
            and next(seen) >= (good if calls is None else calls)
        ):
            raise Broken("nobody thought of this")
        return real(first, *rest)

    monkeypatch.setattr(owner, name, fail)


def test_a_job_beside_one_that_meets_a_fault_in_their_step_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in("step", monkeypatch, calls=0)
    good, bad = run_many(tmp_path, write_jobs(tmp_path, ["textual_inversion"] * 2, steps=1))
    assert bad.result is None
    assert "Broken: nobody thought of this" in str(bad.error)
    assert good.result is not None
    assert good.result.steps == 1


@pytest.mark.slow
@pytest.mark.parametrize("where", list(FAULTS))
def test_a_fault_of_the_program_in_one_job_ends_that_job_alone(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_pipeline()
    jobs = write_jobs(tmp_path, ["textual_inversion"] * 3, steps=4)
    alone = [
        train(job, base=base, workdir=tmp_path / f"apart-{place}", cache_folder=tmp_path / "cache")
        for place, job in enumerate(jobs)
        if place != 1
    ]
    before = snapshot(base)
    fail_in(where, monkeypatch)
    first, second, third = run_many(tmp_path, jobs, base=base)
    assert_same(before, snapshot(base))
    assert isinstance(second.error, TrainingError)
    assert "Broken: nobody thought of this" in second.error.message
    assert second.error.hint
    for mine, theirs in zip((first, third), alone, strict=True):
        assert mine.result is not None, mine.error
        assert mine.result.steps == 4
        assert measure_difference(mine.result.folder, theirs.folder) < 1e-5


@pytest.mark.slow
def test_of_many_jobs_only_the_ones_in_work_are_in_memory(tmp_path: Path) -> None:
    copies: list[int] = []
    pictures: list[int] = []

    def count(event: TrainEvent) -> None:
        if event.kind == "step":
            objects = gc.get_objects()
            copies.append(sum(type(one) is DreamBooth for one in objects))
            pictures.append(sum(type(one) is Picture for one in objects))

    gc.collect()
    jobs = write_jobs(tmp_path, ["dreambooth", "textual_inversion", "dreambooth"], steps=1)
    outcomes = run_many(tmp_path, jobs, on_event=count)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert copies == [1, 1, 0]
    assert pictures == [0, 0, 0]


# --- folders -------------------------------------------------------------------------------------------------------


def test_no_two_jobs_share_a_folder(tmp_path: Path) -> None:
    told = {"method": "lora", "images": tmp_path, "placeholder": "<imp>", "superclass": "creature"}
    rows = [
        ("a-b/c", "1.0.0"),
        ("a/b-c", "1.0.0"),
        ("a/b", "1.0.0-c"),
        ("a/b", "1.0.0-C"),
        ("a/b", "1.0.0+c"),
        ("a/b-1.0.0", "1.0.0"),
    ]
    jobs = [make_job({**told, "name": name, "version": version}) for name, version in rows]
    folders = [staging.choose_folder(job, tmp_path) for job in jobs]
    assert len({str(folder).casefold() for folder in folders}) == len(rows)
    assert all(folder.is_relative_to(tmp_path / "training") for folder in folders)
