"""Kinds of file that are named and not stored, so that none of them is taken for something else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from conceptry.formats.contract import Detection, Format, share_of
from conceptry.formats.data_files import load_table
from conceptry.formats.families import judge_claims
from conceptry.formats.header import Header


def list_recognised_formats() -> tuple[Format, ...]:
    """Returns one row for each kind of the data file; none of them can be read."""
    return tuple(
        Format(
            id=id,
            kind=row.get("kind", id),
            title=row["title"],
            detect=partial(_detect, title=row["title"], marks=tuple(row["marks"]), owns=tuple(row["owns"])),
        )
        for id, row in load_table("recognised").items()
    )


def _detect(header: Header, *, title: str, marks: Sequence[str], owns: Sequence[str]) -> Detection | None:
    mark, owned = re.compile("|".join(marks), re.ASCII), re.compile("|".join(owns), re.ASCII)
    found = next((name for name in header.tensors if mark.search(name)), None)
    if found is None:
        return None
    roles = {name: f"tensor of: {title}" for name in header.tensors if owned.search(name)}
    claimed = judge_claims(header.metadata, None, 0.0)
    return Detection(
        roles=roles,
        confidence=0.8 * share_of(roles, len(header.tensors)),
        family=claimed.family,
        reasons=(f"the name {found!r} is of: {title}", *claimed.reasons),
    )
