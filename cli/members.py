"""From ``--with REF*STRENGTH`` and composition files to concepts of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conceptry.cli.progress import track
from conceptry.cli.session import Session
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from conceptry.composer.compositions import Composition
    from conceptry.composer.masks import Mask
    from conceptry.composition import CompositionDocument, Member, Way
    from conceptry.names import Placeholder


def read_document(members: Sequence[Member], file: Path | None) -> CompositionDocument:
    """Returns the composition that members write, or that a file holds. Raises UsageError for both and for neither."""
    from conceptry.composition import CompositionDocument, read_composition

    if file is not None and members:
        raise UsageError("concepts and a composition file are named at once", hint="name one of them")
    if file is not None:
        return read_composition(file)
    if not members:
        raise UsageError("no concept is named", hint="name one, such as me/imp or me/imp*0.7")
    return CompositionDocument(concepts=tuple(members))


def expand(
    session: Session, document: CompositionDocument, way: Way | None = None
) -> tuple[CompositionDocument, tuple[Mask, ...]]:
    """Returns the document with the concepts of each composition in the place of its name, and those's masks.

    Raises:
        UsageError, IncompatibleError, NotFoundError, InvalidFileError: as ``expand_document``.
        IntegrityError: likewise, and if the document names a concept by another digest.
    """
    if any(one.digest is not None for one in document.concepts):
        document.check_digests([session.registry.resolve(one.reference).digest for one in document.concepts])
    if not any(session.registry.manifest(one.reference).members for one in document.concepts):
        return document, ()
    from conceptry.composer.expansions import expand_document

    expanded = expand_document(document, session.registry, way)
    return expanded.document, expanded.masks


def read_masks(document: CompositionDocument, file: Path | None) -> tuple[Mask, ...]:
    """Returns the masks that a composition file names, from beside it, every byte checked.

    Raises:
        NotFoundError, IntegrityError, InvalidFileError: as ``find_masks``.
    """
    digests = document.list_masks()
    if file is None or not digests:
        return ()
    from conceptry.composer.masks import find_masks

    return find_masks(digests, [file.parent])


def fetch_composition(
    session: Session, document: CompositionDocument, masks: Sequence[Mask] = ()
) -> Composition:
    """Returns the concepts of a composition, from the store, every byte checked, with the masks of its regions.

    Raises:
        NotFoundError: if the store lacks one.
        IntegrityError: if a byte of one changed.
    """
    with track(session.out, "reading the concepts"):
        from conceptry.composer.compositions import Composition

        concepts = [session.registry.get(member.reference) for member in document.concepts]
    return Composition.of_document(document, concepts, masks=masks)


def rename_members(
    members: Sequence[Member], renames: Sequence[tuple[str, Placeholder, Placeholder]]
) -> tuple[Member, ...]:
    """Returns the members with other words: ``("me/imp", "<imp>", "<devil>")``. Raises UsageError."""
    changed = list(members)
    for name, old, new in renames:
        places = [place for place, member in enumerate(changed) if str(member.reference.concept) == name]
        if not places:
            known = ", ".join(str(member.reference.concept) for member in members)
            raise UsageError(f"{name!r} is to be renamed but not named", hint=f"named are {known}")
        member = changed[places[0]]
        changed[places[0]] = member.model_copy(update={"rename": {**member.rename, old: new}})
    return tuple(changed)
