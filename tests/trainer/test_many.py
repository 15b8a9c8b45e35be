from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.errors import InterruptedByUserError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer import loop
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.jobs import TrainJob
from conceptry.trainer.many import JobOutcome, ManyOptions, can_share, train_many
from conceptry.trainer.sharing import SharedPipeline
from conceptry.trainer.training import train
from tests.fakes.pipelines import assert_same, make_pipeline, render, snapshot
from tests.trainer.runs import METHODS, paint_pictures, write_job

QUICK = ("textual_inversion",)
REST = tuple(method for method in METHODS if method not in QUICK)


def write_jobs(folder: Path, methods: Sequence[str], **changes: Any) -> list[TrainJob]:
    """Returns a job for each method, each with pictures, seed, length and name of its own, and one placeholder."""
    jobs = []
    for number, method in enumerate(methods):
        images = paint_pictures(folder / f"pictures-{number}", count=2 + number)
        steps = changes.get("steps", 4 + 2 * number)
        settings = {"batch_size": 3 + number, "clip_norm": 0.5, **changes.get("settings", {})}
        job = write_job(method, folder, images=images, seed=number, steps=steps, settings=settings)
        jobs.append(job.model_copy(update={"name": type(job.name)("tests", f"imp-{number}")}))
    return jobs


def run_many(folder: Path, jobs: Sequence[TrainJob], *, base: Any = None, **options: Any) -> list[JobOutcome]:
    base = make_pipeline() if base is None else base
    return train_many(
        jobs, ManyOptions(workdir=folder / "many", cache_folder=folder / "cache", base=base, **options)
    )


def measure_difference(folder: Path, other: Path) -> float:
    """Returns the largest difference of a tensor's values, as a share of its own largest value."""
    worst = 0.0
    for file in sorted(folder.glob("*.safetensors")):
        others = read_tensors(other / file.name)
        for name, tensor in read_tensors(file).items():
            mine, theirs = tensor.to_numpy(), others[name].to_numpy()
            worst = max(worst, float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-30)))
    return worst


@pytest.mark.parametrize("method", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in REST)])
def test_concepts_trained_together_equal_those_trained_apart(method: str, tmp_path: Path) -> None:
    base = make_pipeline()
    before = snapshot(base)
    jobs = write_jobs(tmp_path, [method] * 2)
    outcomes = run_many(tmp_path, jobs, base=base)
    assert_same(before, snapshot(base))
    for number, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
        assert outcome.error is None
        assert outcome.result is not None
        apart = train(job, base=base, workdir=tmp_path / f"apart-{number}", cache_folder=tmp_path / "cache")
        assert outcome.result.steps == apart.steps == 4 + 2 * number
        assert measure_difference(outcome.result.folder, apart.folder) < 1e-5


def test_methods_of_different_kinds_share_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []
    real = SharedPipeline.share

    def note(self: SharedPipeline, parts: Any) -> None:
        sizes.append(list(parts.values()))
        real(self, parts)

    monkeypatch.setattr(SharedPipeline, "share", note)
    base = make_pipeline()
    jobs = write_jobs(tmp_path, ["textual_inversion", "perfusion", "lora"], steps=3)
    outcomes = run_many(tmp_path, jobs, base=base)
    assert sizes == [[3, 4, 5]] * 3
    mine = outcomes[1].result
    assert mine is not None
    apart = train(jobs[1], base=base, workdir=tmp_path / "apart", cache_folder=tmp_path / "cache")
    assert measure_difference(mine.folder, apart.folder) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "group", "more"),
    [
        ("textual_inversion", "embedding", {}),
        ("lora", "lora", {}),
        ("lora", "lora", {"batch_size": 3, "targets": ["attention", "feed_forward", "convolution"]}),
    ],
)
def test_in_double_precision_neighbours_change_nothing_to_nine_places(
    method: str, group: str, more: dict[str, Any], tmp_path: Path
) -> None:
    base = make_pipeline()
    for part in (base.unet, base.text_encoder, base.vae):
        part.double()
    torch.set_default_dtype(torch.float64)
    try:
        # At larger steps a network of random numbers is chaotic: any rounding doubles with each step, alone too.
        settings = {"learning_rates": {group: 5e-5}, **more}
        jobs = write_jobs(tmp_path, [method] * 2, steps=50, settings=settings)
        together = train_values(jobs, base, tmp_path)
        apart = [train_values([job], base, tmp_path)[0] for job in jobs]
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in zip(together, apart, strict=True):
        for name, value in theirs.items():
            assert value.dtype == torch.float64
            assert float((mine[name] - value).abs().max() / value.abs().max()) < 1e-9, name


