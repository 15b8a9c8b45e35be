"""``concepts gc``: what nothing needs goes to the trash; undo, and empty the trash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, yes_option
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things, format_bytes
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from conceptry.registry.collection import Collected
    from conceptry.registry.trash import Item

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "": 86_400}
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd]?)", re.ASCII)


def read_duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Returns the seconds that ``14d``, ``12h`` or ``0`` write; a bare number counts days. Raises UsageError."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    if match is None:
        raise UsageError(f"not a duration: {value[:40]!r}", hint="write 14d, 12h, 30m or 0")
    return float(int(match[1]) * _UNIT_SECONDS[match[2]])


@click.command(
    "gc",
    cls=ConceptsCommand,
    examples=(
        "concepts gc --dry-run",
        "concepts gc --grace 0",
        "concepts gc --undo",
        "concepts gc --empty-trash --yes",
        "concepts gc --forget ~/old-project",
    ),
)
@click.option("--dry-run", is_flag=True, help="Say what would be taken, with sizes, and stop.")
@click.option(
    "--grace",
    callback=read_duration,
    metavar="TIME",
    help="Leave what is younger or was removed later: 14d, 12h, 0. Default: 14d.",
)
@click.option("--undo", is_flag=True, help="Bring back what the last collection took.")
@click.option("--empty-trash", is_flag=True, help="Delete what collections and concepts remove put away.")
@click.option("--forget", type=PATH, metavar="PATH", help="Keep nothing any more for this project's lock.")
@yes_option
@pass_session
def gc(session: Session, /, **chosen: Any) -> None:
    """Put away what nothing in the store needs.

    Every version in the store stays, and so does what the lock of a project needs, whether its folder is there or
    not. What is taken goes to the store's trash, which --empty-trash deletes.
    """
    actions = [name for name in ("undo", "empty_trash", "forget") if chosen[name]]
    if len(actions) > 1 or (actions and chosen["grace"] is not None):
        raise UsageError("only one thing can be done at once", hint="concepts gc --help")
    if chosen["undo"]:
        _undo(session)
    elif chosen["empty_trash"]:
        _empty(session, dry_run=chosen["dry_run"])
    elif chosen["forget"]:
        _forget(session, chosen["forget"], dry_run=chosen["dry_run"])
    else:
        _collect(session, chosen["grace"], dry_run=chosen["dry_run"])


def _collect(session: Session, grace_seconds: float | None, *, dry_run: bool) -> None:
    found = session.registry.collect_garbage(grace_seconds=grace_seconds, dry_run=dry_run)
    document = {
        "dry_run": dry_run,
        "items": [_to_json(item) for item in found.items],
        "size_bytes": found.size_bytes,
        "leftovers": found.leftovers,
        "leftover_bytes": found.leftover_bytes,
        "kept_for": [{"kind": root.kind, "path": root.path} for root in session.registry.roots()],
    }
    session.out.emit(
        document, _describe(found, dry_run=dry_run), quiet=[str(item.digest) for item in found.items]
    )
    if found.items and not dry_run:
        session.out.note("concepts gc --undo brings them back, concepts gc --empty-trash deletes them")


def _describe(found: Collected, *, dry_run: bool) -> Iterator[str]:
    for item in found.items:
        yield f"{item.kind:<9}sha256:{item.digest.short}…{format_bytes(item.size_bytes):>12}"
    said = "would go to the trash" if dry_run else "went to the trash"
    yield f"{count_things(len(found.items), 'thing')} {said}: {format_bytes(found.size_bytes)}"
    if found.leftovers:
        said = "would be deleted" if dry_run else "deleted"
        leftovers = count_things(found.leftovers, "leftover")
        yield f"{leftovers} of interrupted commands {said}: {format_bytes(found.leftover_bytes)}"


def _undo(session: Session) -> None:
    items = session.registry.undo_collection()
    size_bytes = sum(item.size_bytes for item in items)
    document = {"restored": [_to_json(item) for item in items], "size_bytes": size_bytes}
    said = f"brought back {count_things(len(items), 'thing')}: {format_bytes(size_bytes)}"
    session.out.emit(document, [said], quiet=[str(item.digest) for item in items])


def _empty(session: Session, *, dry_run: bool) -> None:
    if not dry_run:
        session.confirm("Delete everything in the trash for good?")
    count, size_bytes = session.registry.empty_trash(dry_run=dry_run)
    said = "would delete" if dry_run else "deleted"
    document = {"dry_run": dry_run, "deleted": count, "size_bytes": size_bytes}
    session.out.emit(document, [f"{said} {count_things(count, 'file')}: {format_bytes(size_bytes)}"])


def _forget(session: Session, path: Path, *, dry_run: bool) -> None:
    if not dry_run:
        session.confirm(f"Keep nothing any more for {str(path)!r}?")
    root = session.registry.forget_root(path, dry_run=dry_run)
    said = "would forget" if dry_run else "forgot"
    document = {"dry_run": dry_run, "forgotten": root.path, "kind": root.kind, "digests": len(root.digests)}
    session.out.emit(document, [f"{said} what {root.path} needs"], quiet=[root.path])


def _to_json(item: Item) -> dict[str, Any]:
    return {"kind": item.kind, "digest": str(item.digest), "size_bytes": item.size_bytes}
