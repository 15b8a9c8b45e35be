"""``concepts tree`` and ``concepts why``: what is in a project, and because of whom."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import complete_concepts
from conceptry.cli.projects import find_workspace
from conceptry.cli.session import Session, pass_session
from conceptry.names import ConceptName


@click.command("tree", cls=ConceptsCommand, examples=("concepts tree",))
@pass_session
def tree(session: Session, /) -> None:
    """Show what the project requires, and what that requires."""
    from conceptry.registry.inspection import list_tree

    workspace = find_workspace(session)
    rows = list_tree(workspace.read_lock(), workspace.read_project())
    document = {
        "concepts": [
            {
                "name": str(row.name),
                "version": str(row.version),
                "asked": row.asked,
                "depth": row.depth,
                "repeated": row.repeated,
            }
            for row in rows
        ]
    }
    lines = [
        f"{'  ' * row.depth}{row.name} {row.version} ({row.asked}){' ...' if row.repeated else ''}"
        for row in rows
    ]
    session.out.emit(
        document, lines or ["nothing is required"], quiet=[f"{row.name}@{row.version}" for row in rows]
    )


@click.command("why", cls=ConceptsCommand, examples=("concepts why me/hat",))
@click.argument(
    "name", metavar="NS/NAME", shell_complete=lambda context, parameter, text: complete_concepts(text)
)
@pass_session
def why(session: Session, /, name: str) -> None:
    """Say why a concept is part of the project."""
    from conceptry.registry.inspection import explain_why

    workspace = find_workspace(session)
    concept = ConceptName.parse(name)
    chains = explain_why(workspace.read_lock(), workspace.read_project(), concept)
    lines = [f"{'  ' * depth}{step}" for chain in chains for depth, step in enumerate(chain)]
    session.out.emit({"name": str(concept), "chains": [list(chain) for chain in chains]}, lines)