def train_values(jobs: Sequence[TrainJob], base: Any, folder: Path) -> list[dict[str, torch.Tensor]]:
    """Returns what the runs end with, before anything is rounded into a file."""
    from conceptry.trainer import many
    from conceptry.trainer.events import ignore
    from conceptry.trainer.preparation import prepared
    from conceptry.trainer.staging import OpenBase, prepare_run, read_pictures

    opened = OpenBase(pipeline=base)
    with prepared(base):
        stages = {
            number: prepare_run(
                job,
                read_pictures(job, ignore),
                opened,
                folder=folder / "values",
                cache_folder=folder / "cache",
                on_event=ignore,
            )
            for number, job in enumerate(jobs)
        }
        for stage in stages.values():
            for parameter in stage.learner.parameters.values():
                parameter.data = parameter.data.double()
        many._run_at_once(stages, resume=False)
    return [
        {name: value.detach().clone() for name, value in stage.learner.parameters.items()}
        for stage in stages.values()
    ]


def test_one_bad_job_is_named_and_the_others_are_finished(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, ["textual_inversion", "lora", "textual_inversion"], steps=2)
    bad = jobs[1].model_copy(update={"images": tmp_path / "nowhere"})
    outcomes = run_many(tmp_path, [jobs[0], bad, jobs[2]])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert str(outcomes[1].job.name) == "tests/imp-1"
    assert "no folder" in str(outcomes[1].error)
    base = make_pipeline()
    result = outcomes[2].result
    assert result is not None
    plain = render(base, "a photo of a <imp>")
    with attach(Composition(result.concept), base):
        assert not torch.equal(render(base, "a photo of a <imp>"), plain)


@pytest.mark.slow
def test_a_job_that_diverges_does_not_touch_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = write_jobs(tmp_path, ["lora", "textual_inversion"], steps=6)
    (_, alone) = run_many(tmp_path / "a", jobs)
    real = loop._update

    def update(run: loop.Run) -> None:
        real(run)
        if run.context.job.job.method == "lora" and run.state.step == 2:
            with torch.no_grad():
                next(iter(run.learner.parameters.values())).fill_(float("nan"))

    monkeypatch.setattr(loop, "_update", update)
    diverged, beside = run_many(tmp_path / "b", jobs)
    assert diverged.error is not None
    assert "not finite at step 4" in diverged.error.message
    assert beside.result is not None
    assert alone.result is not None
    assert measure_difference(beside.result.folder, alone.result.folder) < 1e-5


def test_two_jobs_of_one_name_and_version_are_not_both_begun(tmp_path: Path) -> None:
    (job, _) = write_jobs(tmp_path, ["textual_inversion"] * 2, steps=2)
    first, second = run_many(tmp_path, [job, job])
    assert first.result is not None
    assert "two jobs make tests/imp-0@0.1.0" in str(second.error)


@pytest.mark.slow
def test_an_interrupt_keeps_every_job_and_resuming_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, ["textual_inversion", "perfusion"], steps=6)
    whole = run_many(tmp_path / "whole", jobs)

    def stop(event: TrainEvent) -> None:
        if event.step == 3 and event.job == "tests/imp-1":
            raise KeyboardInterrupt

    with pytest.raises(InterruptedByUserError):
        run_many(tmp_path / "stopped", jobs, on_event=stop)
    resumed = run_many(tmp_path / "stopped", jobs, resume=True)
    for mine, theirs in zip(resumed, whole, strict=True):
        assert mine.result is not None
        assert theirs.result is not None
        assert mine.result.concept.digest == theirs.result.concept.digest


def test_where_memory_is_short_fewer_jobs_share_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._run_step
    most: list[int] = []

    def run_step(runs: Any, group: Any) -> Any:
        if len(runs) > 2:
            raise torch.OutOfMemoryError("out of memory")
        most.append(len(runs))
        return real(runs, group)

    monkeypatch.setattr(loop, "_run_step", run_step)
    outcomes = run_many(tmp_path, write_jobs(tmp_path, ["textual_inversion"] * 4, steps=2))
    assert all(outcome.error is None for outcome in outcomes)
    assert max(most) == 2


def test_methods_that_move_the_bases_own_weights_are_trained_one_by_one(tmp_path: Path) -> None:
    from conceptry.trainer.dreambooth import DreamBooth
    from conceptry.trainer.textual_inversion import TextualInversion

    assert not can_share(object.__new__(DreamBooth))
    assert can_share(object.__new__(TextualInversion))
