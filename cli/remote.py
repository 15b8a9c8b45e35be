"""``concepts remote ...``: where others keep their concepts, by name."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsGroup
from conceptry.cli.session import Session, pass_session
from conceptry.names import parse_remote_name


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
@click.option("--project", is_flag=True, help="Write it into concepts.toml, so that the project carries it.")
@pass_session
def add(session: Session, /, name: str, uri: str, *, project: bool) -> None:
    """Give the address of a remote a name.

    Nothing is contacted. Addresses never carry credentials. A name in a project's concepts.toml comes before yours.
    """
    if project:
        from conceptry.cli.projects import find_workspace

        find_workspace(session).add_remote(parse_remote_name(name), uri)
    else:
        session.registry.add_remote(parse_remote_name(name), uri)
    session.out.emit({"name": name, "uri": uri}, [f"{name} is {uri}"])


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
@pass_session
def remove(session: Session, /, name: str) -> None:
    """Forget the name of a remote.

    What lies there stays there.
    """
    session.registry.remove_remote(parse_remote_name(name))
    session.out.emit({"name": name, "removed": True}, [f"removed the remote {name}; what lies there stays"])
