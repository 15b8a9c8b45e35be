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
    byte has arrived, and none before. What was interrupted goes on where it ended.
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
