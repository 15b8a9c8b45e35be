"""A composition as a concept of its own: its plan in a package, and its concepts in the place of its name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from pydantic import ValidationError

from conceptry.composer.compositions import Composition
from conceptry.composer.credits import combine_rights, list_licenses, list_tokens, rewrite_prompts
from conceptry.composer.masks import MASKS_NAME, Mask, read_mask
from conceptry.composer.plan import Plan
from conceptry.composition import (
    CompositionDocument,
    Member,
    Use,
    Way,
    explain_fault,
    format_composition,
    parse_composition,
)
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import IncompatibleError, InvalidFileError, NotFoundError, StoreError, UsageError
from conceptry.formats.packages import describe_file
from conceptry.licenses import combine_licenses
from conceptry.manifest import (
    Build,
    CompositionMethod,
    File,
    Manifest,
    NamedMember,
    Part,
    Provenance,
    Usage,
)
from conceptry.names import ConceptName, Reference, Requirement, Version

PLAN_NAME: Final = "composition.toml"
_USE_FIELDS: Final = tuple(Use.model_fields)


@runtime_checkable
class Shelf(Protocol):
    """Where concepts are: ``Registry`` is one."""

    def manifest(self, reference: Reference, /) -> Manifest:
        """Returns the manifest of a version. Raises NotFoundError."""

    def get(self, reference: Reference, /) -> Concept:
        """Returns a concept, every byte checked. Raises NotFoundError, IntegrityError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRequest:
    """What the composition is to be called."""

    name: ConceptName
    version: Version
    title: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """A document in which no concept is a composition, and the masks that those brought along."""

    document: CompositionDocument
    masks: tuple[Mask, ...] = ()
    sources: tuple[str, ...] = ()
    """Labels of the compositions that it names no more."""


# --- into a package ------------------------------------------------------------------------------------------------


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
                "rename": {old: new for old, new in planned.words.items() if old != new},
            }
        )
        for member, planned in zip(document.concepts, plan.members, strict=True)
    )
    return document.model_copy(update={"concepts": members, "base": None})


def _make_manifest(plan: Plan, request: PackageRequest, files: Sequence[File]) -> Manifest:
    manifests = [member.concept.manifest for member in plan.members]
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
        tags=tuple(dict.fromkeys(tag for one in manifests for tag in one.tags)),
        authors=tuple(dict.fromkeys(author for one in manifests for author in one.authors)),
        license=combine_licenses(list_licenses(plan)),
        rights=combine_rights([one.rights for one in manifests]),
        tokens=list_tokens(plan),
        usage=Usage(
            prompts=tuple(dict.fromkeys(text for one in plan.members for text in rewrite_prompts(one)))
        ),
        requires=tuple(Requirement.parse(one.label) for one in named),
        builds=(build,),
    )


# --- out of a package ----------------------------------------------------------------------------------------------


