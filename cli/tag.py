"""``concepts tag``: names that move, and where they were."""

from __future__ import annotations

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE
from conceptry.cli.session import Session, pass_session
from conceptry.names import Reference, parse_tag


@click.command(
    "tag",
    cls=ConceptsCommand,
    examples=("concepts tag me/imp@1.2.0 stable", "concepts tag me/imp:stable released"),
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@click.argument("name", metavar="TAG")
@pass_session
def tag(session: Session, /, reference: Reference, name: str) -> None:
    """Let a tag point to a version from now on.

    Where it pointed before is kept: concepts show REF --json has its history. The tag latest is computed.
    """
    chosen = parse_tag(name)
    version = session.registry.tag(reference, chosen)
    history = session.registry.show(version.reference).history[chosen]
    before = history[-2].version if len(history) > 1 else None
    document = {
        "reference": str(version.reference),
        "digest": str(version.digest),
        "tag": chosen,
        "before": None if before is None else str(before),
        "moves": len(history),
    }
    was = "" if before is None else f" (it was at {before})"
    line = f"{version.reference.concept}:{chosen} is {version.reference.version}{was}"
    session.out.emit(document, [line], quiet=[str(version.reference)])
