"""``concepts compose --publish``: the composition becomes a concept that names its concepts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.cli.publish import publish_folder
from conceptry.cli.session import Session
from conceptry.errors import IncompatibleError, UsageError
from conceptry.names import ConceptName, Reference, Version, parse_version

if TYPE_CHECKING:
    from conceptry.composer.masks import Mask
    from conceptry.composer.plan import Plan
    from conceptry.composition import CompositionDocument
    from conceptry.registry.publish import Published

_FIRST_VERSION: Final = "0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """What the composition is to be called."""

    name: ConceptName
    version: Version
    title: str


def read_publish_request(given: Mapping[str, Any]) -> PublishRequest | None:
    """Returns what ``--publish`` asks for, None without it. Raises UsageError, InvalidNameError."""
    if given["name"] is None:
        said = next((name for name in ("version", "title") if given[name] is not None), None)
        if said is not None:
            raise UsageError(f"--{said} is of --publish", hint="add --publish NS/NAME")
        return None
    return PublishRequest(
        name=ConceptName.parse(given["name"]),
        version=parse_version(given["version"] or _FIRST_VERSION),
        title=given["title"] or "",
    )


def publish_composition(
    session: Session,
    request: PublishRequest,
    plan: Plan,
    document: CompositionDocument,
    masks: tuple[Mask, ...],
) -> Published:
    """Returns the version that the composition became.

    Raises:
        IncompatibleError: if somebody wants one of the concepts chosen no more.
        UsageError: if it is called as one of them.
        ConflictError: if the version exists with other contents.
    """
    from conceptry.composer.packaged import PackageRequest, write_composition

    _refuse_yanked(session, plan)
    with tempfile.TemporaryDirectory(prefix="conceptry-compose-") as parent:
        folder = Path(parent) / "composition"
        asked = PackageRequest(name=request.name, version=request.version, title=request.title)
        write_composition(plan, document, masks, asked, folder)
        return publish_folder(session, folder)


def _refuse_yanked(session: Session, plan: Plan) -> None:
    for member in plan.members:
        reference = Reference(member.concept.manifest.name, member.concept.digest)
        yanked = session.registry.show(reference).yanked
        if yanked is not None:
            raise IncompatibleError(
                f"{member.concept.label} was yanked: {yanked}",
                hint=f"name another version; concepts show {member.concept.manifest.name} lists them",
            )
