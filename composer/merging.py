"""Several concepts into one new concept: a package of its own that says what it was made of, how, and what was lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from conceptry.composer.credits import combine_credits, list_licenses, list_tokens
from conceptry.composer.low_rank import one_thread
from conceptry.composer.low_rank_modules import from_low_rank
from conceptry.composer.merge_inputs import MergeInputs
from conceptry.composer.merge_layers import Layer, MergedLayer, MergeSettings
from conceptry.composer.merge_measures import Measured
from conceptry.composer.merge_methods import MergeMethod
from conceptry.composer.plan import Plan
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.errors import IncompatibleError, StoreError, UsageError
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, write_embedding
from conceptry.formats.lora import LORA_NAME, LoraContents, write_lora
from conceptry.formats.lora_methods import describe_modules
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.modelspec import make_metadata
from conceptry.formats.packages import describe_file
from conceptry.licenses import combine_licenses, iter_objections
from conceptry.manifest import (
    Build,
    EmbeddingMethod,
    Manifest,
    Part,
    Provenance,
)
from conceptry.names import ConceptName, Version

EXTENSION: Final = "conceptry.merge"
_PRECISIONS: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRequest:
    """What the new concept is to be called and how it is made. ``precision`` is fp32, fp16 or bf16."""

    name: ConceptName
    version: Version
    method: MergeMethod
    settings: MergeSettings = field(default_factory=MergeSettings)
    precision: str = "fp32"
    title: str = ""
    description: str = ""

    @property
    def density(self) -> float:
        """The share of entries that stay: the one asked for, else the method's own, else all."""
        if self.settings.density is not None and self.method.density is None:
            raise UsageError(
                f"{self.method.id} drops no entries, so a density says nothing", hint="leave out --density"
            )
        return self.settings.density or self.method.density or 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedRow:
    """What became of one layer."""

    name: str
    concepts: int
    """How many of the concepts change it."""

    rank: int
    retained: float
    """The share of the merged delta's energy that is kept; 1 where no rank was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The new concept in its folder, by layer what was kept, and what deserves a warning."""

    concept: Concept
    rows: tuple[MergedRow, ...]
    warnings: tuple[str, ...]

    @property
    def retained(self) -> float:
        """The smallest share that a layer kept."""
        return min((row.retained for row in self.rows), default=1.0)


def check_licenses(plan: Plan) -> None:
    """Raises IncompatibleError where a licence forbids what a merge is: a derivative, under one licence for all."""
    for objection in iter_objections(list_licenses(plan)):
        raise IncompatibleError(
            f"{objection.label} {objection.message}", hint="ask its author, or leave it out"
        )


def merge_layers(
    inputs: MergeInputs,
    request: MergeRequest,
    measured: Measured | None = None,
    regular: torch.Tensor | None = None,
) -> dict[str, MergedLayer]:
    """Returns the merged layers by ``component.module``.

    Args:
        inputs: as ``gather_inputs`` returns them.
        request: the way and its numbers.
        measured: by layer and place of the concept, what the method reads of the base.
        regular: the second moment of the encodings of ordinary captions, where the method reads encodings.

    Raises:
        IncompatibleError: if the method cannot take these deltas.
    """
    found = {}
    with one_thread(), torch.no_grad():
        for name, rows in inputs.factored.items():
            owners = tuple(owner for owner, _ in rows)
            seen = (measured or {}).get(name, {})
            layer = Layer(
                name=name,
                deltas=tuple(delta for _, delta in rows),
                owners=owners,
                settings=request.settings,
                density=request.density,
                inputs=tuple(seen[owner] for owner in owners if owner in seen),
                regular=regular if seen else None,
            )
            found[name] = request.method.merge(layer)
    return found


