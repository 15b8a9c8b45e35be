"""``concepts pack`` and ``unpack``: full fine-tunes as their difference to the base, and as values again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.bases import choose_base
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE, base_option
from conceptry.cli.progress import track
from conceptry.cli.publish import describe, publish_folder, to_json
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes
from conceptry.errors import UsageError
from conceptry.names import Reference, Version, parse_version
from conceptry.written_files import remember_written_files

if TYPE_CHECKING:
    from conceptry.concepts import Concept
    from conceptry.formats.packing import PackRequest, PackResult, Repacked

    Make = Callable[[Concept, PackRequest, Path], PackResult]


@click.command(
    "pack",
    cls=ConceptsCommand,
    examples=(
        "concepts pack me/imp",
        "concepts pack me/imp@1.0.0 --base ./my-base --version 1.0.1",
        "concepts pack me/imp --lossy",
    ),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@base_option
@click.option("--lossy", is_flag=True, help="Round the difference too; the error is measured and stated.")
@click.option(
    "--step",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    metavar="S",
    help="The rounding of --lossy, as a share of the size (root mean square) of each tensor's change.  [default: 1]",
)
@click.option("--build", metavar="ID", help="Which build, where the concept has several.")
@click.option("--version", metavar="V", help="Of what is made.  [default: the next patch release]")
@pass_session
def pack(
    session: Session,
    /,
    reference: Reference,
    *,
    base: str | None,
    lossy: bool,
    step: float | None,
    build: str | None,
    version: str | None,
) -> None:
    """Make a smaller version of a full fine-tune.

    Its files then hold how it differs from its base, packed. Every bit comes back wherever it is used, from that
    very base and from no other; --lossy rounds the difference to what the size of its changes makes worth keeping.
    The version that it was made of stays as it is; concepts remove takes it out.
    """
    from conceptry.formats.packing import DEFAULT_STEP, pack_concept

    if step is not None and not lossy:
        raise UsageError("--step is how coarsely --lossy rounds", hint="add --lossy, or leave out --step")
    chosen = (step or DEFAULT_STEP) if lossy else None
    _make(session, reference, pack_concept, base=base, build=build, version=version, step=chosen)


@click.command(
    "unpack",
    cls=ConceptsCommand,
    examples=("concepts unpack me/imp", "concepts unpack me/imp@1.0.1 --base ./my-base --version 1.0.2"),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@base_option
@click.option("--build", metavar="ID", help="Which build, where the concept has several.")
@click.option("--version", metavar="V", help="Of what is made.  [default: the next patch release]")
@pass_session
def unpack(
    session: Session, /, reference: Reference, *, base: str | None, build: str | None, version: str | None
) -> None:
    """Make a version of a packed fine-tune that holds its values again.

    It can then be used on other bases too, as far as it fits them. What was packed without --lossy comes back as the
    very file that it was.
    """
    from conceptry.formats.packing import unpack_concept

    _make(session, reference, unpack_concept, base=base, build=build, version=version)


def _make(
    session: Session,
    reference: Reference,
    make: Make,
    *,
    base: str | None,
    version: str | None,
    build: str | None,
    step: float | None = None,
) -> None:
    from conceptry.formats.packing import PackRequest

    concept = session.registry.get(reference)
    location = choose_base(session, base, [concept])
    if location.path is None:
        raise UsageError(f"{base} is declared without weights", hint="--base with a folder or a checkpoint")
    wanted: Version | None = None if version is None else parse_version(version)
    request = PackRequest(base=location.path, version=wanted, build=build, step=step)
    with session.registry.stage() as folder, remember_written_files() as written:
        with track(session.out, "comparing with the base"):
            result = make(concept, request, folder)
        published = publish_folder(session, folder, made_of=concept.label, written=written)
    for warning in result.warnings:
        session.out.warn(warning)
    session.out.emit(
        {
            **to_json(published),
            "derived_from": concept.label,
            "files": [_to_json(row) for row in result.rows],
        },
        [describe(published), *_describe(result)],
        quiet=[str(published.reference)],
    )


def _to_json(row: Repacked) -> dict[str, Any]:
    return {
        "path": row.after.path,
        "component": row.component,
        "before_bytes": row.before.size,
        "after_bytes": row.after.size,
        "packing": None if row.packing is None else row.packing.model_dump(mode="json"),
    }


def _describe(result: PackResult) -> Iterator[str]:
    for row in result.rows:
        share = row.after.size / row.before.size
        sizes = f"{format_bytes(row.before.size)} -> {format_bytes(row.after.size)} ({share:.1%})"
        yield f"{row.after.path}: {sizes}, {_describe_error(row)}"


def _describe_error(row: Repacked) -> str:
    if row.packing is None or row.packing.lossless:
        return "every bit is kept"
    return (
        f"the change is off by {row.packing.relative_error:.1%} of its size, "
        f"no value by more than {row.packing.greatest_error:.3g}"
    )
