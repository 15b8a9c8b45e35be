"""The gate between a trained learner and a published concept: what is broken, empty or unreadable does not pass."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from conceptry import __version__
from conceptry.bases import find_family
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.digests import Digest
from conceptry.errors import StoreError, TrainingError
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.packages import describe_file
from conceptry.kinds import KindId
from conceptry.manifest import (
    Base,
    Build,
    FingerprintModel,
    License,
    Manifest,
    Metric,
    Part,
    Provenance,
    TrainingProvenance,
    Usage,
)
from conceptry.trainer.conditioning import encode_prompts
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.learners import Draft, Learner
from conceptry.trainer.loop import LoopResult

RECORD_NAME: Final = "train.json"
INSTANCE_EXTENSION: Final = "conceptry.toybox"
FIXED_LOSS_PROTOCOL: Final = "mean denoising loss, 16 fixed samples of the training pictures"
# Of the prediction's spread: rounding in float32 stays far below, a lost tensor goes far above.
RELOAD_TOLERANCE: Final = 1e-3
PROBE_SAMPLES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run produced, ready to be written."""

    draft: Draft
    loop: LoopResult
    data: Digest
    instance: Any | None
    expected: Tensor
    """The learner's own prediction on the probe batch."""

    plain: Tensor
    """The base's own prediction for the same prompts; for those with the superclass, where it cannot read the word."""


def judge_learner(
    context: TrainingContext, learner: Learner, loop: LoopResult, *, data: Digest, instance: Any
) -> Outcome:
    """Returns the outcome of a run whose parameters are finite, not zero, and moved; with its probe predictions.

    Raises:
        TrainingError: naming the parameter that fails.
    """
    batch = _draw_probe(context)
    _check_values(learner)
    learner.prepare_use()
    with torch.no_grad(), learner.attached():
        for parameter in learner.parameters.values():
            parameter.requires_grad_(False)  # torch rounds otherwise in layers that could be trained
        conditioning = learner.condition([pair.concept for pair in batch.prompts])
        expected = context.denoise(batch.noisy, batch.timesteps, conditioning).float()
    return Outcome(
        draft=learner.draft(),
        loop=loop,
        data=data,
        instance=instance,
        expected=expected,
        plain=_predict(context, batch, concept=not context.job.row.expands_placeholder),
    )


def _draw_probe(context: TrainingContext) -> Batch:
    """Returns samples of every subject."""
    return context.draw_fixed_batch(max(PROBE_SAMPLES, len(context.wordings)))


def _check_values(learner: Learner) -> None:
    moved = filled = False
    trained = learner.trained
    for name, before in learner.initial.items():
        value = trained[name].detach()
        if not bool(torch.isfinite(value).all()):
            raise TrainingError(f"{name} is not finite after training", hint="lower the learning rate")
        moved = moved or not torch.equal(value, before.to(value))
        filled = filled or bool(value.any())
    if not moved:
        raise TrainingError(
            "training moved no parameter", hint="raise the learning rate or the number of steps"
        )
    if not filled:
        raise TrainingError("all trained values are zero", hint="lower the learning rate")


@torch.no_grad()
def _predict(context: TrainingContext, batch: Batch, *, concept: bool) -> Tensor:
    texts = [pair.concept if concept else pair.plain for pair in batch.prompts]
    conditioning = encode_prompts(context.pipeline, texts)
    return context.denoise(batch.noisy, batch.timesteps, conditioning).float()


