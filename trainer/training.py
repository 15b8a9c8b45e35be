"""``train(job)``: pictures in, a finished concept in a folder out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conceptry.errors import InterruptedByUserError
from conceptry.trainer.distribution import find_team
from conceptry.trainer.doctor import TrainPlan, check_fit, plan_run
from conceptry.trainer.events import OnEvent, TrainEvent, ignore
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

__all__ = ["TrainPlan", "TrainResult", "plan", "train"]


def train(
    job: TrainJob,
    *,
    on_event: OnEvent = ignore,
    workdir: Path | None = None,
    cache_folder: Path | None = None,
    resume: bool = False,
    base: Any = None,
) -> TrainResult:
    """Returns the concept that ``job`` asks for, trained, saved, reloaded and checked.

    Args:
        job: what to learn, as written.
        on_event: is told of each step, phase and warning.
        workdir: where checkpoints and the result go; None takes a folder of the user's store.
        cache_folder: where what belongs to the base is kept; None takes a folder of the user's store.
        resume: go on from the newest checkpoint in ``workdir``.
        base: an open pipeline, which is left as it was, or a BaseLocation; None resolves what the job names.

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
        )
        check_fit(stage.context, stage.learner)
        device = stage.context.device
        with claimed(folder), _naming(workdir):
            with team.leading(device) as leads:
                if leads:
                    begin(stage, resume=resume)
            loop = run_loop(stage.context, stage.learner, stage.checkpoints, resume=resume)
            with team.leading(device) as leads:
                if leads:
                    return finish_run(stage, loop)
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


@contextmanager
def _naming(workdir: Path | None) -> Iterator[None]:
    """Puts the folder that the caller chose into the command that goes on with a stopped run."""
    try:
        yield
    except InterruptedByUserError as error:
        if workdir is not None and error.hint:
            error.hint = f"{error.hint} --workdir {shlex.quote(str(workdir))}"
        raise
