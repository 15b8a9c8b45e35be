"""A composition as a concept of its own: its plan with exact digests, in a package without tensors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conceptry.composer.credits import combine_credits
from conceptry.composer.masks import MASKS_NAME, Mask
from conceptry.composer.plan import Plan
from conceptry.composition import PLAN_NAME, CompositionDocument, format_composition
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.errors import StoreError, UsageError
from conceptry.formats.packages import describe_file
from conceptry.manifest import (
    Build,
    CompositionMethod,
    File,
    Manifest,
    NamedMember,
    Part,
    Provenance,
)
from conceptry.names import ConceptName, Reference, Requirement, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRequest:
    """What the composition is to be called."""

    name: ConceptName
    version: Version
    title: str = ""
    description: str = ""


def write_composition(
    plan: Plan, document: CompositionDocument, masks: Iterable[Mask], request: PackageRequest, folder: Path
) -> Concept:
    """Returns the composition as a concept in ``folder``, which appears whole or not at all.

    It holds no tensor: its concepts are named by their digests, and asked for by their exact versions. Its licence is
    what all of theirs permit together.

    Args:
        plan: the composition, checked against a base.
        document: the same as it is written; its base stays out, since it may be a path of this machine.
        masks: those that regions name.
        request: what it is to be called.
        folder: a place where nothing is.

    Raises:
        InvalidManifestError: if it would name itself.
        StoreError: if the folder cannot be written.
    """
    if any(member.concept.manifest.name == request.name for member in plan.members):
        raise UsageError(
            f"{request.name} is one of the concepts", hint="choose another name for them together"
        )
    try:
        private = Path(tempfile.mkdtemp(prefix=".composing-", dir=folder.parent))
        try:
            _fill(plan, document, masks, request, private)
            private.rename(folder)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"the composition cannot be written to {str(folder)!r}: {error}") from error
    return open_concept(folder)


def _fill(
    plan: Plan, document: CompositionDocument, masks: Iterable[Mask], request: PackageRequest, folder: Path
) -> None:
    text = format_composition(_lock(plan, document))
    (folder / PLAN_NAME).write_text(text, encoding="utf-8")
    files = [describe_file(folder / PLAN_NAME, "document")]
    used = set(document.list_masks())
    for mask in sorted((one for one in masks if one.digest in used), key=lambda one: one.digest.hex):
        name = f"{MASKS_NAME}/{mask.digest.hex}.png"
        (folder / MASKS_NAME).mkdir(exist_ok=True)
        (folder / name).write_bytes(mask.data)
        files.append(describe_file(folder / name, "document", name=name))
    (folder / MANIFEST_NAME).write_bytes(_make_manifest(plan, request, files).to_bytes())


def _lock(plan: Plan, document: CompositionDocument) -> CompositionDocument:
    """Returns the document with exact digests and the words that were chosen, and without its base."""
    members = tuple(
        member.model_copy(
            update={
                "reference": Reference(planned.concept.manifest.name, planned.concept.digest),
                "digest": None,  # the reference says it
                "rename": {old: new for old, new in planned.words.items() if old != new},
            }
        )
        for member, planned in zip(document.concepts, plan.members, strict=True)
    )
    return document.model_copy(update={"concepts": members, "base": None})


def _make_manifest(plan: Plan, request: PackageRequest, files: Sequence[File]) -> Manifest:
    named = tuple(
        NamedMember(
            concept=one.concept.manifest.name, version=one.concept.manifest.version, digest=one.concept.digest
        )
        for one in plan.members
    )
    base = plan.members[0].build.base
    build = Build(
        id=f"{base.family}-composition".replace("_", "-"),
        base=base,
        parts=(Part(kind="composition", method=CompositionMethod(members=named), files=tuple(files)),),
        provenance=Provenance(source="composed", derived_from=tuple(one.digest for one in named)),
    )
    return Manifest(
        name=request.name,
        version=request.version,
        title=request.title,
        description=request.description,
        requires=tuple(Requirement.parse(one.label) for one in named),
        builds=(build,),
        **combine_credits(plan),
    )
