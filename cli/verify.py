"""``concepts verify``: every reference, manifest and blob read again."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session
from conceptry.names import Reference


@click.command("verify", cls=ConceptsCommand, examples=("concepts verify", "concepts verify me/imp@1.0.0"))
@click.argument("reference", type=REFERENCE, required=False, metavar="[REF]")
@pass_session
def verify(session: Session, /, reference: Reference | None) -> None:
    """Read every byte again and name what is wrong.

    Exit code 4 when anything is. The index, which can be made anew from the files, is repaired on the way.
    """
    from conceptry.registry.verify import raise_first

    registry = session.registry
    with track(session.out, "reading") as meter:
        findings = registry.verify(reference, on_event=follow_transfer(meter))
    rows = [
        {
            "fault": finding.fault,
            "path": finding.path,
            "message": finding.message,
            "reference": None if finding.reference is None else str(finding.reference),
            "file": finding.file,
            "place": finding.place,
        }
        for finding in findings
    ]
    what = "the store" if reference is None else str(reference)
    lines = [f"{finding.path}: {finding.message}" for finding in findings] or [f"{what}: every byte is right"]
    session.out.emit({"ok": not findings, "findings": rows}, lines, quiet=[row.path for row in findings])
    raise_first(findings)
