"""``concepts yank``: a version that nobody should choose anew, and back; here or on a remote."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE
from conceptry.cli.session import Session, pass_session
from conceptry.errors import UsageError
from conceptry.names import Reference


@click.command(
    "yank",
    cls=ConceptsCommand,
    examples=(
        "concepts yank me/imp@1.1.0 --reason 'trained on the wrong pictures'",
        "concepts yank studio::me/imp@1.1.0 --reason 'trained on the wrong pictures'",
        "concepts yank me/imp@1.1.0 --undo",
    ),
)
@click.argument("reference", type=REFERENCE, metavar="[REMOTE::]REF")
@click.option("--reason", metavar="TEXT", help="What people should know; shown to those who have it.")
@click.option("--undo", is_flag=True, help="Take the mark back.")
@pass_session
def yank(session: Session, /, reference: Reference, *, reason: str | None, undo: bool) -> None:
    """Say that nobody should choose a version anew.

    It stays where it is: locks that have it keep working, and it can be named and pulled. latest and ranges pass
    over it.
    """
    if undo == (reason is not None):
        raise UsageError("a yank needs its reason, or --undo", hint="--reason 'what people should know'")
    done = session.registry.yank(reference, reason)
    said = "is no longer yanked" if undo else f"is yanked: {reason}"
    document = {"reference": str(done), "yanked": not undo, "reason": reason}
    session.out.emit(document, [f"{done} {said}"], quiet=[str(done)])