def write_merge(
    plan: Plan,
    inputs: MergeInputs,
    merged: Mapping[str, MergedLayer],
    request: MergeRequest,
    folder: Path,
) -> Merged:
    """Returns the new concept in ``folder``, which appears whole or not at all.

    Raises:
        IncompatibleError: if nothing is left to store, or a licence forbids it.
        InvalidFileError: if a value is not finite.
        StoreError: if the folder cannot be written.
    """
    check_licenses(plan)
    dtype = _PRECISIONS.get(request.precision)
    if dtype is None:
        raise UsageError(f"no precision is called {request.precision!r}", hint="fp32, fp16 or bf16")
    modules = {name: from_low_rank(layer.delta, dtype) for name, layer in merged.items()} | inputs.whole
    if not modules:
        raise IncompatibleError("these concepts change no layer, so there is nothing to merge")
    try:
        private = Path(tempfile.mkdtemp(prefix=".merging-", dir=folder.parent))
        try:
            _fill(plan, inputs, modules, request, private)
            shutil.rmtree(folder, ignore_errors=True)
            private.rename(folder)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"the merge cannot be written to {str(folder)!r}: {error}") from error
    rows = tuple(
        MergedRow(name=name, concepts=len(inputs.factored[name]), rank=one.delta.rank, retained=one.retained)
        for name, one in merged.items()
    )
    return Merged(
        concept=open_concept(folder),
        rows=rows,
        warnings=(*plan.warnings, *inputs.warnings, *_iter_notes(plan)),
    )


def _iter_notes(plan: Plan) -> Iterator[str]:
    first = plan.members[0]
    for member in plan.members[1:]:
        if member.build.base.fingerprints != first.build.base.fingerprints:
            yield (
                f"{member.concept.label} was not made on the very base of {first.concept.label}, "
                "which the merge is declared for"
            )


# --- the package ---------------------------------------------------------------------------------------------------


def _fill(
    plan: Plan,
    inputs: MergeInputs,
    modules: Mapping[str, LoraModule],
    request: MergeRequest,
    folder: Path,
) -> None:
    license = combine_licenses(list_licenses(plan))
    tokens = list_tokens(plan)

    def describe(kind: Any) -> dict[str, str]:
        return make_metadata(
            kind,
            family=plan.members[0].build.base.family,
            title=request.title or str(request.name),
            triggers=[token.placeholder for token in tokens],
            license_text=license.spdx or license.name,
        )

    written = write_lora(folder / LORA_NAME, LoraContents(modules=modules), describe("lora"))
    parts = [
        Part(
            kind="lora",
            method=describe_modules(modules),
            files=(describe_file(folder / LORA_NAME, written=written),),
        )
    ]
    if inputs.rows:
        contents = EmbeddingContents(rows=inputs.rows)
        written = write_embedding(folder / EMBEDDING_NAME, contents, describe("embedding"))
        components = tuple(sorted({component for component, _ in inputs.rows}))
        file = describe_file(folder / EMBEDDING_NAME, written=written)
        parts.insert(0, Part(kind="embedding", method=EmbeddingMethod(components=components), files=(file,)))
    manifest = _make_manifest(plan, request, tuple(parts))
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())


def _make_manifest(plan: Plan, request: MergeRequest, parts: tuple[Part, ...]) -> Manifest:
    base = plan.members[0].build.base
    build = Build(
        id=f"{base.family}-{'-'.join(part.kind for part in parts)}".replace("_", "-"),
        base=base,
        parts=parts,
        provenance=Provenance(
            source="merged", derived_from=tuple(member.concept.digest for member in plan.members)
        ),
    )
    return Manifest(
        name=request.name,
        version=request.version,
        title=request.title,
        description=request.description,
        builds=(build,),
        **combine_credits(plan),
        extensions={EXTENSION: _describe_recipe(plan, request)},
    )


def _describe_recipe(plan: Plan, request: MergeRequest) -> dict[str, Any]:
    """Returns what makes the same merge again, with what each concept's author is to be credited by."""
    settings, method = request.settings, request.method
    return {
        "method": method.id,
        "paper": method.paper,
        "precision": request.precision,
        "made_from": [
            {
                "reference": member.concept.label,
                "digest": str(member.concept.digest),
                "build": member.build.id,
                "strength": member.strength,
                "words": {str(old): str(new) for old, new in member.words.items()},
                "license": member.concept.manifest.license.spdx or member.concept.manifest.license.name,
                "authors": list(member.concept.manifest.authors),
            }
            for member in plan.members
        ],
    } | {
        name: value
        for name, value, said in (
            ("rank", settings.rank, settings.rank is not None),
            ("density", request.density, method.density is not None),
            ("seed", settings.seed, method.seeded),
            ("ridge", settings.ridge, method.ridged),
        )
        if said
    }
