"""``concepts publish``: a folder with a manifest becomes a version in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session

if TYPE_CHECKING:
    from conceptry.digests import Digest
    from conceptry.registry.publish import Published
    from conceptry.written_files import FileStamp


@click.command("publish", cls=ConceptsCommand, examples=("concepts publish ./imp",))
@click.argument("folder", type=PATH, metavar="DIR")
@pass_session
def publish(session: Session, /, folder: Path) -> None:
    """Publish a folder with a concept.json into the store.

    Publishing the same contents again changes nothing; other contents under an existing version are a conflict.
    """
    published = publish_folder(session, folder)
    session.out.emit(to_json(published), [describe(published)], quiet=[str(published.reference)])


def publish_folder(
    session: Session,
    folder: Path,
    *,
    made_of: str | None = None,
    written: Mapping[FileStamp, Digest] | None = None,
) -> Published:
    """Returns the version that a folder became, with a bar while it is copied.

    That it has the tensors of another version is said, except of the one that it was ``made_of``. Files ``written``
    by this process are moved into the store instead of read again.
    """
    with track(session.out, "publishing") as meter:
        published = session.registry.publish(folder, written=written, on_event=follow_transfer(meter))
    same = [text for text in published.same_tensors if text != made_of]
    if published.created and same:
        session.out.warn(f"{published.reference} has the same tensors as {', '.join(same[:5])}")
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
