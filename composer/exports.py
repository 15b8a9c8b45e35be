"""``export``: a composition as files that need no composer, one adapter or a whole diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from conceptry.bases import BaseIdentity, ComponentName, Fit
from conceptry.composer.compositions import Composition
from conceptry.composer.export_folders import export_folder
from conceptry.composer.export_sums import Share, sum_modules
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.parts import find_anchor
from conceptry.composer.pipelines import (
    Pipeline,
    find_tensor,
    list_components,
    list_text_encoders,
)
from conceptry.composer.plan import Plan, PlannedMember, make_plan
from conceptry.composer.standins import read_original
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.composer.tokens import blend_rows
from conceptry.errors import IncompatibleError, UsageError
from conceptry.formats.embedding import EmbeddingContents, read_embedding
from conceptry.formats.export_contract import Writer, WriteRequest, Written
from conceptry.formats.export_files import Exported, write_export
from conceptry.formats.exporting import SUFFIX, ExportPlan, write_for
from conceptry.formats.lora import LoraContents, read_lora
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.sidecars import Sidecar
from conceptry.formats.tensors import RawTensor
from conceptry.formats.writers import find_writer
from conceptry.kinds import KindId
from conceptry.names import Placeholder

FOLDER: Final = "pipeline"
"""The target that is no program: a whole diffusers folder with everything inside its weights."""

COMPOSITION_KEY: Final = "conceptry.composition"
_IN_ADAPTERS: Final = frozenset({"lora", "embedding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a composition is written, and for whom."""

    path: Path
    """A new file where its name ends in ``.safetensors``, else a folder."""

    target: str | None = None
    """A row of WRITERS, or ``pipeline``; None writes for diffusers, whole where an adapter cannot hold it."""

    force: bool = False
    lossy: bool = False


def export(
    composition: Composition,
    base: Pipeline | BaseIdentity,
    destination: Destination | Path,
    *,
    fit: Fit | None = None,
) -> tuple[Exported, ...]:
    """Returns the files that hold a composition at its strengths, so that other programs draw what ``attach`` draws.

    Adapters are added up exactly, factors side by side. Words lie beside the adapter in files of their own. What is no
    adapter goes into a whole diffusers folder, which plain ``from_pretrained`` opens.

    Args:
        composition: concepts with strengths.
        base: an open pipeline, which is left as it was; its identity alone is enough for plain adapters.
        destination: where to, and for which program.
        fit: how closely every concept must fit the base; None asks what each kind asks.

    Raises:
        UsageError: if the destination does not go with the composition.
        IncompatibleError: for what no weight holds, such as gates, or what the program cannot read.
        ConflictError: if a file exists already and ``force`` is not set.
        StoreError: if the disk is full.
    """
    place = Destination(path=destination) if isinstance(destination, Path) else destination
    pipeline = None if isinstance(base, BaseIdentity) else base
    plan = make_plan(composition, base if pipeline is None else identify_pipeline(pipeline), fit)
    kinds = {kind for member in plan.members for kind in member.build.kinds}
    target = place.target or ("diffusers" if kinds <= _IN_ADAPTERS else FOLDER)
    if target != FOLDER:
        return write_export(_plan_files(plan, pipeline, place, find_writer(target)))
    if pipeline is None:
        raise UsageError(
            "a whole folder holds the base's weights, and only its identity is given", hint="open the base"
        )
    if place.path.suffix.lower() == SUFFIX:
        raise UsageError(
            f"a {' and a '.join(sorted(kinds - _IN_ADAPTERS) or sorted(kinds))} part goes into a whole diffusers "
            f"folder, not into the file {place.path.name!r}",
            hint=f"name a folder: {place.path.with_suffix('')}",
        )
    return export_folder(composition, pipeline, place.path, fit=fit, force=place.force)


# --- adapters ------------------------------------------------------------------------------------------------------


def _plan_files(plan: Plan, pipeline: Pipeline | None, place: Destination, writer: Writer) -> ExportPlan:
    is_file = place.path.suffix.lower() == SUFFIX
    if is_file and writer.folder:
        raise UsageError(
            f"{writer.id} reads a folder, not {place.path.name!r}", hint=f"name {place.path.with_suffix('')}"
        )
    label = " + ".join(member.concept.label for member in plan.members)
    written = [
        _write(plan, kind, contents, writer, place) for kind, contents in _gather_contents(plan, pipeline)
    ]
    files = tuple(file for one in written for file in one.files)
    if is_file and sum(file.data is None for file in files) > 1:
        raise UsageError(
            f"{writer.id} needs {len(files)} files for {label}: {', '.join(file.name for file in files)}",
            hint=f"name a folder: {place.path.with_suffix('')}",
        )
    return ExportPlan(
        label=label,
        target=writer.id,
        build="composition",
        family=plan.identity.family,
        root=place.path.parent if is_file else place.path,
        files=files,
        sidecars=(),
        sidecar=Sidecar(title=label),
        preview=None,
        warnings=tuple(dict.fromkeys(warning for one in written for warning in one.warnings)),
        losses=tuple(loss for one in written for loss in one.losses),
        force=place.force,
    )


