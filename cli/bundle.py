"""``concepts bundle``: a project as one file; and ``concepts sync --from``, which takes it in."""

from __future__ import annotations

from pathlib import Path

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.progress import follow_transfer, track
from conceptry.cli.projects import find_workspace
from conceptry.cli.session import Session, pass_session
from conceptry.cli.sync import report_sync
from conceptry.cli.text import format_bytes


@click.command(
    "bundle",
    cls=ConceptsCommand,
    examples=("concepts bundle project.bundle.tar", "concepts bundle project.bundle.tar --base"),
)
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--base", "with_base", is_flag=True, help="Put the project's base in too.")
@click.option("--force", is_flag=True, help="Replace a file that is no bundle.")
@pass_session
def bundle(session: Session, /, out: Path, *, with_base: bool, force: bool) -> None:
    """Write the project and all it requires into one file.

    For sites without a network: concepts sync --from OUT takes it in there. Equal projects give equal bytes, in the
    layout of an OCI image. A bundle that is there is replaced, another file with --force alone.
    """
    from conceptry.registry.packing import pack_project

    workspace = find_workspace(session)
    with track(session.out, "writing the bundle") as meter:
        bundled = pack_project(
            workspace, out, with_base=with_base, force=force, on_event=follow_transfer(meter)
        )
    document = {
        "path": str(bundled.path),
        "digest": str(bundled.digest),
        "size_bytes": bundled.size_bytes,
        "concepts": bundled.concepts,
        "base_files": bundled.base_files,
    }
    said = f"{bundled.concepts} concepts, {format_bytes(bundled.size_bytes)}"
    session.out.emit(document, [f"wrote {bundled.path} ({said})"], quiet=[str(bundled.digest)])


def sync_bundle(session: Session, path: Path, base_out: Path | None) -> None:
    """Brings all that a bundle has into the store, and its project into this folder unless it is here already."""
    from conceptry.registry.packing import unpack_project

    with track(session.out, "reading the bundle") as meter:
        workspace, synced = unpack_project(
            session.registry, path, Path.cwd(), base_out=base_out, on_event=follow_transfer(meter)
        )
    report_sync(session, workspace, synced)
