"""``train_many(jobs)``: many concepts from one process; those that fit together share every batch.

A job that fails stops no other, and what a job ends with does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from conceptry.errors import ConceptryError, InterruptedByUserError, UsageError
from conceptry.trainer.conditioning import Conditioning
from conceptry.trainer.context import Batch
from conceptry.trainer.distribution import find_team
from conceptry.trainer.doctor import check_fit, count_samples
from conceptry.trainer.events import OnEvent, TrainEvent, ignore
from conceptry.trainer.exhaustion import is_exhaustion
from conceptry.trainer.faults import explain_fault, release_frames
from conceptry.trainer.folders import claimed, locate_home
from conceptry.trainer.jobs import TrainJob, find_repeated, group_by_base
from conceptry.trainer.learners import Learner
from conceptry.trainer.loop import Alone, Group, LoopResult, Run, run_together
from conceptry.trainer.objectives import weighted_error
from conceptry.trainer.precision import deterministic
from conceptry.trainer.preparation import prepared
from conceptry.trainer.sharing import SharedPipeline, join_conditionings
from conceptry.trainer.staging import (
    OpenBase,
    Stage,
    TrainResult,
    begin,
    choose_folder,
    finish_run,
    open_base,
    prepare_run,
    read_pictures,
)

TOGETHER: Final = 16
# On two cores the toybox does 32 pictures a second in batches of 16, and 38 in batches of 64.
SAMPLES_AT_ONCE: Final[Mapping[str, int]] = {"cpu": 64, "cuda": 256, "mps": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """What became of one job: a finished concept, or the reason why there is none."""

    job: TrainJob
    result: TrainResult | None = None
    error: ConceptryError | None = None


OnOutcome = Callable[[JobOutcome], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyOptions:
    """How several jobs are carried out.

    ``workdir`` holds a folder for each job; None takes folders of the user's store. ``together`` is how many jobs share
    a batch at most. ``base`` is an open pipeline for all jobs, or None to open what each names, once for each.
    """

    workdir: Path | None = None
    cache_folder: Path | None = None
    resume: bool = False
    together: int = TOGETHER
    base: Any = None
    named_bases: Mapping[str, Path] = field(default_factory=dict)
    """The user's own names for bases."""

    on_event: OnEvent = ignore
    on_outcome: OnOutcome = lambda outcome: None


def train_many(jobs: Sequence[TrainJob], options: ManyOptions | None = None) -> list[JobOutcome]:
    """Returns for each job, in the order of ``jobs``, its concept or its error.

    Raises:
        InterruptedByUserError: after Ctrl-C; the state of every job that was begun is saved.
        UsageError: in a process that accelerate launched beside others.
    """
    if find_team().size > 1:
        raise UsageError(
            "several jobs are not trained by several processes of one launch",
            hint="start one process for each device, each with --shard I/N",
        )
    options = options or ManyOptions()
    outcomes: dict[int, JobOutcome] = {}

    def conclude(place: int, outcome: JobOutcome) -> None:
        outcomes[place] = outcome
        options.on_outcome(outcome)

    repeated = find_repeated(jobs)
    for place, error in repeated.items():
        conclude(place, JobOutcome(job=jobs[place], error=error))
    for places in group_by_base(jobs, repeated):
        _train_on_base([(place, jobs[place]) for place in places], options, conclude)
    return [outcomes[place] for place in range(len(jobs))]


Numbered = tuple[int, TrainJob]
Conclude = Callable[[int, JobOutcome], None]


def _train_on_base(jobs: Sequence[Numbered], options: ManyOptions, conclude: Conclude) -> None:
    try:
        opened = open_base(jobs[0][1], options.base, named=options.named_bases)
    except Exception as fault:  # noqa: BLE001  # whatever it is, it is of the jobs of this base alone
        error = explain_fault(fault)
        for place, job in jobs:
            conclude(place, JobOutcome(job=job, error=error))
        return
    work = _Work(opened, dict(jobs), options, conclude)
    with prepared(opened.pipeline), deterministic(opened.device):
        for start in range(0, len(jobs), max(1, options.together)):
            _train_chunk([place for place, _ in jobs[start : start + max(1, options.together)]], work)


