"""``concepts add`` and ``concepts drop``: what a project requires."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import complete_concepts
from conceptry.cli.progress import track
from conceptry.cli.projects import find_workspace, report_change
from conceptry.cli.session import Session, pass_session
from conceptry.errors import UsageError
from conceptry.names import ConceptName, Requirement, parse_placeholder
from conceptry.sources import Source, parse_path_source, parse_source

if TYPE_CHECKING:
    from conceptry.registry.project import ProjectRequirement


@click.command(
    "add",
    cls=ConceptsCommand,
    examples=(
        "concepts add studio::me/imp",
        "concepts add 'me/imp@^1.2' --strength 0.7",
        "concepts add ./files/hat.safetensors --name me/hat --placeholder '<hat>' --license CC0-1.0",
    ),
)
@click.argument("what", metavar="[REMOTE::]NS/NAME[@RANGE]|FILE")
@click.option("--strength", type=float, help="How strongly the project uses it.")
@click.option("--build", metavar="ID", help="Which of its builds, where the base leaves a choice.")
@click.option("--name", metavar="NS/NAME", help="Of a file: what it is to be called here.")
@click.option("--placeholder", metavar="WORD", help="Of a file: the word that calls it.")
@click.option("--superclass", metavar="WORD", help="Of a file: the ordinary word that it specialises.")
@click.option("--license", metavar="SPDX", help="Of a file: its licence, as its author says.")
@click.option("--base", metavar="FAMILY", help="Of a file: the base family that it was made for.")
@click.option("--air", metavar="AIR", help="Of a file: the Civitai AIR that it was found under.")
@pass_session
def add(session: Session, /, what: str, **given: Any) -> None:
    """Require a concept, or a file that nobody published.

    Writes concepts.toml (a new one where none is found upward) and concepts.lock, both or neither. A file is a path,
    hf://ns/repo@rev/path, or a URL with #sha256=; it is locked by its digest.
    """
    from conceptry.registry.workspace import Workspace, adopt_folder

    requirement = _read_requirement(what, given)
    with adopt_folder(Path.cwd()) as folder, track(session.out, f"adding {requirement.name}"):
        workspace = Workspace(session.registry, folder)
        change = workspace.add(_place_below(requirement, folder))
    report_change(session, change, name=str(requirement.name), path=str(workspace.lock_path))
    session.out.note("concepts sync brings what is missing into the store")


@click.command("drop", cls=ConceptsCommand, examples=("concepts drop me/imp",))
@click.argument(
    "name", metavar="NS/NAME", shell_complete=lambda context, parameter, text: complete_concepts(text)
)
@pass_session
def drop(session: Session, /, name: str) -> None:
    """Require a concept no longer.

    Takes it out of concepts.toml and concepts.lock; the store keeps it (concepts remove takes it out of there).
    """
    workspace = find_workspace(session)
    concept = ConceptName.parse(name)
    change = workspace.drop(concept)
    report_change(session, change, name=str(concept), path=str(workspace.lock_path))


def _read_requirement(what: str, given: dict[str, Any]) -> ProjectRequirement:
    from conceptry.registry.project import ProjectRequirement, check_strength

    strength = check_strength(given["strength"], "--strength")
    source = parse_source(what)
    if source is None:
        named = [key for key in ("name", "placeholder", "superclass", "license", "base", "air") if given[key]]
        if named:
            raise UsageError(
                f"--{named[0]} describes a file, and {what[:80]!r} is a concept, which describes itself",
                hint=f"write ./{what[:80]} if it is a file",
            )
        asked = Requirement.parse(what)
        return ProjectRequirement(
            name=asked.concept,
            versions=asked.versions,
            remote=asked.remote,
            build=given["build"],
            strength=strength,
        )
    if given["name"] is None:
        raise UsageError("a file needs a name", hint="add --name me/hat")
    return ProjectRequirement(
        name=ConceptName.parse(given["name"]),
        build=given["build"],
        strength=strength,
        foreign=_read_foreign(source, given),
    )


def _place_below(requirement: ProjectRequirement, folder: Path) -> ProjectRequirement:
    """Returns the requirement with its path as seen from the project's folder and not from the working folder."""
    foreign = requirement.foreign
    if (
        foreign is None
        or foreign.source.kind != "path"
        or Path(foreign.source.text).expanduser().is_absolute()
    ):
        return requirement
    text = Path(os.path.relpath(foreign.source.text, folder)).as_posix()
    return replace(requirement, foreign=replace(foreign, source=parse_path_source(text)))


def _read_foreign(source: Source, given: dict[str, Any]) -> Any:
    from conceptry.registry.project import Foreign
    from conceptry.sources import parse_air

    air = parse_air(given["air"]).text if given["air"] else None
    return Foreign(
        source=source,
        air=source.text if source.kind == "air" else air,
        placeholder=parse_placeholder(given["placeholder"]) if given["placeholder"] else None,
        superclass=given["superclass"],
        license=given["license"],
        base=given["base"],
    )
