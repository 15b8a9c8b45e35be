"""``concepts show``: one version, as its manifest and the store describe it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import format_bytes
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.manifest import Build, License, Manifest, Token
    from conceptry.registry.reading import Shown


@click.command(
    "show", cls=ConceptsCommand, examples=("concepts show me/imp", "concepts show me/imp@1.0.0 --json")
)
@click.argument("reference", type=REFERENCE, metavar="REF")
@pass_session
def show(session: Session, /, reference: Reference) -> None:
    """Show all that is known of one concept.

    With --json: the manifest as it is stored, its digest, and what the store knows beside it.
    """
    shown = session.registry.show(reference)
    session.out.emit(to_json(shown), _describe(shown), quiet=[str(shown.digest)])


def to_json(shown: Shown) -> dict[str, Any]:
    """Returns the document of ``concepts show --json``."""
    return {
        "reference": str(shown.reference),
        "digest": str(shown.digest),
        "origin": shown.origin,
        "tags": list(shown.tags),
        "versions": [str(version) for version in shown.versions],
        "size_bytes": shown.manifest.size_bytes,
        "yanked": shown.yanked,
        "tag_history": {
            tag: [
                {"version": str(move.version), "digest": str(move.digest), "time": move.time}
                for move in moves
            ]
            for tag, moves in shown.history.items()
        },
        "record": None if shown.record is None else str(shown.record),
        "manifest": shown.manifest.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def _describe(shown: Shown) -> Iterator[str]:
    manifest = shown.manifest
    yield f"{shown.reference}  {manifest.title}".rstrip()
    yield from (f"  {line}" for line in manifest.description.splitlines() if line.strip())
    for label, text in _list_facts(shown, manifest):
        if text:
            yield f"{label:<12}{text}"
    for build in manifest.builds:
        yield from _describe_build(build)


def _list_facts(shown: Shown, manifest: Manifest) -> Iterator[tuple[str, str]]:
    usage = manifest.usage
    yield "digest", str(shown.digest)
    for token in manifest.tokens:
        yield "word", _describe_token(token)
    yield "strength", f"{usage.strength:g} (from {usage.min:g} to {usage.max:g})"
    for prompt in usage.prompts[:3]:
        yield "prompt", prompt
    yield "negative", usage.negative
    yield "licence", describe_license(manifest.license)
    yield "depicts", manifest.rights.depicts
    yield "authors", ", ".join(manifest.authors)
    yield "requires", ", ".join(str(rule) for rule in manifest.requires)
    yield "conflicts", ", ".join(str(rule) for rule in manifest.conflicts)
    yield "labels", ", ".join(manifest.tags)
    yield "yanked", shown.yanked or ""
    yield "tags", ", ".join(shown.tags)
    yield "versions", ", ".join(str(version) for version in shown.versions)
    yield "came by", "concepts pull" if shown.origin == "pulled" else "publishing here"
    yield "record", "" if shown.record is None else str(shown.record)


def describe_license(license: License) -> str:
    """Returns the licence in words: its SPDX id, or its name and address."""
    name = license.spdx or license.name or "unknown"
    return f"{name} ({license.url})" if license.url else name


def _describe_token(token: Token) -> str:
    if token.vectors == 0:
        after = f", written before {token.superclass!r}" if token.superclass else ""
        return f"{token.placeholder} (plain text{after})"
    vectors = "1 vector" if token.vectors == 1 else f"{token.vectors} vectors"
    return f"{token.placeholder} ({vectors}{f', a {token.superclass}' if token.superclass else ''})"


def _describe_build(build: Build) -> Iterator[str]:
    base = build.base
    where = f", {base.repo}" if base.repo else ""
    yield f"build {build.id}: {'+'.join(build.kinds)} for {base.family}{where} ({base.prediction_type})"
    for part in build.parts:
        for file in part.files:
            yield f"  {file.path:<28}{format_bytes(file.size):>10}  sha256:{file.sha256.short}…"
    for metric in build.metrics:
        interval = (
            "" if metric.interval is None else f" ({metric.interval[0]:.3f} to {metric.interval[1]:.3f})"
        )
        yield f"  {metric.name:<28}{metric.value:>10.4g}{interval}  {metric.protocol}"
    training = build.provenance.training
    if training is not None:
        yield f"  {training.trainer}, {training.steps} steps, seed {training.seed}, conceptry {training.code_version}"