@dataclass(frozen=True, slots=True)
class _Work:
    """The jobs of one base: what makes them ready, and tells what became of them."""

    opened: OpenBase
    jobs: Mapping[int, TrainJob]
    options: ManyOptions
    conclude: Conclude

    def stage(self, place: int) -> Stage | None:
        """Returns the job ready to train; None where it cannot be, which is told."""
        job, options, home = self.jobs[place], self.options, locate_home()
        try:
            stage = prepare_run(
                job,
                read_pictures(job, _name_events(job, options.on_event)),
                self.opened,
                folder=choose_folder(job, options.workdir or home),
                cache_folder=options.cache_folder or home / "cache",
                on_event=_name_events(job, options.on_event),
            )
            with stage.learner.attached():  # what cannot be attached must not stop its neighbours later
                pass
            check_fit(stage.context, stage.learner)
        except Exception as error:  # noqa: BLE001  # no job stops another
            self.fail(place, error)
            return None
        return stage

    def stage_all(self, places: Sequence[int]) -> dict[int, Stage]:
        """Returns those of some jobs that can be made ready."""
        staged = ((place, self.stage(place)) for place in places)
        return {place: stage for place, stage in staged if stage is not None}

    def finish(self, place: int, stage: Stage, loop: LoopResult | ConceptryError) -> None:
        """Tells the concept of a run, or why there is none."""
        try:
            if isinstance(loop, ConceptryError):
                raise loop
            result = finish_run(stage, loop)
        except Exception as error:  # noqa: BLE001  # no job stops another
            self.fail(place, error)
        else:
            self.conclude(place, JobOutcome(job=self.jobs[place], result=result))

    def fail(self, place: int, error: Exception) -> None:
        """Tells why a job has no concept."""
        self.conclude(place, JobOutcome(job=self.jobs[place], error=explain_fault(error)))


def _train_chunk(places: Sequence[int], work: _Work) -> None:
    waiting: dict[int, Stage] = {}
    for place in places:
        _begin_one(place, waiting, work)
    for bundle in _bundle(waiting):
        _train_bundle({place: waiting.pop(place) for place in bundle}, work, resume=work.options.resume)


def _begin_one(place: int, waiting: dict[int, Stage], work: _Work) -> None:
    """Makes a job ready; one that shares nothing is trained at once.

    It may have a copy of all the base's weights: that is gone before the next one makes its own.
    """
    stage = work.stage(place)
    if stage is None:
        return
    if can_share(stage.learner):
        waiting[place] = stage
        return
    alone = {place: stage}
    del stage
    _train_bundle(alone, work, resume=work.options.resume)


def _name_events(job: TrainJob, on_event: OnEvent) -> OnEvent:
    def tell(event: TrainEvent) -> None:
        on_event(replace(event, job=str(job.name)))

    return tell


def can_share(learner: Learner) -> bool:
    """Returns whether the learner's loss is of its own rows of a batch alone, and the base's weights stay."""
    kind = type(learner)
    usual = kind.compute_loss is Learner.compute_loss and kind.predict is Learner.predict
    return usual and not kind.trains_base_weights and learner.preservation is None


def _bundle(stages: Mapping[int, Stage]) -> list[list[int]]:
    """Returns which of the jobs that can share their batches do: those of equal precision, up to a size."""
    shared: dict[Any, list[int]] = {}
    for place, stage in stages.items():
        context = stage.context
        twice = context.job.settings.gradient_checkpointing
        shapes = {bucket.mean.shape[1:] for bucket in context.buckets} if twice else None
        # Activations are computed anew as the last batch of a step was: then all of a step must be one batch.
        key = (
            context.autocast_dtype,
            context.job.settings.base_precision,
            context.job.settings.offload_base,
            context.job.settings.compile,
            twice and (context.job.job.method, str(shapes)),
        )
        shared.setdefault(key, []).append(place)
    return [part for places in shared.values() for part in _divide(places, stages)]


