"""The concepts of a composition in the place of its name: out of its package, times its strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from pydantic import ValidationError

from conceptry.composer.compositions import Composition
from conceptry.composer.masks import Mask, read_mask
from conceptry.composition import (
    PLAN_NAME,
    CompositionDocument,
    Member,
    Use,
    Way,
    explain_fault,
    parse_composition,
)
from conceptry.concepts import Concept
from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import IncompatibleError, InvalidFileError, NotFoundError, UsageError
from conceptry.manifest import Manifest, NamedMember
from conceptry.names import ConceptName, Reference

_USE_FIELDS: Final = tuple(Use.model_fields)


@runtime_checkable
class Shelf(Protocol):
    """Where concepts are: ``Registry`` is one."""

    def manifest(self, reference: Reference, /) -> Manifest:
        """Returns the manifest of a version. Raises NotFoundError."""

    def get(self, reference: Reference, /) -> Concept:
        """Returns a concept, every byte checked. Raises NotFoundError, IntegrityError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """A document in which no concept is a composition, and the masks that those brought along."""

    document: CompositionDocument
    masks: tuple[Mask, ...] = ()
    sources: tuple[str, ...] = ()
    """Labels of the compositions that it names no more."""


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
