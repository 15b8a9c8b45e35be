"""``train(job)``: pictures in, a finished concept in a folder out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptry.errors import InterruptedByUserError
from conceptry.trainer.distribution import find_team
from conceptry.trainer.doctor import TrainPlan, check_fit, plan_run
from conceptry.trainer.events import NOBODY, OnEvent, TrainEvent, WatchOptions, ignore
from conceptry.trainer.folders import claimed, locate_home
from conceptry.trainer.jobs import TrainJob
from conceptry.trainer.loop import run_loop
from conceptry.trainer.precision import deterministic
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import (
    TrainResult,
    begin,
    choose_folder,
    finish_run,
    open_base,
    prepare_run,
    read_pictures,
    read_result,
)

if TYPE_CHECKING:
    from conceptry.trainer.watching import Watch

__all__ = ["TrainPlan", "TrainResult", "plan", "train"]


def train(
    job: TrainJob,
    *,
    on_event: OnEvent = ignore,
    workdir: Path | None = None,
    cache_folder: Path | None = None,
    resume: bool = False,
    base: Any = None,
    watch: WatchOptions | None = None,
) -> TrainResult:
    """Returns the concept that ``job`` asks for, trained, saved, reloaded and checked.

    Args:
        job: what to learn, as written.
        on_event: is told of each step, phase and warning.
        workdir: where checkpoints and the result go; None takes a folder of the user's store.
        cache_folder: where what belongs to the base is kept; None takes a folder of the user's store.
        resume: go on from the newest checkpoint in ``workdir``.
        base: an open pipeline, which is left as it was, or a BaseLocation; None resolves what the job names.
        watch: what is wanted beside the result: previews, curves, the share of the limit. No number depends on it.

    In each of several processes that accelerate launched, this trains the one job together; the first writes it.

    Raises:
        InvalidImagesError: if the pictures cannot be trained on.
        InvalidPlaceholderError: if the words do not fit the base and the method.
        UsageError: for an unknown method or setting, or a checkpoint of another job.
        NotFoundError: if the base is not on this machine.
        InterruptedByUserError: after Ctrl-C; the state is saved and the hint says how to go on.
        TrainingError: if the result would be broken or empty.
        StoreError: if a file cannot be written.
    """
    home, team = locate_home(), find_team()
    on_event = on_event if team.leads else ignore
    folder = workdir or choose_folder(job, home)
    looking = _make_watch(watch, job, folder, on_event) if team.leads else None
    on_event = on_event if looking is None else looking.follow
    pictures = read_pictures(job, on_event)
    opened = open_base(job, base)
    with prepared(opened.pipeline), deterministic(opened.device):
        stage = prepare_run(
            job,
            pictures,
            opened,
            folder=folder,
            cache_folder=cache_folder or home / "cache",
            on_event=on_event,
            watch=looking or NOBODY,
        )
        del pictures  # photographs at their full size, which nobody needs any more
        check_fit(stage.context, stage.learner)
        device = stage.context.device
        with claimed(folder), _naming(workdir), closing(looking) if looking else nullcontext():
            going_on = resume and bool(stage.checkpoints.find_complete())
            with team.leading(device) as leads:
                if leads:
                    if resume and not going_on:
                        stage.context.warn("there is no checkpoint to go on from: training begins anew")
                    begin(stage, resume=going_on)
            loop = run_loop(stage.context, stage.learner, stage.checkpoints, resume=going_on)
            with team.leading(device) as leads:
                if leads:
                    result = finish_run(stage, loop)
                    if looking is not None:
                        looking.conclude(result.concept, stage.context)
                    return result
            return read_result(stage, loop)


def plan(
    job: TrainJob,
    *,
    on_event: OnEvent = ignore,
    cache_folder: Path | None = None,
    base: Any = None,
) -> TrainPlan:
    """Returns what ``job`` will do and need on this device; nothing is trained, two samples are timed.

    Raises:
        ConceptryError: what ``train`` raises before its first step.
    """
    home = locate_home()
    pictures = read_pictures(job, on_event)
    opened = open_base(job, base)
    with prepared(opened.pipeline), deterministic(opened.device):
        stage = prepare_run(
            job,
            pictures,
            opened,
            folder=choose_folder(job, home),
            cache_folder=cache_folder or home / "cache",
            on_event=on_event,
        )
        on_event(TrainEvent(kind="phase", message="timing two samples"))
        return plan_run(stage.context, stage.learner)


def _make_watch(options: WatchOptions | None, job: TrainJob, folder: Path, on_event: OnEvent) -> Watch | None:
    if options is None:
        return None
    from conceptry.trainer.watching import Watch, check_options

    check_options(options)
    return Watch(options, job, folder, on_event)


@contextmanager
def _naming(workdir: Path | None) -> Iterator[None]:
    """Puts the folder that the caller chose into the command that goes on with a stopped run."""
    try:
        yield
    except InterruptedByUserError as error:
        if workdir is not None and error.hint:
            error.hint = f"{error.hint} --workdir {shlex.quote(str(workdir))}"
        raise