def _write(
    plan: Plan, kind: KindId, contents: LoraContents | EmbeddingContents, writer: Writer, place: Destination
) -> Written:
    is_file = place.path.suffix.lower() == SUFFIX
    request = WriteRequest(
        contents=contents,
        family=plan.identity.family,
        stem=place.path.stem if is_file else kind,
        named=is_file,
        metadata=_describe(plan, kind),
        lossy=place.lossy,
    )
    return write_for(writer, kind, request)


def _describe(plan: Plan, kind: KindId) -> dict[str, str]:
    """Returns the metadata of a file: what it was made of, at which strengths, and what all licences are."""
    members = [(member.concept, member.strength) for member in plan.members]
    licenses = {concept.manifest.license.spdx or concept.manifest.license.name for concept, _ in members}
    described = make_metadata(
        kind,
        family=plan.identity.family,
        title=" + ".join(str(concept.manifest.name) for concept, _ in members),
        triggers=[word for member in plan.members for word in member.words.values()],
        license_text="; ".join(sorted(text for text in licenses if text)) or None,
    )
    rows = [
        {"reference": concept.label, "digest": str(concept.digest), "strength": strength}
        for concept, strength in members
    ]
    return {**described, COMPOSITION_KEY: json.dumps(rows, sort_keys=True)}


def _gather_contents(
    plan: Plan, pipeline: Pipeline | None
) -> Iterator[tuple[KindId, LoraContents | EmbeddingContents]]:
    shares: dict[str, list[Share]] = {}
    rows: dict[tuple[ComponentName, Placeholder], RawTensor] = {}
    for member in plan.members:
        for part in member.build.parts:
            if part.kind not in _IN_ADAPTERS:
                raise IncompatibleError(
                    f"{member.concept.label} is of kind {part.kind}, which no adapter holds",
                    hint=f"write a whole folder for {FOLDER}, or share the composition: concepts compose",
                )
            for path in (member.concept.locate(file) for file in part.files if file.role == "weights"):
                if part.kind == "lora":
                    for name, module in read_lora(path).modules.items():
                        shares.setdefault(name, []).append(Share(member.strength, module))
                else:
                    rows |= _read_rows(member, path, pipeline)
    find_weight = _make_finder(pipeline)
    modules = sum_modules(shares, find_weight)
    if modules:
        yield "lora", LoraContents(modules=modules)
    if rows:
        yield "embedding", EmbeddingContents(rows=rows)


def _make_finder(pipeline: Pipeline | None) -> Callable[[str], Tensor | None]:
    parts = {} if pipeline is None else list_components(pipeline)

    def find_weight(name: str) -> Tensor | None:
        component, _, path = name.partition(".")
        root = parts.get(ComponentName(component))
        found = None if root is None else find_tensor(root, path)
        return None if found is None else read_original(found).detach()

    return find_weight


def _read_rows(
    member: PlannedMember, path: Path, pipeline: Pipeline | None
) -> dict[tuple[ComponentName, Placeholder], RawTensor]:
    contents = read_embedding(path)
    if contents.layers is not None:
        raise IncompatibleError(
            f"{member.concept.label} has a row for each cross-attention layer, which other programs do not read",
            hint=f"share it as it is: concepts push {member.concept.label} REMOTE",
        )
    found = {}
    for (component, placeholder), raw in contents.rows.items():
        rows = raw
        if member.strength != 1.0:
            rows = from_torch(
                _blend(member, component, placeholder, to_torch(raw, dtype=torch.float32), pipeline)
            )
        word = member.words.get(Placeholder(placeholder), Placeholder(placeholder))
        found[ComponentName(component), word] = rows
    return found


def _blend(
    member: PlannedMember, component: str, placeholder: str, rows: Tensor, pipeline: Pipeline | None
) -> Tensor:
    encoders = {} if pipeline is None else {one.component: one for one in list_text_encoders(pipeline)}
    encoder = encoders.get(ComponentName(component))
    if encoder is None:
        raise UsageError(
            f"{member.concept.label} at strength {member.strength:g} lies between its rows and the base's, "
            "and the base is not open",
            hint="open the base, or give it strength 1",
        )
    anchor = find_anchor(member.concept, placeholder, encoder, pipeline)
    return blend_rows(rows, anchor, member.strength)