def write_concept(
    context: TrainingContext, outcome: Outcome, folder: Path, *, record: Mapping[str, Any]
) -> Concept:
    """Returns the concept in ``folder``: weights, ``concept.json``, ``train.json``; reloaded and seen to work.

    The folder appears whole or not at all.

    Raises:
        TrainingError: if the saved file does not answer as the learner did, or changes nothing.
        StoreError: if the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".finishing-", dir=folder.parent))
        try:
            fill_folder(context, outcome, private, record)
            check_reloaded(context, outcome, open_concept(private))
            shutil.rmtree(folder, ignore_errors=True)
            private.rename(folder)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        message = f"the concept cannot be written to {str(folder)!r}: {error}"
        raise StoreError(
            message, hint="make room on the disk, or name another folder with --workdir"
        ) from error
    return open_concept(folder)


def fill_folder(context: TrainingContext, outcome: Outcome, folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the weights, ``concept.json`` and ``train.json`` into an empty folder; nothing is compared."""
    parts = []
    for part in outcome.draft.parts:
        metadata = _describe_file(context, part.kind)
        described = []
        for name, write in sorted(part.files.items()):
            write(folder / name, metadata)
            described.append(describe_file(folder / name, name=name))
        parts.append(Part(kind=part.kind, method=part.method, files=tuple(described)))
    manifest = make_manifest(context, outcome, tuple(parts))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _describe_file(context: TrainingContext, kind: KindId) -> dict[str, str]:
    job = context.job.job
    return make_metadata(
        kind,
        family=context.job.family,
        title=job.title or str(job.name),
        triggers=context.job.words,
        license_text=job.license,
        description=job.description or None,
    )


def make_manifest(context: TrainingContext, outcome: Outcome, parts: tuple[Part, ...]) -> Manifest:
    """Returns the manifest: a function of job, pictures, base and weights; no clock, machine or path is in it."""
    resolved, draft = context.job, outcome.draft
    job = resolved.job
    build = Build(
        id="-".join((resolved.family, *(part.kind for part in parts))).replace("_", "-"),
        base=_describe_base(context),
        parts=parts,
        metrics=(
            Metric(
                name="fixed_loss_before", value=outcome.loop.fixed_loss_before, protocol=FIXED_LOSS_PROTOCOL
            ),
            Metric(
                name="fixed_loss_after", value=outcome.loop.fixed_loss_after, protocol=FIXED_LOSS_PROTOCOL
            ),
        ),
        provenance=Provenance(
            source="trained",
            training=TrainingProvenance(
                trainer=f"conceptry {job.method}",
                recipe=resolved.recipe,
                data=outcome.data,
                seed=job.seed,
                steps=outcome.loop.kept_step,
                code_version=__version__,
            ),
        ),
    )
    return Manifest(
        name=job.name,
        version=job.version,
        title=job.title,
        description=job.description,
        license=License(spdx=job.license) if job.license else License(),
        tokens=draft.tokens,
        usage=Usage(prompts=_list_prompts(context)),
        builds=(build,),
        extensions={} if outcome.instance is None else {INSTANCE_EXTENSION: outcome.instance},
    )


def _describe_base(context: TrainingContext) -> Base:
    identity = context.identity
    family = find_family(context.job.family)
    prints = {
        str(name): FingerprintModel(layout=found.layout, weights=found.weights)
        for name, found in identity.fingerprints.items()
    }
    return Base.model_validate(
        {
            "family": family.id,
            "architecture": family.architecture,
            "repo": context.repo,
            "revision": context.revision,
            "fingerprints": prints,
            "prediction_type": identity.prediction_type,
        }
    )


def _list_prompts(context: TrainingContext) -> tuple[str, ...]:
    """Returns the first prompts of some pictures, of each subject at least one."""
    rows = [row[0] for row in context.prompts]
    firsts = [
        next(pair for pair in rows if pair.subject == number) for number in range(len(context.wordings))
    ]
    texts = dict.fromkeys(pair.concept for pair in (*firsts, *rows))
    return tuple(texts)[: max(3, len(firsts))]


def check_reloaded(context: TrainingContext, outcome: Outcome, concept: Concept) -> None:
    """Attaches the saved concept as anybody would and compares its predictions. Raises TrainingError."""
    batch = _draw_probe(context)
    with attach(Composition(concept), context.pipeline):
        found = _predict(context, batch, concept=True)
    spread = float(outcome.expected.std()) or 1.0
    lost = float((found - outcome.expected).abs().max()) / spread
    if not lost <= RELOAD_TOLERANCE:
        raise TrainingError(
            f"the saved file answers otherwise than what was trained (by {lost:.2g} of the spread)"
        )
    if torch.equal(found, outcome.plain):
        raise TrainingError("the saved file changes no picture", hint="train for more steps")
