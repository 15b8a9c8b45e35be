"""``concepts remote ...``: where others keep their concepts, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from conceptry.cli.groups import ConceptsGroup
from conceptry.cli.session import Session, pass_session
from conceptry.names import parse_remote_name

if TYPE_CHECKING:
    from conceptry.registry.workspace import Workspace


@click.group(cls=ConceptsGroup)
def remote() -> None:
    """Add, list and remove remotes."""


@remote.command(
    "add",
    examples=(
        "concepts remote add studio file:///mnt/share/concepts",
        "concepts push me/imp studio",
    ),
)
@click.argument("name")
@click.argument("uri")
@click.option(
    "--project/--user",
    "project",
    default=None,
    help="Into concepts.toml, so that the project carries it, or into your own settings. Default: where a project is,"
    " into it.",
)
@pass_session
def add(session: Session, /, name: str, uri: str, *, project: bool | None) -> None:
    """Give the address of a remote a name.

    Nothing is contacted. Addresses never carry credentials. A name in a project's concepts.toml comes before yours.
    """
    workspace = _choose_workspace(session, project)
    if workspace is None:
        session.registry.add_remote(parse_remote_name(name), uri)
        place = session.registry.store.layout.config
    else:
        workspace.add_remote(parse_remote_name(name), uri)
        place = workspace.read_project().path
    session.out.emit({"name": name, "uri": uri, "path": str(place)}, [f"{name} is {uri}"])
    session.out.note(f"written into {place}")


def _choose_workspace(session: Session, project: bool | None) -> Workspace | None:
    """Returns the project whose remotes are meant, None for the user's own."""
    from conceptry.registry.workspace import find_folder

    if project is False or (project is None and find_folder(Path.cwd()) is None):
        return None
    from conceptry.cli.projects import find_workspace

    return find_workspace(session)


@remote.command("list", examples=("concepts remote list",))
@pass_session
def list_remotes(session: Session, /) -> None:
    """List the remotes."""
    remotes = session.registry.remotes()
    session.out.emit_table(
        {"remotes": [{"name": name, "uri": uri} for name, uri in remotes.items()]},
        ("REMOTE", "ADDRESS"),
        list(remotes.items()),
        empty="no remote yet: concepts remote add NAME file:///path",
    )


@remote.command("remove", examples=("concepts remote remove studio",))
@click.argument("name")
@click.option(
    "--project/--user",
    "project",
    default=None,
    help="From concepts.toml, or from your own settings. Default: from the project, if it has that name.",
)
@pass_session
def remove(session: Session, /, name: str, *, project: bool | None) -> None:
    """Forget the name of a remote.

    What lies there stays there.
    """
    checked = parse_remote_name(name)
    workspace = _choose_workspace(session, project)
    if workspace is None or (project is None and checked not in workspace.read_project().remotes):
        session.registry.remove_remote(checked)
    else:
        workspace.remove_remote(checked)
    session.out.emit({"name": name, "removed": True}, [f"removed the remote {name}; what lies there stays"])
