"""``concepts export``: a concept as the files that another program reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.formats.export_contract import Loss
    from conceptry.formats.export_files import Exported
    from conceptry.formats.exporting import ExportPlan

TARGETS: Final = ("diffusers", "peft", "kohya", "comfyui", "a1111")


@click.command(
    "export",
    cls=ConceptsCommand,
    examples=(
        "concepts export me/imp --for kohya --to imp.safetensors",
        "concepts export me/imp --for a1111 --to ~/webui/models/Lora --dry-run",
        "concepts export me/imp --for peft --to imp-peft --lossy",
    ),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@click.option(
    "--for", "target", required=True, type=click.Choice(TARGETS), help="The program that is to read it."
)
@click.option(
    "--to",
    "path",
    required=True,
    type=PATH,
    metavar="PATH",
    help="A new file if it ends in .safetensors, else a folder.",
)
@click.option("--build", metavar="ID", help="Which build, where the concept has several.")
@click.option(
    "--lossy", is_flag=True, help="Take an approximation where there is no exact form; it is measured."
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--no-sidecars", is_flag=True, help="Leave out the notes and the preview beside the file.")
@click.option("--dry-run", is_flag=True, help="Say what would be written and stop.")
@pass_session
def export(
    session: Session, /, reference: Reference, *, dry_run: bool, no_sidecars: bool, **given: Any
) -> None:
    """Write a concept as the files that another program reads.

    What the program cannot hold exactly is refused, with the error by layer, unless --lossy accepts it. Nothing is
    overwritten without --force, and the files appear together or not at all.
    """
    from conceptry.formats.export_files import list_paths, refuse_overwriting, write_export
    from conceptry.formats.exporting import ExportSettings, plan_export

    settings = ExportSettings(sidecars=not no_sidecars, **given)
    plan = plan_export(session.registry.get(reference), settings)
    for warning in plan.warnings:
        session.out.warn(warning)
    for line in describe_losses(plan.losses):
        session.out.warn(line)
    if dry_run:
        refuse_overwriting(plan)
        paths = list_paths(plan)
        lines = ["would write", *(f"  {path}" for path in paths)]
        session.out.emit(_to_json(plan, [{"path": str(path)} for path in paths], written=False), lines)
        return
    written = write_export(plan)
    session.out.emit(
        _to_json(plan, [file_to_json(one) for one in written], written=True),
        [f"wrote {one.path} ({format_bytes(one.size_bytes)})" for one in written],
        quiet=[str(one.path) for one in written],
    )


def describe_losses(losses: Sequence[Loss]) -> Iterator[str]:
    """Returns what ``--lossy`` accepted, in lines for people; none where nothing is lost."""
    if losses:
        yield f"{len(losses)} modules are approximated, worst first (error of the delta, relative):"
        yield from (f"{loss.relative_error:8.3%}  {loss.module}: {loss.why}" for loss in losses)


def losses_to_json(losses: Sequence[Loss]) -> list[dict[str, Any]]:
    """Returns the rows of ``losses`` in what ``--json`` prints."""
    return [
        {"module": loss.module, "relative_error": loss.relative_error, "why": loss.why} for loss in losses
    ]


def file_to_json(one: Exported) -> dict[str, Any]:
    """Returns the row of a written file in what ``--json`` prints."""
    return {"path": str(one.path), "size_bytes": one.size_bytes, "sha256": str(one.sha256)}


def _to_json(plan: ExportPlan, files: list[dict[str, Any]], *, written: bool) -> dict[str, Any]:
    return {
        "reference": plan.label,
        "target": plan.target,
        "build": plan.build,
        "files": files,
        "written": written,
        "warnings": list(plan.warnings),
        "losses": losses_to_json(plan.losses),
    }
