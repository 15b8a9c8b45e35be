"""``concepts diff``: what differs between two versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.bases import choose_base
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import REFERENCE, base_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.registry.diffs import Difference

_SHOWN: Final = 20


@click.command(
    "diff",
    cls=ConceptsCommand,
    examples=("concepts diff me/imp@1.0.0 me/imp@1.1.0", "concepts diff me/imp:stable me/imp --json"),
)
@click.argument("first", type=REFERENCE, metavar="REF")
@click.argument("second", type=REFERENCE, metavar="REF")
@base_option
@pass_session
def diff(session: Session, /, first: Reference, second: Reference, base: str | None) -> None:
    """Show what differs between two versions.

    Fields of the manifest, tensors that were added, removed or changed (norm of the difference over the norm of the
    first, greatest first), and measured scores. The --base is read only for packed values that are not equal.
    """
    registry = session.registry
    before, after = registry.get(first), registry.get(second)
    with track(session.out, "comparing"):
        from conceptry.registry.diffs import compare_concepts

        found = compare_concepts(before, after, lambda: choose_base(session, base, [before, after]).path)
    for why in found.unread:
        session.out.warn(why)
    document = {
        "first": {"reference": before.label, "digest": str(before.digest)},
        "second": {"reference": after.label, "digest": str(after.digest)},
        "equal": found.is_empty,
        **_to_json(found),
    }
    session.out.emit(document, _describe(found, before.label, after.label))


def _to_json(found: Difference) -> dict[str, Any]:
    return {
        "fields": [asdict(row) for row in found.fields],
        "tensors": {
            "added": list(found.added_tensors),
            "removed": list(found.removed_tensors),
            "changed": [asdict(row) for row in found.changed_tensors],
            "equal": found.equal_tensors,
        },
        "files": [asdict(row) for row in found.files],
        "metrics": [asdict(row) for row in found.metrics],
    }


def _describe(found: Difference, before: str, after: str) -> Iterator[str]:
    yield f"from {before} to {after}"
    for field in (*found.fields, *found.files):
        yield f"  {field.place}: {_show(field.before)} -> {_show(field.after)}"
    for metric in found.metrics:
        yield f"  {metric.name}: {_show(metric.before)} -> {_show(metric.after)}"
    for said, names in (("added", found.added_tensors), ("removed", found.removed_tensors)):
        yield from _shorten([f"  {said} {name}" for name in names], f"tensors {said}")
    rows = [
        f"  changed {row.file}: {row.tensor}  {_show_form(row.before, row.after)}  {_show_change(row.relative_change)}"
        for row in found.changed_tensors
    ]
    yield from _shorten(rows, "tensors changed")
    counts = (len(found.added_tensors), len(found.removed_tensors), len(found.changed_tensors))
    said = "{} added, {} removed, {} changed".format(*counts)
    yield f"{count_things(sum(counts) + found.equal_tensors, 'tensor')}: {said}, {found.equal_tensors} equal"


def _shorten(rows: list[str], what: str) -> Iterator[str]:
    yield from rows[:_SHOWN]
    if len(rows) > _SHOWN:
        yield f"  ... and {len(rows) - _SHOWN} more {what}: --json has all"


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{value:g}" if isinstance(value, float) else repr(value)[:80]


def _show_form(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _show_change(change: float | None) -> str:
    return "" if change is None else f"{100 * change:.3g} %"
