"""``concepts remove``: a version out of the listing, and back."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE, yes_option
from conceptry.cli.session import Session, pass_session
from conceptry.names import Reference


@click.command(
    "remove",
    cls=ConceptsCommand,
    examples=(
        "concepts remove me/imp@1.0.0",
        "concepts remove me/imp@1.0.0 --dry-run",
        "concepts remove me/imp@1.0.0 --restore",
    ),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@click.option("--restore", is_flag=True, help="Bring a removed version back.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed and stop.")
@yes_option
@pass_session
def remove(session: Session, /, reference: Reference, *, restore: bool, dry_run: bool) -> None:
    """Take a version out of the store.

    It goes to the store's trash and --restore brings it back. What was pushed stays where it was pushed to.
    """
    registry = session.registry
    if restore:
        version = registry.restore(reference)
        document = {"reference": str(version.reference), "digest": str(version.digest), "restored": True}
        session.out.emit(document, [f"restored {version.reference}"], quiet=[str(version.reference)])
        return
    version = registry.resolve(reference)
    if not dry_run:
        session.confirm(f"Remove {version.reference} from the store?")
        version = registry.remove(reference)
    document = {"reference": str(version.reference), "digest": str(version.digest), "removed": not dry_run}
    said = "would remove" if dry_run else "removed"
    session.out.emit(document, [f"{said} {version.reference}"], quiet=[str(version.reference)])
    if not dry_run:
        session.out.note(f"concepts remove {version.reference} --restore brings it back")