def read_plan(concept: Concept) -> CompositionDocument:
    """Returns the plan of a composition, each concept by its digest.

    Raises:
        InvalidFileError: if it is malformed, or names other concepts or masks than the manifest.
        NotFoundError: if its file is not on this machine.
    """
    files = {file.path: file for file in concept.manifest.iter_files()}
    if PLAN_NAME not in files:
        raise InvalidFileError(f"{concept.label} has no {PLAN_NAME}", where="builds[0].parts[0].files")
    if files[PLAN_NAME].size > MAX_DOCUMENT_BYTES:
        raise InvalidFileError(f"{PLAN_NAME} of {concept.label} has more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = parse_composition(concept.locate(files[PLAN_NAME]).read_bytes(), PLAN_NAME)
    except UsageError as error:
        raise InvalidFileError(f"{concept.label}: {error.message}", where=error.where) from error
    named = [(one.concept, one.digest) for one in concept.manifest.members]
    if [(one.reference.concept, one.reference.selector) for one in document.concepts] != named:
        raise InvalidFileError(f"{PLAN_NAME} of {concept.label} names other concepts than its manifest")
    if document.base is not None or any(one.reference.remote for one in document.concepts):
        raise InvalidFileError(
            f"{PLAN_NAME} of {concept.label} names a base or a remote, which no package does"
        )
    for digest in document.list_masks():
        if digest not in {file.sha256 for file in files.values()}:
            raise InvalidFileError(f"{PLAN_NAME} of {concept.label} names the mask {digest}, which it lacks")
    return document


def expand_document(document: CompositionDocument, shelf: Shelf, way: Way | None = None) -> Expanded:
    """Returns the document with the concepts of each composition in the place of its name, times its strength.

    ``way`` is how all are used together, in the place of what the compositions say.

    Raises:
        UsageError: if compositions are used in different ways, one concept comes twice, or a composition is to have
            what only a concept has.
        IncompatibleError: if a composition names another composition.
        NotFoundError: if a concept, or one that a composition names, is not there.
        InvalidFileError, IntegrityError: if a composition is malformed or damaged.
    """
    members: list[Member] = []
    masks: dict[Digest, Mask] = {}
    plans: dict[str, CompositionDocument] = {}
    owners: dict[ConceptName, str | None] = {}
    for member in document.concepts:
        found, owner = [member], None
        if shelf.manifest(member.reference).members:
            concept = shelf.get(member.reference)
            owner, plans[concept.label] = concept.label, read_plan(concept)
            found = _stand_in(member, concept, plans[concept.label], shelf)
            masks |= {mask.digest: mask for mask in _read_masks(concept, plans[concept.label])}
        for one in found:
            _refuse_twice(one, owner, owners)
        members += found
    if not plans:
        return Expanded(document=document)
    settled = _settle_way(document, plans, way)
    try:
        expanded = CompositionDocument(
            base=document.base, concepts=tuple(members), way=settled.way, period=settled.period
        )
    except ValidationError as error:
        raise explain_fault(error, ", ".join(plans)) from error
    return Expanded(document=expanded, masks=tuple(masks.values()), sources=tuple(plans))


def open_composition(concept: Concept, shelf: Shelf, strength: float = 1.0) -> Composition:
    """Returns a composition that is a concept, ready to be attached: ``open_composition(registry.get(REF), registry)``.

    Raises:
        UsageError: if the concept is none.
        IncompatibleError, NotFoundError, InvalidFileError, IntegrityError: as ``expand_document``.
    """
    if not concept.manifest.members:
        raise UsageError(
            f"{concept.label} is no composition", hint="attach it as it is: Composition(concept)"
        )
    plan = read_plan(concept)
    named = Member(reference=Reference(concept.manifest.name, concept.digest), strength=strength)
    members = _stand_in(named, concept, plan, shelf)
    document = plan.model_copy(update={"concepts": tuple(members)})
    concepts = [shelf.get(member.reference) for member in members]
    return Composition.of_document(document, concepts, masks=_read_masks(concept, plan))


def _stand_in(member: Member, concept: Concept, plan: CompositionDocument, shelf: Shelf) -> list[Member]:
    """Returns what stands in the place of a composition: its concepts, each times the strength that it is used at."""
    if member.rename or any(getattr(member, name) for name in _USE_FIELDS):
        raise UsageError(
            f"{concept.label} is a composition, and words, parts, schedules and regions are of its concepts",
            hint=f"name one of them: {', '.join(str(one.concept) for one in concept.manifest.members)}",
        )
    for named in concept.manifest.members:
        _check_named(named, concept, shelf)
    try:
        return [
            type(one).model_validate({**dict(one), "strength": one.strength * member.strength})
            for one in plan.concepts
        ]
    except ValidationError as error:
        raise explain_fault(error, f"{concept.label}*{member.strength:g}") from error


def _check_named(named: NamedMember, concept: Concept, shelf: Shelf) -> None:
    try:
        manifest = shelf.manifest(Reference(named.concept, named.digest))
    except NotFoundError as error:
        raise NotFoundError(
            f"{concept.label} names {named.label} with the digest {named.digest.short}, which is not here",
            hint=f"concepts pull REMOTE::{concept.label} brings what it names",
        ) from error
    if manifest.members:
        raise IncompatibleError(
            f"{concept.label} names {named.label}, which is a composition itself",
            hint="a composition names concepts only: concepts compose puts those of another into a new one",
        )


def _read_masks(concept: Concept, plan: CompositionDocument) -> list[Mask]:
    files = {file.sha256: file for file in concept.manifest.iter_files()}
    return [read_mask(concept.locate(files[digest])) for digest in plan.list_masks()]


def _refuse_twice(member: Member, owner: str | None, owners: dict[ConceptName, str | None]) -> None:
    name = member.reference.concept
    if name in owners and (owner or owners[name]):
        places = " and ".join(one or "by itself" for one in (owners[name], owner))
        raise UsageError(f"{name} is named twice: in {places}", hint="name it once, with a greater strength")
    owners[name] = owner


def _settle_way(
    document: CompositionDocument, plans: dict[str, CompositionDocument], way: Way | None
) -> CompositionDocument:
    """Returns a document whose way and period are those of all."""
    said = [plan for plan in plans.values() if way is None or plan.way == way]
    if document.way != "sum" and way is None:
        said.append(document)
    different = {(one.way, one.period if one.way == "switch" else None) for one in said}
    if len(different) > 1:
        ways = ", ".join(f"{label} by {plan.way}" for label, plan in plans.items())
        raise UsageError(f"these work together in different ways: {ways}", hint="say which: --way sum")
    return said[0] if said else document
