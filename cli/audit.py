"""``concepts outdated`` and ``concepts audit``: what is newer, and what speaks against using what is locked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.progress import track
from conceptry.cli.projects import find_workspace
from conceptry.cli.session import Session, pass_session

if TYPE_CHECKING:
    from conceptry.registry.inspection import OutdatedRow


@click.command(
    "outdated", cls=ConceptsCommand, examples=("concepts outdated", "concepts outdated --exit-code")
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if something is newer, or not as it was locked.")
@pass_session
def outdated(session: Session, /, *, exit_code: bool) -> int:
    """Show which locked concepts are not the newest, or not sound.

    Besides newer versions it names what was yanked, and what is not on its remote as it was locked.
    """
    from conceptry.registry.reports import find_outdated

    workspace = find_workspace(session)
    with track(session.out, "asking the remotes"):
        rows = find_outdated(workspace)
    session.out.emit_table(
        {
            "concepts": [
                {
                    "name": str(row.name),
                    "locked": str(row.locked),
                    "compatible": None if row.compatible is None else str(row.compatible),
                    "newest": str(row.newest),
                    "only_metrics": row.only_metrics,
                    "fault": row.standing and row.standing.fault,
                    "message": row.standing and row.standing.message,
                }
                for row in rows
            ]
        },
        ("CONCEPT", "LOCKED", "IN RANGE", "NEWEST", ""),
        [
            (
                str(row.name),
                str(row.locked),
                str(row.compatible or row.locked),
                str(row.newest),
                _describe_row(row),
            )
            for row in rows
        ],
        empty="everything is at its newest version",
    )
    if any(row.compatible for row in rows):
        session.out.note("concepts lock --upgrade takes what is in range")
    return int(bool(rows) and exit_code)


def _describe_row(row: OutdatedRow) -> str:
    if row.standing is not None:
        return row.standing.message
    return "only its measurements changed" if row.only_metrics else ""


@click.command(
    "audit", cls=ConceptsCommand, examples=("concepts audit", "concepts audit --exit-code --offline")
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if something is found.")
@pass_session
def audit(session: Session, /, *, exit_code: bool) -> int:
    """List what should be looked at before the concepts are used.

    Licences that are missing, unknown or in conflict, rights that nobody answered for, and versions that were yanked
    since, are gone from their remote, or have other contents there than were locked.
    """
    from conceptry.registry import reports
    from conceptry.registry.http import is_offline

    workspace = find_workspace(session)
    with track(session.out, "asking the remotes"):
        report = reports.audit(workspace, ask_remotes=not is_offline())
    session.out.emit_table(
        {
            "concepts": report.concepts,
            "asked_remotes": report.asked_remotes,
            "findings": [
                {"fault": row.fault, "reference": row.reference, "message": row.message}
                for row in report.findings
            ],
        },
        ("CONCEPT", "FOUND", ""),
        [(row.reference, row.fault.replace("_", " "), row.message) for row in report.findings],
        empty=f"nothing was found in {report.concepts} concepts",
    )
    if not report.asked_remotes:
        session.out.note("the remotes were not asked about yanked versions")
    return int(bool(report.findings) and exit_code)
