"""``concepts push`` and ``concepts pull``: versions to and from remotes."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes
from conceptry.names import Reference


@click.command(
    "push",
    cls=ConceptsCommand,
    examples=("concepts push me/imp@1.0.0 studio", "concepts push me/imp:stable file:///mnt/share/concepts"),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@click.argument("remote", metavar="REMOTE")
@pass_session
def push(session: Session, /, reference: Reference, remote: str) -> None:
    """Copy a version to a remote.

    REMOTE is a name of concepts remote add, or an address. A reference by tag moves that tag there too. What the
    remote has already is not sent again.
    """
    with track(session.out, f"pushing {reference}") as meter:
        pushed = session.registry.push(reference, remote, on_event=follow_transfer(meter))
    said = f"{format_bytes(pushed.sent_bytes)} sent" if pushed.created else "was there already"
    session.out.emit(
        {
            "reference": str(pushed.reference),
            "digest": str(pushed.digest),
            "remote": pushed.remote,
            "created": pushed.created,
            "sent_bytes": pushed.sent_bytes,
        },
        [f"pushed {pushed.reference} to {pushed.remote} ({said})"],
        quiet=[str(pushed.digest)],
    )


@click.command(
    "pull",
    cls=ConceptsCommand,
    examples=("concepts pull studio::me/imp@1.0.0", "concepts pull studio::me/imp"),
)
@click.argument("reference", type=REFERENCE, metavar="REMOTE::REF")
@pass_session
def pull(session: Session, /, reference: Reference) -> None:
    """Copy a version from a remote.

    Every byte is checked on the way; a version is listed here when all of it has arrived, and never before.
    """
    with track(session.out, f"pulling {reference}") as meter:
        pulled = session.registry.pull(reference, on_event=follow_transfer(meter))
    said = f"{format_bytes(pulled.received_bytes)} received" if pulled.created else "was here already"
    session.out.emit(
        {
            "reference": str(pulled.reference),
            "digest": str(pulled.digest),
            "remote": pulled.remote,
            "created": pulled.created,
            "received_bytes": pulled.received_bytes,
        },
        [f"pulled {pulled.reference} from {pulled.remote} ({said})"],
        quiet=[str(pulled.reference)],
    )
