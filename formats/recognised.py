"""Kinds of file that are named and not stored, so that none of them is taken for something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from conceptry.bases import FamilyId
from conceptry.formats.contract import Detection, Format, share_of
from conceptry.formats.data_files import load_table
from conceptry.formats.families import judge_claims
from conceptry.formats.header import Header
from conceptry.formats.triggers import find_triggers

_CONFIDENCE: Final = 0.8
_WITH_FAMILY: Final = 0.9


@dataclass(frozen=True, slots=True)
class _Kind:
    """One row of data/recognised.toml."""

    title: str
    marks: re.Pattern[str]
    needs: re.Pattern[str] | None
    why: tuple[str, ...]
    """What keeps it from being stored, in words, where the row says it."""

    owns: tuple[tuple[re.Pattern[str], str], ...]
    families: tuple[tuple[re.Pattern[str], int, Mapping[int, str]], ...]


def list_recognised_formats() -> tuple[Format, ...]:
    """Returns one row for each kind of the data file; none of them can be read."""
    return tuple(
        Format(
            id=id,
            kind=row.get("kind", id),
            title=row["title"],
            detect=partial(_detect, kind=_make(row)),
        )
        for id, row in load_table("recognised").items()
    )


def _make(row: Mapping[str, Any]) -> _Kind:
    return _Kind(
        title=row["title"],
        marks=re.compile("|".join(row["marks"]), re.ASCII),
        needs=re.compile(row["needs"], re.ASCII) if "needs" in row else None,
        why=(f"it is not stored: {row['why']}",) if "why" in row else (),
        owns=tuple((re.compile(pattern, re.ASCII), role) for pattern, role in row["owns"]),
        families=tuple(
            (re.compile(pattern, re.ASCII), axis, {int(size): family for size, family in sizes.items()})
            for pattern, axis, sizes in row["families"]
        ),
    )


def _detect(header: Header, *, kind: _Kind) -> Detection | None:
    found = next((name for name in header.tensors if kind.marks.search(name)), None)
    if found is None or (kind.needs and not any(map(kind.needs.search, header.tensors))):
        return None
    roles = {
        name: role
        for name in header.tensors
        for role in [next((role for pattern, role in kind.owns if pattern.search(name)), None)]
        if role is not None
    }
    family, reason = _find_family(header, kind)
    claimed = judge_claims(header.metadata, family, _WITH_FAMILY if family else 0.0)
    return Detection(
        roles=roles,
        confidence=(_WITH_FAMILY if claimed.family else _CONFIDENCE) * share_of(roles, len(header.tensors)),
        family=claimed.family,
        reasons=(f"the name {found!r} is of: {kind.title}", *reason, *claimed.reasons, *kind.why),
        triggers=find_triggers(header.metadata),
    )


def _find_family(header: Header, kind: _Kind) -> tuple[FamilyId | None, tuple[str, ...]]:
    for pattern, axis, sizes in kind.families:
        for name, info in header.tensors.items():
            family = sizes.get(info.shape[axis]) if axis < len(info.shape) and pattern.search(name) else None
            if family is not None:
                return FamilyId(family), (f"{info.shape[axis]} in {name}, so {family}",)
    return None, ()
