"""``concepts publish``: a folder with a manifest becomes a version in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session

if TYPE_CHECKING:
    from conceptry.registry.publish import Published


@click.command("publish", cls=ConceptsCommand, examples=("concepts publish ./imp",))
@click.argument("folder", type=PATH, metavar="DIR")
@pass_session
def publish(session: Session, /, folder: Path) -> None:
    """Publish a folder with a concept.json into the store.

    Publishing the same contents again changes nothing; other contents under an existing version are a conflict.
    """
    published = publish_folder(session, folder)
    session.out.emit(to_json(published), [describe(published)], quiet=[str(published.reference)])


def publish_folder(session: Session, folder: Path) -> Published:
    """Returns the version that a folder became, with a bar while it is copied."""
    with track(session.out, "publishing") as meter:
        published = session.registry.publish(folder, on_event=follow_transfer(meter))
    if published.created and published.same_tensors:
        session.out.warn(
            f"{published.reference} has the same tensors as {', '.join(published.same_tensors[:5])}"
        )
    return published


def to_json(published: Published) -> dict[str, Any]:
    """Returns what every command that publishes prints of the version."""
    return {
        "reference": str(published.reference),
        "digest": str(published.digest),
        "created": published.created,
        "same_tensors": list(published.same_tensors),
    }


def describe(published: Published) -> str:
    """Returns the version in a line for people."""
    said = "published" if published.created else "was here already:"
    return f"{said} {published.reference} (sha256:{published.digest.short}…)"
