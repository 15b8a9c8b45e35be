"""``concepts push`` and ``concepts pull``: versions to and from remotes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.registry.pulling import Pulled
    from conceptry.registry.transfer import Pushed


@click.command(
    "push",
    cls=ConceptsCommand,
    examples=(
        "concepts push me/imp@1.0.0 studio",
        "concepts push me/imp:stable file:///mnt/share/concepts",
        "concepts push me/imp-look hub --alone",
    ),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@click.argument("remote", metavar="REMOTE")
@click.option("--alone", is_flag=True, help="Send a composition without the concepts that it names.")
@pass_session
def push(session: Session, /, reference: Reference, remote: str, *, alone: bool) -> None:
    """Copy a version to a remote.

    REMOTE is a name of concepts remote add, or an address. A reference by tag moves that tag there too. What the
    remote has already is not sent again. With a composition go the concepts that it names, unless --alone says no.
    """
    with track(session.out, f"pushing {reference}") as meter:
        pushed = session.registry.push(reference, remote, alone=alone, on_event=follow_transfer(meter))
    session.out.emit(
        {**_to_pushed_json(pushed), "members": [_to_pushed_json(one) for one in pushed.members]},
        [_describe_pushed(one) for one in (*pushed.members, pushed)],
        quiet=[str(pushed.digest)],
    )


def _to_pushed_json(pushed: Pushed) -> dict[str, Any]:
    return {
        "reference": str(pushed.reference),
        "digest": str(pushed.digest),
        "remote": pushed.remote,
        "created": pushed.created,
        "sent_bytes": pushed.sent_bytes,
    }


def _describe_pushed(pushed: Pushed) -> str:
    said = f"{format_bytes(pushed.sent_bytes)} sent" if pushed.created else "was there already"
    return f"pushed {pushed.reference} to {pushed.remote} ({said})"


@click.command(
    "pull",
    cls=ConceptsCommand,
    examples=(
        "concepts pull studio::me/imp@1.0.0",
        "concepts pull studio::me/imp studio::bob/ukiyo hub::eve/fox",
    ),
)
@click.argument("references", type=REFERENCE, metavar="REMOTE::REF...", nargs=-1, required=True)
@click.option("--allow-downgrade", is_flag=True, help="Take a latest version that is lower than it was.")
@click.option(
    "--accept-new-identity",
    is_flag=True,
    help="Believe a remote although it contradicts what it said before; ask its publisher first.",
)
@pass_session
def pull(session: Session, /, references: tuple[Reference, ...], **allowed: bool) -> None:
    """Copy versions from remotes.

    Every byte is checked on the way; what is here already is not asked for. All of them are listed here when the last
    byte has arrived, and none before. What was interrupted goes on where it ended. With a composition come the
    concepts that it names, from there or from another remote that has them.
    """
    from conceptry.registry.pulling import PullOptions

    title = str(references[0]) if len(references) == 1 else f"{len(references)} concepts"
    with track(session.out, f"pulling {title}") as meter:
        pulled = session.registry.pull_many(
            references, options=PullOptions(**allowed), on_event=follow_transfer(meter)
        )
    for row in pulled:
        if row.yanked is not None:
            session.out.warn(f"{row.reference} was yanked: {row.yanked}")
    rows = [_to_json(row) for row in pulled]
    session.out.emit(
        {**(rows[0] if len(rows) == 1 else {}), "concepts": rows},
        [_describe(row) for row in pulled],
        quiet=[str(row.reference) for row in pulled],
    )


def _to_json(row: Pulled) -> dict[str, Any]:
    return {
        "reference": str(row.reference),
        "digest": str(row.digest),
        "remote": row.remote,
        "created": row.created,
        "received_bytes": row.received_bytes,
        "commit": row.commit,
        "yanked": row.yanked,
    }


def _describe(row: Pulled) -> str:
    said = f"{format_bytes(row.received_bytes)} received" if row.created else "was here already"
    return f"pulled {row.reference} from {row.remote} ({said})"
