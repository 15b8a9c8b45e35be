"""The stages of a run around the loop: pictures read and encoded, a learner made; afterwards judged and written."""

from __future__ import annotations

import platform
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.bases import BaseIdentity
from conceptry.composer.fingerprints import find_pipeline_family, identify_pipeline
from conceptry.composer.loading import load_pipeline
from conceptry.composer.pipelines import get_device
from conceptry.concepts import Concept, open_concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import InvalidImagesError, TrainingError
from conceptry.trainer.checkpoints import CheckpointFolder
from conceptry.trainer.conditioning import find_long_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.distribution import check_team, find_team
from conceptry.trainer.events import NOBODY, OnEvent, Onlooker, TrainEvent
from conceptry.trainer.exhaustion import explained_exhaustion
from conceptry.trainer.finish import RECORD_NAME, judge_learner, write_concept
from conceptry.trainer.images import PictureFacts, PictureFolder, join_folders, scan_pictures
from conceptry.trainer.jobs import ResolvedJob, TrainJob, resolve
from conceptry.trainer.latents import encode_pictures, read_resolution
from conceptry.trainer.learners import Learner
from conceptry.trainer.loop import LoopResult
from conceptry.trainer.objectives import read_schedule
from conceptry.trainer.precision import choose_autocast, choose_device
from conceptry.trainer.prompts import Wording, write_prompts_of_several

