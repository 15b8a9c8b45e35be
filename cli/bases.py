"""Which base a command works on, and opening it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.bases import FAMILY_BY_ID, BaseIdentity, FamilyId
from conceptry.cli.progress import track
from conceptry.cli.session import Session
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from conceptry.concepts import Concept
    from conceptry.trainer.precision import DeviceName

TOYBOX: Final = FamilyId("toybox")


def choose_base(session: Session, text: str | None, concepts: Sequence[Concept] = ()) -> BaseLocation:
    """Returns the base that ``--base`` names; without it the toybox, if all concepts have a build for it.

    A manifest names repositories, but nothing that it names is opened by itself.

    Raises:
        NotFoundError: if nothing is called so.
        UsageError: if no base is named and the concepts are for another than the toybox.
    """
    if text is not None:
        return resolve_base(text, session.registry.bases())
    for concept in concepts:
        bases = [build.base for build in concept.manifest.builds]
        if all(base.family != TOYBOX for base in bases):
            made_for = bases[0].repo or bases[0].family
            raise UsageError(
                f"{concept.label} was made for {made_for}, and no base is named",
                hint="add --base with a folder, a checkpoint or a name; concepts base list shows the names",
            )
    return resolve_base(TOYBOX, {})


def open_base(session: Session, location: BaseLocation, *, device: DeviceName = "auto") -> Any:
    """Returns the pipeline of a base, with a bar while it is loaded.

    Raises:
        UsageError, NotFoundError, IncompatibleError, InvalidFileError: if it cannot be opened.
    """
    with track(session.out, "loading the base"):
        from conceptry.composer.loading import load_pipeline
        from conceptry.trainer.precision import choose_device

        return load_pipeline(location, device=choose_device(device))


def identify_base(session: Session, location: BaseLocation) -> BaseIdentity:
    """Returns what is known of a base: its fingerprints, or its family alone where only that is declared."""
    if location.path is None and location.family is not None:
        family = FAMILY_BY_ID[location.family]
        return BaseIdentity(family=family.id, prediction_type=family.prediction_type)
    pipeline = open_base(session, location)
    from conceptry.composer.fingerprints import identify_pipeline

    return identify_pipeline(pipeline)
