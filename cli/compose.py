"""``concepts compose``: a composition as a file that can be shared and run again."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.check import describe, find_identity, plan_composition, to_json
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.members import fetch_composition, read_document, rename_members
from conceptry.cli.options import MEMBER, PATH, RENAME, base_option
from conceptry.cli.session import Session, pass_session
from conceptry.errors import ConflictError, UsageError

if TYPE_CHECKING:
    from conceptry.composer.plan import Plan
    from conceptry.composition import CompositionDocument, Member


@click.command(
    "compose",
    cls=ConceptsCommand,
    examples=(
        "concepts compose me/imp me/look*0.7 --out composition.toml",
        "concepts compose me/imp me/other --rename 'me/other:<imp>=<devil>' --out two.toml",
        "concepts compose --file composition.toml",
    ),
)
@click.argument("members", type=MEMBER, nargs=-1, metavar="REF[*STRENGTH]...")
@click.option("--file", type=PATH, metavar="FILE", help="Check this file instead of writing one.")
@click.option("--rename", type=RENAME, multiple=True, help="Another word for a concept: NS/NAME:OLD=NEW.")
@base_option
@click.option("--out", type=PATH, metavar="FILE", help="Where to write.  [default: composition.toml]")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@pass_session
def compose(
    session: Session, /, members: tuple[Member, ...], *, file: Path | None, base: str | None, **given: Any
) -> None:
    """Write or check a composition file.

    References become exact versions, so that the file means the same later, and concepts gc keeps them. It is
    written only if the concepts fit the base and one another; concepts generate --composition takes it.
    """
    document = _pin(session, read_document(rename_members(members, given["rename"]), file), base)
    composition = fetch_composition(session, document)
    plan, overlaps = plan_composition(composition, find_identity(session, document.base, composition))
    path = file or given["out"] or Path("composition.toml")
    if file is None:
        _write(path, document, force=given["force"])
    elif given["out"] is not None:
        raise UsageError("--file checks a file, --out writes one", hint="name one of them")
    _keep(session, path, plan)
    session.out.emit(
        {"path": str(path), **to_json(plan, overlaps)}, describe(plan, overlaps), quiet=[str(path)]
    )
    for warning in plan.warnings:
        session.out.warn(warning)
    session.out.note(f"{'written' if file is None else 'checked'}: {path}")


def _keep(session: Session, path: Path, plan: Plan) -> None:
    """Keeps what the file refers to from ``concepts gc``, until ``gc --forget``."""
    from conceptry.registry.roots import keep_root

    keep_root(session.registry.store, "composition", path, [one.concept.digest for one in plan.members])


def _pin(session: Session, document: CompositionDocument, base: str | None) -> CompositionDocument:
    """Returns the document with the versions that its references mean now."""
    members = [
        member.model_copy(update={"reference": session.registry.resolve(member.reference).reference})
        for member in document.concepts
    ]
    return document.model_copy(update={"concepts": tuple(members), "base": base or document.base})


def _write(path: Path, document: CompositionDocument, *, force: bool) -> None:
    from conceptry.composition import format_composition

    if path.exists() and not force:
        raise ConflictError(f"{str(path)!r} exists already", hint="add --force, or another --out")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(format_composition(document), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