FEW_PICTURES: Final = 1
DIVERGED_RATIO: Final = 1.1
"""Of the kept loss to that of the start. The first steps may raise it by a hundredth; all of 52 runs of ToyBench with
20 and 40 steps ended below 0.89, and runs that diverged to finite numbers end at twice the start and above."""


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
    leads: bool = True
    """False in all processes but one of those that trained the job together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBase:
    """A base that is loaded, and how it was named."""

    pipeline: Any
    location: BaseLocation | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes, wherever single weights may wait."""
        return get_device(self.pipeline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A job with all that its run needs, before the first step."""

    context: TrainingContext
    learner: Learner
    checkpoints: CheckpointFolder
    pictures: PictureFacts
    folder: Path
    """Where checkpoints and the result go."""

    started: float


def open_base(job: TrainJob, base: Any, *, named: Mapping[str, Path] | None = None) -> OpenBase:
    """Returns the base: an open pipeline as it is, or loaded from a BaseLocation or what the job names."""
    if base is not None and not isinstance(base, BaseLocation):
        base.set_progress_bar_config(disable=True)
        return OpenBase(pipeline=base)
    location = base or resolve_base(job.base, named or {})
    with explained_exhaustion():
        pipeline = load_pipeline(location, device=choose_device(job.device), dtype=torch.float32)
    return OpenBase(pipeline=pipeline, location=location)


def choose_folder(job: TrainJob, home: Path) -> Path:
    """Returns the folder of the user's store in which the job works, when nobody names another.

    No two names or versions share one, also where files are called alike in capitals and small letters.
    """
    version = re.sub(r"[A-Z]", lambda letter: f"%{ord(letter[0]):02x}", str(job.version))
    return home / "training" / f"{job.name.namespace}@{job.name.name}@{version}"


def prepare_run(
    job: TrainJob,
    pictures: PictureFolder,
    base: OpenBase,
    *,
    folder: Path,
    cache_folder: Path,
    on_event: OnEvent,
    watch: Onlooker = NOBODY,
) -> Stage:
    """Returns the job ready for the loop; nothing is written yet. Raises what ``train`` raises."""
    started = time.perf_counter()
    resolved = resolve(job, find_pipeline_family(base.pipeline))
    context = replace(_make_context(resolved, base, pictures, cache_folder, on_event), watch=watch)
    facts = PictureFacts.of(pictures)
    return Stage(
        context=context,
        learner=_prepare_learner(context),
        checkpoints=CheckpointFolder(
            folder / "checkpoints", _digest_job(resolved, facts.digest, context.identity)
        ),
        pictures=facts,
        folder=folder,
        started=started,
    )


def _prepare_learner(context: TrainingContext) -> Learner:
    with explained_exhaustion(context.job):
        return context.job.row.prepare(context)


def begin(stage: Stage, *, resume: bool) -> None:
    """Says what begins, and discards the checkpoints of a run that nobody wants to go on with."""
    context, checkpoints = stage.context, stage.checkpoints
    for left in (*stage.folder.glob(".finishing-*"), *stage.folder.glob(".preview-*")):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    found = checkpoints.find_complete()
    if found and not resume:
        context.warn(f"an unfinished run ({found[-1].name}) is discarded; --resume would go on with it")
        checkpoints.clear()
    context.announce(f"{context.job.row.title}, {context.job.settings.steps} steps")


def finish_run(stage: Stage, loop: LoopResult) -> TrainResult:
    """Returns the concept, judged, written, reloaded and compared; the checkpoints are gone. Raises TrainingError."""
    context, folder = stage.context, stage.folder / "concept"
    before, after = loop.fixed_loss_before, loop.fixed_loss_after
    _refuse_diverged(before, after)
    if not after < before:
        context.warn(f"the loss on fixed samples did not fall ({before:.4g} to {after:.4g})")
    context.announce("checking the result")
    with explained_exhaustion(context.job):
        outcome = judge_learner(
            context, stage.learner, loop, data=stage.pictures.digest, instance=stage.pictures.instance
        )
        record = _make_record(context, stage.pictures, loop, time.perf_counter() - stage.started)
        record["facts"] = dict(outcome.draft.facts)
        concept = write_concept(context, outcome, folder, record=record)
    stage.checkpoints.clear()
    return TrainResult(
        concept=concept,
        folder=folder,
        record=folder / RECORD_NAME,
        steps=loop.last_step,
        seconds=time.perf_counter() - stage.started,
        fixed_loss_before=before,
        fixed_loss_after=after,
    )


def _refuse_diverged(before: float, after: float) -> None:
    """Raises TrainingError if what is kept predicts the pictures that it learned from worse than the base did.

    Both are of the same samples and noise, so that chance has little part in their difference.
    """
    if after > DIVERGED_RATIO * before:
        raise TrainingError(
            f"what was learned is worse than the base: the loss on fixed samples rose from {before:.4g} to {after:.4g}",
            hint="lower the learning rate, or keep clip_norm; the checkpoints are still there",
        )


def read_result(stage: Stage, loop: LoopResult) -> TrainResult:
    """Returns the concept that another process of the team has written."""
    folder = stage.folder / "concept"
    return TrainResult(
        concept=open_concept(folder),
        folder=folder,
        record=folder / RECORD_NAME,
        steps=loop.last_step,
        seconds=time.perf_counter() - stage.started,
        fixed_loss_before=loop.fixed_loss_before,
        fixed_loss_after=loop.fixed_loss_after,
        leads=False,
    )


def read_pictures(job: TrainJob, on_event: OnEvent) -> PictureFolder:
    """Returns the pictures of the job; what is skipped is said. Raises InvalidImagesError."""
    found = _scan_subjects(job)
    for skipped in found.skipped:
        on_event(TrainEvent(kind="warning", message=f"{skipped.name} {skipped.reason}: skipped"))
    for picture in found.pictures:
        for note in picture.notes:
            on_event(TrainEvent(kind="warning", message=f"{picture.name} {note}"))
    for number in range(len(job.subjects)):
        own = [picture for picture in found.pictures if picture.subject == number]
        if len(own) <= FEW_PICTURES:
            message = f"only one picture ({own[0].name}): the concept will copy its pose and background too"
            on_event(TrainEvent(kind="warning", message=message))
    return found


def _scan_subjects(job: TrainJob) -> PictureFolder:
    if not job.also:
        return scan_pictures(job.images)
    folders: dict[str, PictureFolder] = {}
    for number, one in enumerate(job.subjects):
        try:
            folders[one.placeholder] = scan_pictures(one.images)
        except InvalidImagesError as error:
            raise (error if number == 0 else error.inside(f"also.{number - 1}")) from None
    return join_folders(folders)


def _make_context(
    resolved: ResolvedJob, base: OpenBase, pictures: PictureFolder, cache_folder: Path, on_event: OnEvent
) -> TrainingContext:
    job, pipeline, device = resolved.job, base.pipeline, base.device
    team = find_team()
    check_team(team, resolved.settings)
    wordings = tuple(
        Wording(
            placeholder=one.placeholder,
            superclass=one.superclass,
            word=word,
            subject=job.subject,
            family=resolved.family,
        )
        for one, word in zip(job.subjects, resolved.words, strict=True)
    )
    prompts = write_prompts_of_several(
        [picture.caption for picture in pictures.pictures],
        [picture.subject for picture in pictures.pictures],
        wordings,
    )
    on_event(TrainEvent(kind="phase", message=f"encoding {len(pictures.pictures)} pictures"))
    side = resolved.settings.resolution_pixels or read_resolution(pipeline)
    with explained_exhaustion(resolved):
        buckets = encode_pictures(
            pipeline,
            pictures.pictures,
            resolved.settings,
            resolution_pixels=side,
            seed=job.seed,
            cache_folder=cache_folder,
        )
    context = TrainingContext(
        job=resolved,
        pipeline=pipeline,
        identity=identify_pipeline(pipeline),
        schedule=read_schedule(pipeline, device),
        buckets=buckets,
        prompts=prompts,
        wordings=wordings,
        cache_folder=cache_folder,
        repo=None if base.location is None else base.location.repo,
        revision=None if base.location is None else base.location.revision,
        autocast_dtype=choose_autocast(job.precision, device),
        on_event=on_event,
        team=team,
    )
    _warn_of_long_prompts(context)
    return context


def _warn_of_long_prompts(context: TrainingContext) -> None:
    limit = context.pipeline.tokenizer.model_max_length
    texts = [pair.concept for row in context.prompts for pair in row]
    for text, count in find_long_prompts(context.pipeline, texts).items():
        context.warn(f"{text[:60]!r} has {count} tokens, the base reads {limit}: its end is cut off")


def _digest_job(resolved: ResolvedJob, data: Digest, identity: BaseIdentity) -> Digest:
    prints = {name: [str(found.layout), list(found.weights)] for name, found in identity.fingerprints.items()}
    parts = {
        "recipe": str(resolved.recipe),
        "data": str(data),
        "base": prints,
        "seed": resolved.job.seed,
    }
    return Digest.of_bytes(canonical_json(parts))


def _make_record(
    context: TrainingContext, pictures: PictureFacts, loop: LoopResult, seconds: float
) -> dict[str, Any]:
    """Returns the facts of ``train.json``: clock, machine, duration, paths; no manifest names them."""
    return {
        "schema": 1,
        "job": context.job.job.model_dump(mode="json"),
        "settings": context.job.settings.model_dump(mode="json"),
        "pictures": list(pictures.names),
        "skipped": {skipped.name: skipped.reason for skipped in pictures.skipped},
        "prompts": [[pair.concept for pair in row] for row in context.prompts],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 3),
        "loop_seconds": round(loop.seconds, 3),
        "fixed_loss_before": loop.fixed_loss_before,
        "fixed_loss_after": loop.fixed_loss_after,
        "last_step": loop.last_step,
        "kept_step": loop.kept_step,
        "machine": {
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(context.device),
            "threads": torch.get_num_threads(),
            "autocast": str(context.autocast_dtype),
        },
    }
