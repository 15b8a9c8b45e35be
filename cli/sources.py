"""What a picture was made from, found here or on a remote: its base, and its concepts by their digests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.cli.bases import TOYBOX
from conceptry.cli.members import fetch_composition
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session
from conceptry.errors import ConceptryError, NotFoundError, UsageError
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.composer.compositions import Composition
    from conceptry.formats.picture_records import LockedComposition, LockedMember, PictureRecord


def find_base(session: Session, text: str | None, record: PictureRecord) -> BaseLocation:
    """Returns the base named by ``--base``, else the one of the picture's name among the user's own.

    A picture names repositories, but nothing that it names is opened by itself.

    Raises:
        UsageError: if the picture was drawn by a base that has no name here.
        NotFoundError: if nothing is called or lies there.
    """
    named = session.registry.bases()
    if text is not None:
        return resolve_base(text, named)
    if record.base.family == TOYBOX and record.base.name == TOYBOX:
        return resolve_base(TOYBOX, {})
    if record.base.name is not None and record.base.name in named:
        return resolve_base(record.base.name, named)
    called = record.base.name or f"a base of family {record.base.family} without a name"
    raise UsageError(
        f"the picture was drawn by {called[:120]}, which has no name here",
        hint="add --base with its folder or checkpoint; it is compared before anything is drawn",
    )


def fetch_locked(session: Session, locked: LockedComposition, places: Sequence[Path] = ()) -> Composition:
    """Returns the concepts of a locked composition, those that the store lacks pulled by their digests.

    Args:
        session: of the run.
        locked: what a picture carries.
        places: files of masks, and folders in whose ``masks`` they lie.

    Raises:
        NotFoundError: if one is neither here nor on a remote that is configured, or a mask is nowhere.
        IntegrityError: if a byte of one changed.
    """
    from conceptry.composer.masks import find_masks

    masks = find_masks(locked.list_masks(), places)
    members = []
    for member in locked.concepts:
        exact = Reference(member.reference.concept, member.digest)
        try:
            session.registry.resolve(exact)
        except NotFoundError:
            _pull(session, member)
        members.append(member.model_copy(update={"reference": exact}))
    return fetch_composition(session, locked.model_copy(update={"concepts": tuple(members)}), masks)


def _pull(session: Session, member: LockedMember) -> None:
    name, version = member.reference.concept, member.reference.version
    if version is None:
        raise UsageError(f"the picture names no version of {name}")
    reasons = []
    for remote in session.registry.remotes():
        try:
            if session.registry.open_remote(remote).read_version(name, version) == member.digest:
                with track(session.out, f"pulling {member.reference}") as meter:
                    wanted = Reference(name, version, remote)
                    session.registry.pull(wanted, on_event=follow_transfer(meter))
                return
        except ConceptryError as error:
            reasons.append(f"{remote}: {error.message}")
    asked = (
        "; ".join(reasons)
        or f"asked: {', '.join(session.registry.remotes()) or 'no remote, none is configured'}"
    )
    raise NotFoundError(
        f"{member.reference} with the digest {member.digest.short} is neither here nor on a remote ({asked})",
        hint="concepts remote add NAME URI, with the remote of whoever drew the picture",
    )
