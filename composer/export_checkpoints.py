"""A composition inside the weights of one checkpoint file, under the names that Stable Diffusion was published with.

The names are those of the first code (CompVis, later Stability), which other programs read; ``from_single_file`` of
diffusers translates them back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.bases import FamilyId
from conceptry.composer.attach import fuse
from conceptry.composer.compositions import Composition
from conceptry.composer.export_adapters import COMPOSITION_KEY
from conceptry.composer.export_folders import refuse_made
from conceptry.composer.export_spellings import Named, spell_clip, spell_open_clip, spell_unet, spell_vae
from conceptry.composer.pipelines import Pipeline, iter_state
from conceptry.composer.plan import Plan
from conceptry.composer.standins import is_wanted
from conceptry.composer.tensors import borrow_torch, from_torch
from conceptry.errors import IncompatibleError
from conceptry.formats.export_contract import OutputFile
from conceptry.formats.exporting import ExportPlan
from conceptry.formats.sidecars import Sidecar
from conceptry.formats.tensors import RawTensor


def plan_checkpoint(
    composition: Composition, pipeline: Pipeline, *, plan: Plan, path: Path, force: bool = False
) -> ExportPlan:
    """Returns the checkpoint of the pipeline with the composition inside its weights; nothing is written yet.

    The pipeline is left as it was.

    Args:
        composition: concepts with strengths.
        pipeline: open, of a family that has such files.
        plan: of the composition on it.
        path: the file.
        force: whether a file there is replaced.

    Raises:
        IncompatibleError: for a family without such files, for words and biases that no such file has a place for,
            and as ``fuse``.
    """
    parts = _PARTS.get(plan.identity.family)
    if parts is None:
        raise IncompatibleError(
            f"{plan.identity.family} has no checkpoints in one file", hint="--for pipeline writes a folder"
        )
    for member in plan.members:
        if "embedding" in member.build.kinds:
            raise IncompatibleError(
                f"{member.concept.label} has words of its own, and a checkpoint in one file has no tokenizer",
                hint="--for pipeline writes a folder, which has one",
            )
    with fuse(composition, pipeline) as report:
        refuse_made(pipeline)
        tensors = {
            part.prefix + name: raw
            for part in parts
            for name, raw in _iter_raw(part, getattr(pipeline, part.component))
        }
    label = " + ".join(member.concept.label for member in plan.members)
    metadata = {
        "modelspec.title": label,
        "modelspec.prediction_type": plan.identity.prediction_type,
        COMPOSITION_KEY: json.dumps(report.to_json()["concepts"], sort_keys=True),
    }
    return ExportPlan(
        label=label,
        target="checkpoint",
        build="composition",
        family=plan.identity.family,
        root=path.parent,
        files=(OutputFile(name=path.name, tensors=tensors, metadata=metadata),),
        sidecars=(),
        sidecar=Sidecar(title=label),
        preview=None,
        warnings=_iter_unsaid(plan),
        losses=(),
        force=force,
    )


def _iter_raw(part: _Part, root: Any) -> Iterator[tuple[str, RawTensor]]:
    """Returns the tensors of a component; those that no concept changes are the pipeline's own memory, not a copy."""
    changed = {tensor.data_ptr() for _, tensor in iter_state(root) if is_wanted(tensor)}
    for name, value in part.spell(root):
        yield name, from_torch(value) if value.data_ptr() in changed else borrow_torch(value)


def _iter_unsaid(plan: Plan) -> tuple[str, ...]:
    if plan.identity.prediction_type == "epsilon":
        return ()
    said = f"the base predicts {plan.identity.prediction_type}, which such a file cannot say"
    return (f"{said}: tell the program that reads it",)


@dataclass(frozen=True, slots=True)
class _Part:
    """One component of a pipeline, and where it lies in the file."""

    component: str
    prefix: str
    spell: Callable[[Any], Named]


_UNET: Final = _Part("unet", "model.diffusion_model.", spell_unet)
_VAE: Final = _Part("vae", "first_stage_model.", spell_vae)
_PARTS: Final[Mapping[FamilyId, tuple[_Part, ...]]] = {
    FamilyId("sd1"): (_UNET, _VAE, _Part("text_encoder", "cond_stage_model.transformer.", spell_clip)),
    FamilyId("sd2"): (_UNET, _VAE, _Part("text_encoder", "cond_stage_model.model.", spell_open_clip)),
    FamilyId("sdxl"): (
        _UNET,
        _VAE,
        _Part("text_encoder", "conditioner.embedders.0.transformer.", spell_clip),
        _Part("text_encoder_2", "conditioner.embedders.1.model.", spell_open_clip),
    ),
}
