"""``concepts sync``: the store has exactly what the lock says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.session import Session, pass_session

if TYPE_CHECKING:
    from conceptry.registry.syncing import Synced
    from conceptry.registry.workspace import Workspace


@click.command(
    "sync",
    cls=ConceptsCommand,
    examples=("concepts sync", "concepts sync --frozen --offline", "concepts sync --from project.bundle.tar"),
)
@click.option("--frozen", is_flag=True, help="Take the lock as it is; exit with 7 if it is stale.")
@click.option(
    "--from",
    "bundle",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Take it from a concepts bundle.",
)
@click.option(
    "--base-out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --from: where the bundled base is to lie.",
)
@pass_session
def sync(session: Session, /, *, frozen: bool, bundle: Path | None, base_out: Path | None) -> None:
    """Bring all that the project requires into the store.

    Locks first where the lock is missing or stale, unless --frozen. Only what is missing is asked for; once synced,
    nothing is, also with --offline and when the remotes are gone.
    """
    if bundle is not None:
        from conceptry.cli.bundle import sync_bundle

        sync_bundle(session, bundle, base_out)
        return
    from conceptry.cli.projects import find_workspace

    workspace = find_workspace(session)
    count = workspace.count_in_order()
    if count is None:
        synced = _sync(session, workspace, frozen=frozen)
        report_sync(session, workspace, synced)
        return
    document = {"path": str(workspace.lock_path), "concepts": count, "installed": [], "received_bytes": 0}
    session.out.emit(document, [f"nothing to do: {count} concepts are here"])


def _sync(session: Session, workspace: Workspace, *, frozen: bool) -> Synced:
    from conceptry.cli.progress import follow_transfer, track
    from conceptry.cli.projects import report_moves
    from conceptry.errors import LockStaleError

    try:
        lock = workspace.check()
    except LockStaleError as error:
        if frozen:
            raise
        session.out.note(f"{error.message}: locking")
        with track(session.out, "locking"):
            change = workspace.lock()
        report_moves(session, change)
        lock = change.lock
    with track(session.out, "syncing") as meter:
        synced = workspace.sync(lock, on_event=follow_transfer(meter))
    _warn_of_yanks(session, workspace, synced)
    return synced


def _warn_of_yanks(session: Session, workspace: Workspace, synced: Synced) -> None:
    """Says which of what came just now was yanked; what is here already is never asked about."""
    if not synced.installed:
        return
    from conceptry.registry.reports import find_yanked

    for row in find_yanked(workspace, synced.installed):
        session.out.warn(f"{row.reference} {row.message}")


def report_sync(session: Session, workspace: Workspace, synced: Synced) -> None:
    """Prints what a sync did."""
    from conceptry.cli.text import format_bytes

    document = {
        "path": str(workspace.lock_path),
        "concepts": synced.concepts,
        "installed": [str(reference) for reference in synced.installed],
        "received_bytes": synced.received_bytes,
    }
    lines = [f"+ {reference}" for reference in synced.installed]
    said = f"{len(synced.installed)} of {synced.concepts} concepts were missing"
    session.out.emit(
        document,
        [*lines, f"{said}, {format_bytes(synced.received_bytes)} received"],
        quiet=[str(reference) for reference in synced.installed],
    )
