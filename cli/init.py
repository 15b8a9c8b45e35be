"""``concepts init``: a folder becomes a project."""

from __future__ import annotations

from pathlib import Path

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.session import Session, pass_session


@click.command(
    "init", cls=ConceptsCommand, examples=("concepts init", "concepts init --name picture-book --base sd1")
)
@click.option("--name", metavar="NAME", help="What the project is called; for people only.")
@click.option("--base", metavar="BASE", help="The base that its concepts must fit, as for --base elsewhere.")
@pass_session
def init(session: Session, /, *, name: str | None, base: str | None) -> None:
    """Make a project of this folder.

    Writes concepts.toml, which is found from every folder below.
    """
    from conceptry.base_locations import resolve_base
    from conceptry.registry.workspace import create_project

    if base is not None:
        resolve_base(base, session.registry.bases())
    project = create_project(Path.cwd(), name=name, base=base)
    document = {"path": str(project.path), "name": project.name, "base": project.base}
    session.out.emit(document, [f"made {project.path}"], quiet=[str(project.path)])
    session.out.note("concepts add NAMESPACE/NAME requires a concept")
