"""``concepts base ...``: names for base models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from conceptry.base_locations import BaseLocation, resolve_base
from conceptry.bases import FAMILIES, FAMILY_BY_ID
from conceptry.cli.groups import ConceptsGroup
from conceptry.cli.options import PATH
from conceptry.cli.session import Session, pass_session


@click.group(cls=ConceptsGroup)
def base() -> None:
    """Add, list, show and remove base models."""


@base.command("add", examples=("concepts base add dreamy ~/models/dreamshaper-8",))
@click.argument("name")
@click.argument("path", type=PATH)
@pass_session
def add(session: Session, /, name: str, path: Path) -> None:
    """Give a base model on this machine a name.

    PATH is a folder in the diffusers layout or a .safetensors checkpoint; it stays where it is.
    """
    location = resolve_base(str(path), {})
    session.registry.add_base(name, path)
    session.out.emit(
        to_json(name, location), [f"{name} is {path} ({location.family or 'family not known yet'})"]
    )


@base.command("list", examples=("concepts base list",))
@pass_session
def list_bases(session: Session, /) -> None:
    """List what --base can be: names given here, and families.

    A family can be declared of an imported file; only a base with a path can be opened.
    """
    rows = [("toybox", "bundled", "toybox", "bundled with conceptry")]
    rows += [
        (name, "named", _find_family(path), str(path)) for name, path in session.registry.bases().items()
    ]
    rows += [(family.id, "family", family.id, family.title) for family in FAMILIES if family.id != "toybox"]
    document = [
        {"name": name, "kind": kind, "family": family or None, "about": about}
        for name, kind, family, about in rows
    ]
    session.out.emit_table({"bases": document}, ("BASE", "KIND", "FAMILY", "WHAT"), rows, empty="")


@base.command("show", examples=("concepts base show toybox", "concepts base show ~/models/sd15 --json"))
@click.argument("base", metavar="BASE")
@pass_session
def show(session: Session, /, base: str) -> None:
    """Show what a name or a path is as a base.

    BASE is anything that --base takes.
    """
    location = resolve_base(base, session.registry.bases())
    document = to_json(base, location)
    session.out.emit(document, [f"{key:<14}{value}" for key, value in document.items() if value is not None])


@base.command("remove", examples=("concepts base remove dreamy",))
@click.argument("name")
@pass_session
def remove(session: Session, /, name: str) -> None:
    """Forget the name of a base model.

    Its files stay.
    """
    session.registry.remove_base(name)
    session.out.emit({"name": name, "removed": True}, [f"removed the name {name}; its files stay"])


def to_json(name: str, location: BaseLocation) -> dict[str, Any]:
    """Returns what is known of a base before its weights are read."""
    family = FAMILY_BY_ID.get(location.family or "")
    return {
        "name": name,
        "kind": location.kind,
        "family": location.family,
        "title": family.title if family else None,
        "architecture": family.architecture if family else None,
        "path": str(location.path) if location.path else None,
        "repo": location.repo,
        "revision": location.revision,
    }


def _find_family(path: Path) -> str:
    from conceptry.errors import NotFoundError

    try:
        return resolve_base(str(path), {}).family or ""
    except NotFoundError:
        return "missing"
