"""The stored forms of all kinds as rows of FORMATS: their metadata says what they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from conceptry.bases import FamilyId
from conceptry.errors import UsageError
from conceptry.formats.byte_planes import KIND, open_planes
from conceptry.formats.checks import KIND_KEY
from conceptry.formats.contract import Contents, Detection, Format, Reading, ReadRequest
from conceptry.formats.embedding import read_embedding
from conceptry.formats.families import judge_claims
from conceptry.formats.full import read_full
from conceptry.formats.full_files import open_component
from conceptry.formats.header import Header
from conceptry.formats.hypernetwork import read_hypernetwork
from conceptry.formats.lora import read_lora
from conceptry.formats.rank_one import read_rank_one
from conceptry.formats.triggers import find_triggers
from conceptry.kinds import KIND_BY_ID, KindId

_READERS: Final[tuple[tuple[KindId, Callable[[Path], Contents]], ...]] = (
    ("embedding", read_embedding),
    ("rank_one", read_rank_one),
    ("lora", read_lora),
    ("full", read_full),
    ("hypernetwork", read_hypernetwork),
)


def list_canonical_formats() -> tuple[Format, ...]:
    """Returns one row for each kind, and one for packed values."""
    rows = tuple(
        Format(
            id=f"canonical_{kind}",
            kind=kind,
            title=f"{KIND_BY_ID[kind].title}, as Conceptry stores it",
            detect=partial(_detect, kind=kind),
            read=partial(_read, read=read),
            stored_kind=kind,
        )
        for kind, read in _READERS
    )
    packed = Format(
        id=f"canonical_{KIND}",
        kind="full",
        title=f"{KIND_BY_ID['full'].title}, packed as its difference to a base",
        detect=partial(_detect, kind=KIND),
        read=_read_packed,
        stored_kind="full",
    )
    return (*rows, packed)


def _detect(header: Header, *, kind: str) -> Detection | None:
    if header.metadata.get(KIND_KEY) != kind:
        return None
    claimed = judge_claims(header.metadata, None, 0.0)
    family: FamilyId | None = claimed.family
    return Detection(
        roles=dict.fromkeys(header.tensors, f"tensor of kind {kind}"),
        confidence=1.0 if family else 0.9,
        family=family,
        reasons=(f"{KIND_KEY} = {kind}", *claimed.reasons),
        triggers=find_triggers(header.metadata),
    )


def _read(request: ReadRequest, *, read: Callable[[Path], Contents]) -> Reading:
    return Reading(contents=(read(request.path),))


def _read_packed(request: ReadRequest) -> Reading:
    if request.base is None:
        raise UsageError(
            f"{request.name!r} is packed as its difference to a base",
            hint="add --base PATH, the folder or the checkpoint that it was packed with",
        )
    planes = open_planes(request.path)
    used = planes.check_base(open_component(request.base, request.family, planes.component))
    return Reading(contents=(planes.restore(used),))
