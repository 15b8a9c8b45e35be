"""``concepts doctor``: what is wrong with the store, and what was done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things
from conceptry.errors import IntegrityError

if TYPE_CHECKING:
    from conceptry.registry.doctor import Diagnosis


@click.command("doctor", cls=ConceptsCommand, examples=("concepts doctor", "concepts doctor --dry-run"))
@click.option("--dry-run", is_flag=True, help="Say what is wrong and what would be done, and stop.")
@pass_session
def doctor(session: Session, /, *, dry_run: bool) -> None:
    """Find what is wrong with the store, and put it right.

    Missing and damaged bytes come back from the trash or from a configured remote; damaged files go to the trash.
    Exit code 4 when something stays wrong.
    """
    with track(session.out, "examining") as meter:
        found = session.registry.examine(dry_run=dry_run, on_event=follow_transfer(meter))
    wrong = [row for row in found if row.state != "repaired"]
    document = {"ok": not wrong, "dry_run": dry_run, "findings": [_to_json(row) for row in found]}
    lines = [f"{row.path}: {row.message}: {row.done}" for row in found] or ["the store is healthy"]
    session.out.emit(document, lines, quiet=[row.path for row in wrong])
    if wrong:
        first = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        hint = "concepts doctor puts right what can be" if dry_run else first.done
        raise IntegrityError(f"{first.message}{more}", where=first.path, hint=hint)
    if found:
        session.out.note(f"{count_things(len(found), 'thing')} put right")


def _to_json(row: Diagnosis) -> dict[str, Any]:
    return {
        "fault": row.fault,
        "path": row.path,
        "message": row.message,
        "state": row.state,
        "done": row.done,
        "reference": None if row.reference is None else str(row.reference),
    }
