"""A composition as adapter files: factors added up exactly, words in files of their own beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from conceptry.bases import ComponentName
from conceptry.composer.export_sums import Share, sum_modules
from conceptry.composer.parts import find_anchor
from conceptry.composer.pipelines import Pipeline, find_tensor, list_components, list_text_encoders
from conceptry.composer.plan import Plan, PlannedMember
from conceptry.composer.standins import read_original
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.composer.tokens import blend_rows
from conceptry.errors import IncompatibleError, UsageError
from conceptry.formats.embedding import EmbeddingContents, read_embedding
from conceptry.formats.export_contract import Writer, WriteRequest, Written
from conceptry.formats.exporting import SUFFIX, ExportPlan, write_for
from conceptry.formats.lora import LoraContents, LoraModule, read_lora
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.original_names import is_original, spell_as_diffusers
from conceptry.formats.sidecars import Sidecar
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import KindId
from conceptry.names import Placeholder

COMPOSITION_KEY: Final = "conceptry.composition"
IN_ADAPTERS: Final = frozenset({"lora", "embedding"})

OpenBase = Callable[[], Pipeline | None]
"""Returns the open base, None where only its identity is known; asked only where a weight of it is needed."""


def plan_files(
    plan: Plan, open_base: OpenBase, path: Path, writer: Writer, *, force: bool, lossy: bool
) -> ExportPlan:
    """Returns the files for one program, nothing written yet.

    Raises:
        UsageError: if the path does not go with what is to be written, or the base is needed and not open.
        IncompatibleError: for what the program cannot read, or no adapter holds.
    """
    is_file = path.suffix.lower() == SUFFIX
    if is_file and writer.folder:
        raise UsageError(
            f"{writer.id} reads a folder, not {path.name!r}", hint=f"name {path.with_suffix('')}"
        )
    label = " + ".join(member.concept.label for member in plan.members)
    written = [
        _write(plan, kind, contents, writer, path=path, lossy=lossy)
        for kind, contents in _gather_contents(plan, open_base)
    ]
    files = tuple(file for one in written for file in one.files)
    if not files:
        raise UsageError(f"nothing is left of {label} at these strengths", hint="give one a strength")
    if is_file and sum(file.data is None for file in files) > 1:
        raise UsageError(
            f"{writer.id} needs {len(files)} files for {label}: {', '.join(file.name for file in files)}",
            hint=f"name a folder: {path.with_suffix('')}",
        )
    return ExportPlan(
        label=label,
        target=writer.id,
        build="composition",
        family=plan.identity.family,
        root=path.parent if is_file else path,
        files=files,
        sidecars=(),
        sidecar=Sidecar(title=label),
        preview=None,
        warnings=tuple(dict.fromkeys(warning for one in written for warning in one.warnings)),
        losses=tuple(loss for one in written for loss in one.losses),
        force=force,
    )


def _write(
    plan: Plan,
    kind: KindId,
    contents: LoraContents | EmbeddingContents,
    writer: Writer,
    *,
    path: Path,
    lossy: bool,
) -> Written:
    is_file = path.suffix.lower() == SUFFIX
    request = WriteRequest(
        contents=contents,
        family=plan.identity.family,
        stem=path.stem if is_file else kind,
        named=is_file,
        metadata=_describe(plan, kind),
        lossy=lossy,
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
    rows = [_describe_member(member) for member in plan.members]
    return {**described, COMPOSITION_KEY: json.dumps(rows, sort_keys=True)}


def _describe_member(member: PlannedMember) -> dict[str, object]:
    concept = member.concept
    row: dict[str, object] = {
        "reference": concept.label,
        "digest": str(concept.digest),
        "strength": member.strength,
    }
    return {**row, "parts": member.use.parts} if member.use.parts else row


def _gather_contents(
    plan: Plan, open_base: OpenBase
) -> Iterator[tuple[KindId, LoraContents | EmbeddingContents]]:
    adapters: list[tuple[PlannedMember, Mapping[str, LoraModule]]] = []
    rows: dict[tuple[ComponentName, Placeholder], RawTensor] = {}
    for member in plan.members:
        for part in member.build.parts:
            if part.kind not in IN_ADAPTERS:
                raise IncompatibleError(
                    f"{member.concept.label} is of kind {part.kind}, which no adapter holds",
                    hint="leave it out, or share the composition as it is: concepts compose --out",
                )
            for path in (member.concept.locate(file) for file in part.files if file.role == "weights"):
                if part.kind == "lora":
                    adapters.append((member, read_lora(path).modules))
                else:
                    rows |= _read_rows(member, path, open_base)
    modules = sum_modules(_list_shares(adapters, plan.identity.family), _make_finder(open_base))
    if modules:
        yield "lora", LoraContents(modules=modules)
    if rows:
        yield "embedding", EmbeddingContents(rows=rows)


def _list_shares(
    adapters: Sequence[tuple[PlannedMember, Mapping[str, LoraModule]]], family: str
) -> dict[str, list[Share]]:
    """Returns what each adapter adds to each layer; names are diffusers' where theirs differ, or blocks are told."""
    authors = {any(is_original(name, family) for name in modules) for _, modules in adapters}
    renamed = len(authors) > 1 or any(member.use.parts for member, _ in adapters)
    shares: dict[str, list[Share]] = {}
    for member, modules in adapters:
        for name, module in (spell_as_diffusers(modules, family) if renamed else modules).items():
            strength = member.strength * member.use.find_share(name)
            shares.setdefault(name, []).append(Share(strength, module))
    return shares


def _make_finder(open_base: OpenBase) -> Callable[[str], Tensor | None]:
    def find_weight(name: str) -> Tensor | None:
        pipeline = open_base()
        if pipeline is None:
            return None
        component, _, path = name.partition(".")
        root = list_components(pipeline).get(ComponentName(component))
        found = None if root is None else find_tensor(root, path)
        return None if found is None else read_original(found).detach()

    return find_weight


def _read_rows(
    member: PlannedMember, path: Path, open_base: OpenBase
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
                _blend(member, component, placeholder, to_torch(raw, dtype=torch.float32), open_base())
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
