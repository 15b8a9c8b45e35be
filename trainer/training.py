"""``train(job)``: pictures in, a finished concept in a folder out."""

from __future__ import annotations

import platform
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.bases import BaseIdentity
from conceptry.composer.fingerprints import find_pipeline_family, identify_pipeline
from conceptry.composer.loading import load_pipeline
from conceptry.concepts import Concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import InterruptedByUserError
from conceptry.trainer.checkpoints import CheckpointFolder
from conceptry.trainer.conditioning import find_long_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.events import OnEvent, TrainEvent, ignore
from conceptry.trainer.finish import RECORD_NAME, judge_learner, write_concept
from conceptry.trainer.folders import claimed, locate_home
from conceptry.trainer.images import PictureFolder, scan_pictures
from conceptry.trainer.jobs import ResolvedJob, TrainJob, resolve
from conceptry.trainer.latents import encode_pictures, read_resolution
from conceptry.trainer.learners import Learner
from conceptry.trainer.loop import LoopResult, run_loop
from conceptry.trainer.objectives import read_schedule
from conceptry.trainer.precision import choose_autocast, choose_device, deterministic
from conceptry.trainer.preparation import prepared
from conceptry.trainer.prompts import Wording, write_prompts

FEW_PICTURES: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """A finished concept, where it lies, and how long it took. ``registry.publish(result.folder)`` keeps it."""

    concept: Concept
    folder: Path
    record: Path
    steps: int
    seconds: float
    fixed_loss_before: float
    fixed_loss_after: float


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

    Raises:
        InvalidImagesError: if the pictures cannot be trained on.
        InvalidPlaceholderError: if the words do not fit the base and the method.
        UsageError: for an unknown method or setting, or a checkpoint of another job.
        NotFoundError: if the base is not on this machine.
        InterruptedByUserError: after Ctrl-C; the state is saved and the hint says how to go on.
        TrainingError: if the result would be broken or empty.
        StoreError: if a file cannot be written.
    """
    started = time.perf_counter()
    home = locate_home()
    folder = workdir or home / "training" / _name_folder(job)
    pictures = _read_pictures(job, on_event)
    opened, location = _open_base(job, base)
    resolved = resolve(job, find_pipeline_family(opened))
    with prepared(opened), deterministic(_device_of(opened)):
        context = _make_context(resolved, opened, pictures, cache_folder or home / "cache", on_event)
        if location is not None:
            context = replace(context, repo=location.repo, revision=location.revision)
        learner = resolved.row.prepare(context)
        checkpoints = CheckpointFolder(
            folder / "checkpoints", _digest_job(resolved, pictures, context.identity)
        )
        with claimed(folder), _naming(workdir):
            loop = _learn(context, learner, checkpoints, resume=resume)
            concept = _finish(context, learner, loop, pictures, folder=folder / "concept", started=started)
    checkpoints.clear()
    return TrainResult(
        concept=concept,
        folder=folder / "concept",
        record=folder / "concept" / RECORD_NAME,
        steps=resolved.settings.steps,
        seconds=time.perf_counter() - started,
        fixed_loss_before=loop.fixed_loss_before,
        fixed_loss_after=loop.fixed_loss_after,
    )


@contextmanager
def _naming(workdir: Path | None) -> Iterator[None]:
    """Puts the folder that the caller chose into the command that goes on with a stopped run."""
    try:
        yield
    except InterruptedByUserError as error:
        if workdir is not None and error.hint:
            error.hint = f"{error.hint} --workdir {shlex.quote(str(workdir))}"
        raise


def _learn(
    context: TrainingContext, learner: Learner, checkpoints: CheckpointFolder, *, resume: bool
) -> LoopResult:
    found = checkpoints.find_complete()
    if found and not resume:
        context.warn(f"an unfinished run ({found[-1].name}) is discarded; --resume would go on with it")
        checkpoints.clear()
    context.announce(f"{context.job.row.title}, {context.job.settings.steps} steps")
    loop = run_loop(context, learner, checkpoints, resume=resume)
    before, after = loop.fixed_loss_before, loop.fixed_loss_after
    if not after < before:
        context.warn(f"the loss on fixed samples did not fall ({before:.4g} to {after:.4g})")
    return loop


def _finish(
    context: TrainingContext,
    learner: Learner,
    loop: LoopResult,
    pictures: PictureFolder,
    *,
    folder: Path,
    started: float,
) -> Concept:
    context.announce("checking the result")
    outcome = judge_learner(context, learner, loop, data=pictures.digest, instance=pictures.instance)
    record = _make_record(context, pictures, loop, time.perf_counter() - started)
    record["facts"] = dict(outcome.draft.facts)
    return write_concept(context, outcome, folder, record=record)


def _name_folder(job: TrainJob) -> str:
    return re.sub(r"[^a-z0-9._-]", "-", f"{job.name.namespace}-{job.name.name}-{job.version}")


def _read_pictures(job: TrainJob, on_event: OnEvent) -> PictureFolder:
    found = scan_pictures(job.images)
    for skipped in found.skipped:
        on_event(TrainEvent(kind="warning", message=f"{skipped.name} {skipped.reason}: skipped"))
    if len(found.pictures) <= FEW_PICTURES:
        message = (
            f"only one picture ({found.pictures[0].name}): the concept will copy its pose and background too"
        )
        on_event(TrainEvent(kind="warning", message=message))
    return found


def _open_base(job: TrainJob, base: Any) -> tuple[Any, BaseLocation | None]:
    if base is not None and not isinstance(base, BaseLocation):
        base.set_progress_bar_config(disable=True)
        return base, None
    location = base or resolve_base(job.base, {})
    return load_pipeline(location, device=choose_device(job.device), dtype=torch.float32), location


def _device_of(pipeline: Any) -> torch.device:
    return torch.device(next(iter(pipeline.unet.parameters())).device)


def _make_context(
    resolved: ResolvedJob, pipeline: Any, pictures: PictureFolder, cache_folder: Path, on_event: OnEvent
) -> TrainingContext:
    job, device = resolved.job, _device_of(pipeline)
    wording = Wording(
        placeholder=job.placeholder,
        superclass=job.superclass,
        word=resolved.word,
        subject=job.subject,
        family=resolved.family,
    )
    prompts = write_prompts([picture.caption for picture in pictures.pictures], wording)
    on_event(TrainEvent(kind="phase", message=f"encoding {len(pictures.pictures)} pictures"))
    side = resolved.settings.resolution_pixels or read_resolution(pipeline)
    context = TrainingContext(
        job=resolved,
        pipeline=pipeline,
        identity=identify_pipeline(pipeline),
        schedule=read_schedule(pipeline, device),
        latents=encode_pictures(pipeline, pictures.pictures, resolution_pixels=side),
        prompts=prompts,
        wording=wording,
        cache_folder=cache_folder,
        autocast_dtype=choose_autocast(job.precision, device),
        on_event=on_event,
    )
    _warn_of_long_prompts(context)
    return context


def _warn_of_long_prompts(context: TrainingContext) -> None:
    limit = context.pipeline.tokenizer.model_max_length
    texts = [pair.concept for row in context.prompts for pair in row]
    for text, count in find_long_prompts(context.pipeline, texts).items():
        context.warn(f"{text[:60]!r} has {count} tokens, the base reads {limit}: its end is cut off")


def _digest_job(resolved: ResolvedJob, pictures: PictureFolder, identity: BaseIdentity) -> Digest:
    prints = {name: [str(found.layout), list(found.weights)] for name, found in identity.fingerprints.items()}
    parts = {
        "recipe": str(resolved.recipe),
        "data": str(pictures.digest),
        "base": prints,
        "seed": resolved.job.seed,
    }
    return Digest.of_bytes(canonical_json(parts))


def _make_record(
    context: TrainingContext, pictures: PictureFolder, loop: LoopResult, seconds: float
) -> dict[str, Any]:
    """Returns the facts of ``train.json``: clock, machine, duration, paths; no manifest names them."""
    return {
        "schema": 1,
        "job": context.job.job.model_dump(mode="json"),
        "settings": context.job.settings.model_dump(mode="json"),
        "pictures": [picture.name for picture in pictures.pictures],
        "skipped": {skipped.name: skipped.reason for skipped in pictures.skipped},
        "prompts": [[pair.concept for pair in row] for row in context.prompts],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
        "loop_seconds": round(loop.seconds, 3),
        "fixed_loss_before": loop.fixed_loss_before,
        "fixed_loss_after": loop.fixed_loss_after,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(context.device),
            "threads": torch.get_num_threads(),
            "autocast": str(context.autocast_dtype),
        },
    }
