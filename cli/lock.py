"""``concepts lock``: exactly which versions a project uses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.progress import track
from conceptry.cli.projects import find_workspace, list_locked, report_change
from conceptry.cli.session import Session, pass_session
from conceptry.errors import ConceptryError, NotFoundError, UsageError, suggest_nearest
from conceptry.names import ConceptName

if TYPE_CHECKING:
    from conceptry.registry.workspace import Workspace


@click.command(
    "lock",
    cls=ConceptsCommand,
    examples=("concepts lock", "concepts lock --check", "concepts lock --upgrade-package me/imp"),
)
@click.option("--check", is_flag=True, help="Change nothing; exit with 7 if the lock is stale.")
@click.option("--upgrade", is_flag=True, help="Take the newest version of everything that its range takes.")
@click.option(
    "--upgrade-package", multiple=True, metavar="NS/NAME", help="The same for one concept; can be repeated."
)
@pass_session
def lock(session: Session, /, *, check: bool, upgrade: bool, upgrade_package: tuple[str, ...]) -> None:
    """Write exactly what the project requires.

    What is locked and still in range stays where it is. Nothing but descriptions is downloaded; concepts sync brings
    the rest.
    """
    workspace = find_workspace(session)
    if check:
        if upgrade or upgrade_package:
            raise UsageError("--check changes nothing, --upgrade does", hint="leave one of them out")
        found = workspace.check()
        document = {"path": str(workspace.lock_path), "changed": False, "moves": [], "warnings": []}
        session.out.emit(
            {**document, "concepts": list_locked(found)}, [f"the lock answers {workspace.folder}"], quiet=()
        )
        return
    names = [ConceptName.parse(name) for name in upgrade_package]
    _refuse_unknown(workspace, names)
    with track(session.out, "locking"):
        change = workspace.lock(upgrade=upgrade, upgraded=names)
    report_change(session, change, path=str(workspace.lock_path))


def _refuse_unknown(workspace: Workspace, names: Iterable[ConceptName]) -> None:
    """Raises NotFoundError for a concept that is neither required nor locked; without a lock, nobody knows yet."""
    known = {one.name for one in workspace.read_project().requirements}
    try:
        known |= {one.name for one in workspace.read_lock().concepts}
    except ConceptryError:
        return
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"the project does not require {name}, and nothing in it does",
                hint=suggest_nearest(str(name), map(str, known)) or "concepts tree shows what it requires",
            )
