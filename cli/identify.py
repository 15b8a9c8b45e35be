"""``concepts identify``: what a file is, by its content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes

if TYPE_CHECKING:
    from conceptry.formats.identify import Identification


@click.command(
    "identify",
    cls=ConceptsCommand,
    examples=("concepts identify imp.safetensors", "concepts identify imp.safetensors --json"),
)
@click.argument("file", type=PATH)
@pass_session
def identify(session: Session, /, file: Path) -> None:
    """Say what a file is, for which base, and why.

    Only the header is read, and neither the file's name nor its extension is believed.
    """
    from conceptry.formats.identify import identify as identify_file

    found = identify_file(file)
    session.out.emit(found.to_json(), _describe(file, found), quiet=[found.kind])


def _describe(file: Path, found: Identification) -> Iterator[str]:
    yield f"{file.name}: {found.title} ({format_bytes(found.size_bytes)})"
    facts = {
        "kind": found.kind,
        "dialect": found.dialect or "",
        "base": found.family or "not known",
        "confidence": f"{found.confidence:.0%}",
        "tensors": f"{found.coverage.explained} of {found.coverage.total} have a known role",
        "algorithm": ", ".join(found.algorithms),
        "rank": ", ".join(f"{rank} ({count} modules)" for rank, count in found.ranks.items()),
        "words": ", ".join(found.triggers),
    }
    yield from (f"  {label:<12}{text}" for label, text in facts.items() if text)
    yield from (
        f"  {'because' if first == 0 else '':<12}{reason}" for first, reason in enumerate(found.reasons)
    )
    for name in found.coverage.unexplained[:5]:
        yield f"  {'unknown':<12}{name}"
    if not found.stored:
        yield "  this kind cannot be imported"
