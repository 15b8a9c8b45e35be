"""``concepts view``: concepts in the folders that other programs read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.registry.views import View

PROGRAMS = ("comfyui", "a1111", "invokeai")
LINKS = ("copy", "hard", "symbolic")


@click.command(
    "view",
    cls=ConceptsCommand,
    examples=(
        "concepts view me/imp me/cup --for comfyui --to ~/ComfyUI/models",
        "concepts view me/imp --for a1111 --to ~/webui/models",
        "concepts view me/imp --for comfyui --to ~/ComfyUI/models --as-stored hard",
    ),
)
@click.argument("references", type=REFERENCE, nargs=-1, metavar="[REF]...")
@click.option(
    "--for", "program", required=True, type=click.Choice(PROGRAMS), help="The program that reads it."
)
@click.option("--to", "folder", required=True, type=PATH, metavar="FOLDER", help="Its folder for models.")
@click.option(
    "--as-stored",
    "link",
    type=click.Choice(LINKS),
    help="Place stored files as they are: copied (blocks are shared where the disk can), or as links.",
)
@click.option("--lossy", is_flag=True, help="Take an approximation where there is no exact form.")
@pass_session
def view(
    session: Session,
    /,
    references: tuple[Reference, ...],
    *,
    program: str,
    folder: Path,
    link: str | None,
    lossy: bool,
) -> None:
    """Put concepts into the folders that another program reads.

    Run again, it brings the folder up to date: new versions replace old ones, and what is not named any more is
    removed. Only files that it made itself are ever replaced or removed.
    """
    with track(session.out, "preparing the view"):
        found = session.registry.make_view(references, program=program, folder=folder, link=link, lossy=lossy)
    for warning in found.warnings:
        session.out.warn(warning)
    for name in found.kept:
        session.out.warn(f"{name} was changed by somebody else and stays")
    document = {
        "folder": str(folder),
        "written": list(found.written),
        "unchanged": list(found.unchanged),
        "removed": list(found.removed),
        "kept": list(found.kept),
    }
    session.out.emit(document, _describe(found), quiet=[*found.written, *found.unchanged])
    if link in ("hard", "symbolic"):
        session.out.warn("a program that writes into a link changes the store: concepts verify would name it")


def _describe(found: View) -> Iterator[str]:
    yield from (f"wrote {name}" for name in found.written)
    yield from (f"removed {name}" for name in found.removed)
    yield f"{count_things(len(found.written) + len(found.unchanged), 'file')}, {len(found.unchanged)} unchanged"