def _divide(places: Sequence[int], stages: Mapping[int, Stage]) -> Iterator[list[int]]:
    """Returns ``places`` in parts whose samples the device computes at once: larger batches gain nothing more."""
    first = stages[places[0]]
    limit = SAMPLES_AT_ONCE.get(first.context.device.type, SAMPLES_AT_ONCE["cpu"])
    if len(places) > 1:
        limit = min(limit, count_samples(first.context, first.learner) or limit)
    part: list[int] = []
    samples = 0
    for place in places:
        settings = stages[place].context.job.settings
        own = -(-settings.batch_size // settings.accumulation_steps)
        if part and samples + own > limit:
            yield part
            part, samples = [], 0
        part.append(place)
        samples += own
    yield part


def _train_bundle(bundle: dict[int, Stage], work: _Work, *, resume: bool) -> None:
    """Trains jobs in one batch and takes them out of ``bundle`` as they end.

    After a failure of all they are made ready anew and go on from their checkpoints: where memory was short half of
    them at once, and so on; after anything else one by one, so that it ends the job alone whose fault it is.
    """
    _begin_all(bundle, work, resume=resume)
    if not bundle:
        return
    try:
        loops = _run_at_once(bundle, resume=resume)
    except InterruptedByUserError:
        raise
    except Exception as error:  # noqa: BLE001  # no job stops another
        places = list(bundle)
        bundle.clear()
        if len(places) == 1:
            work.fail(places[0], error)
            return
        parts = _part_after(error, places)
        release_frames(error)
    else:
        for place in list(bundle):
            work.finish(place, bundle.pop(place), loops.pop(place))
        return
    for part in parts:
        _train_bundle(work.stage_all(part), work, resume=True)


def _begin_all(bundle: dict[int, Stage], work: _Work, *, resume: bool) -> None:
    """Begins all jobs of ``bundle``, and takes out of it those that cannot be."""
    for place, stage in list(bundle.items()):
        try:
            with claimed(stage.folder):
                begin(stage, resume=resume)
        except Exception as error:  # noqa: BLE001  # no job stops another
            del bundle[place]
            work.fail(place, error)


def _part_after(error: Exception, places: Sequence[int]) -> list[Sequence[int]]:
    """Returns which jobs are tried together after a failure of all of them."""
    if error.__cause__ is not None and is_exhaustion(error.__cause__):
        half = len(places) // 2
        return [places[:half], places[half:]]
    return [[place] for place in places]


def _run_at_once(stages: Mapping[int, Stage], *, resume: bool) -> dict[int, LoopResult | ConceptryError]:
    runs = {
        place: Run(
            stage.context,
            stage.learner,
            stage.checkpoints,
            resume=resume and bool(stage.checkpoints.find_complete()),
        )
        for place, stage in stages.items()
    }
    if len(runs) == 1:
        ((place, run),) = runs.items()
        with run.learner.attached():
            return {place: run_together([run], Alone())[0]}
    group = Sharing.of_runs(runs)
    with group.shared.attached({place: run.learner for place, run in runs.items()}):
        return dict(zip(runs, run_together(list(runs.values()), group), strict=True))


@dataclass(frozen=True, slots=True)
class Sharing(Group):
    """Runs whose samples make one batch."""

    shared: SharedPipeline
    numbers: Mapping[Run, int]

    @classmethod
    def of_runs(cls, runs: Mapping[int, Run]) -> Sharing:
        """Returns the group of runs on one pipeline."""
        pipeline = next(iter(runs.values())).context.pipeline
        return cls(SharedPipeline(pipeline), {run: number for number, run in runs.items()})

    def only(self, run: Run) -> AbstractContextManager[None]:
        """Has the pipeline answer as this run's concept alone would have it, while the block runs."""
        return self.shared.only(self.numbers[run])

    def compute_losses(self, runs: Sequence[Run], pieces: Sequence[Batch]) -> list[Tensor]:
        """Returns the loss of each run on its piece; the denoiser works once for all pieces of one shape."""
        losses: dict[Run, Tensor] = {}
        shapes: dict[tuple[torch.Size, torch.Size], list[_Part]] = {}
        for run, piece in zip(runs, pieces, strict=True):
            with self.only(run):
                conditioning = run.learner.condition([pair.concept for pair in piece.prompts])
            shape = (piece.noisy.shape[1:], conditioning.states.shape[1:])
            shapes.setdefault(shape, []).append(_Part(run, piece, conditioning))
        for parts in shapes.values():
            losses |= self._compute_equal(parts)
        return [losses[run] for run in runs]

    def _compute_equal(self, parts: Sequence[_Part]) -> dict[Run, Tensor]:
        sizes = [len(part.piece.prompts) for part in parts]
        self.shared.share({self.numbers[part.run]: size for part, size in zip(parts, sizes, strict=True)})
        context = parts[0].run.context
        with context.autocast():
            answer = context.denoise(
                torch.cat([part.piece.noisy for part in parts]),
                torch.cat([part.piece.timesteps for part in parts]),
                join_conditionings([part.conditioning for part in parts]),
            )
        answers: tuple[Tensor, ...] = answer.split(sizes)  # type: ignore[no-untyped-call]
        losses = {}
        for part, one in zip(parts, answers, strict=True):
            piece = part.piece
            losses[part.run] = weighted_error(one, piece.target, piece.weights, piece.mask)
        return losses


class _Part(NamedTuple):
    """What one run puts into a shared batch."""

    run: Run
    piece: Batch
    conditioning: Conditioning
