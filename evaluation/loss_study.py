"""Which loss tells how far a training is: that of its batches, or that of a batch which never changes.

One method is trained to several lengths from the same seed and at a constant rate, so that a shorter training is the
beginning of a longer one, and at each length both losses stand beside the identity of pictures (as DVAR asks, arXiv
2302.04841).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.evaluation.bench_methods import Lesson, count_passes, plan_job
from conceptry.evaluation.bench_running import Bench
from conceptry.evaluation.examination import FIRST_SEED, draw_pictures
from conceptry.evaluation.judges import make_judge
from conceptry.evaluation.protocols import find_protocol, load_plain_prompt
from conceptry.evaluation.scores import correlate_ranks
from conceptry.evaluation.toybench import BenchSubject
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.jobs import TrainJob, resolve
from conceptry.trainer.methods import TrainerRow, find_trainer
from conceptry.trainer.training import train

METHOD: Final = "textual_inversion"
LENGTHS_STEPS: Final = (5, 10, 20, 40, 80)
PICTURES: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A training after so many steps."""

    steps: int
    raw_loss: float
    """The running mean of the losses of its batches, which a trainer shows."""

    fixed_loss: float
    """Of the same samples after every length."""

    identity: float


def follow_training(
    bench: Bench, subject: BenchSubject, *, lengths: Sequence[int] = LENGTHS_STEPS, pictures: int = PICTURES
) -> tuple[Moment, ...]:
    """Returns the moments of a training of one subject, the shortest first. Raises what training raises."""
    truth = bench.prepare(subject)
    row = find_protocol(bench.options.protocol)
    judge = make_judge(row, truth, family=bench.family, models=bench.options.models)
    prompt = load_plain_prompt(subject.subject, row.id)
    lesson, trainer = bench.make_lesson(subject), find_trainer(METHOD)
    moments = []
    for steps in lengths:
        losses: list[float] = []

        def note(event: TrainEvent, seen: list[float] = losses) -> None:
            if event.loss is not None:
                seen.append(event.loss)

        passes = steps * count_passes(resolve(plan_job(lesson, trainer, {}), bench.family).settings)
        job = plan_length(replace(lesson, sample_passes=passes), trainer)
        folder = lesson.workdir / "lengths" / f"{METHOD}-{steps}"
        done = train(job, on_event=note, workdir=folder, cache_folder=lesson.cache, base=bench.pipeline)
        words = [prompt.with_concept(resolve(job, bench.family).word)] * pictures
        with attach(Composition(done.concept), bench.pipeline):
            drawn = draw_pictures(bench.pipeline, words, FIRST_SEED, bench.base.drawing, lambda count: None)
        moments.append(
            Moment(
                steps=done.steps,
                raw_loss=losses[-1],
                fixed_loss=done.fixed_loss_after,
                identity=float(judge.measure_identity(drawn).mean()),
            )
        )
    return tuple(moments)


def plan_length(lesson: Lesson, trainer: TrainerRow) -> TrainJob:
    """Returns the job of a training that is the beginning of every longer one: its rate knows nothing of its length."""
    job = plan_job(lesson, trainer, {"keep": "last", "schedule": "constant"})
    return job.model_copy(update={"settings": {**job.settings, "warmup_steps": 0}})


def study_losses(
    bench: Bench, subjects: Sequence[BenchSubject], on_step: Callable[[str], object]
) -> dict[str, dict[str, float]]:
    """Returns how well each loss orders the moments of a training as identity does, for each subject."""
    found: dict[str, dict[str, float]] = {}
    for subject in subjects:
        on_step(f"lengths of {METHOD} on {subject.id}")
        for name, value in correlate_losses(follow_training(bench, subject)).items():
            found.setdefault(name, {})[subject.id] = round(value, 6)
    return found


def correlate_losses(moments: Sequence[Moment]) -> dict[str, float]:
    """Returns the rank correlation of identity with how far each loss fell; 0 where one of both is flat."""
    identity = [one.identity for one in moments]
    losses = {
        "raw_loss_follows_identity": [-one.raw_loss for one in moments],
        "fixed_loss_follows_identity": [-one.fixed_loss for one in moments],
    }
    flat = len(set(identity)) < 2
    return {
        name: 0.0 if flat or len(set(values)) < 2 else correlate_ranks(values, identity)
        for name, values in losses.items()
    }
