"""What a file is, for which base, how sure that is, and why; only its header is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.bases import FamilyId
from conceptry.errors import UsageError
from conceptry.formats.catalog import FORMATS
from conceptry.formats.checkpoints import read_folder_header
from conceptry.formats.collection import pause_collection
from conceptry.formats.contract import Detection, Format
from conceptry.formats.conversion import read_any_header
from conceptry.formats.header import Header
from conceptry.formats.members import is_model_folder, list_members
from conceptry.formats.suffixes import split_suffix

UNKNOWN_KIND: Final = "unknown"
MAX_LISTED: Final = 50


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many tensors have a known role, and the names of those that have none."""

    explained: int
    total: int
    unexplained: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor has a known role."""
        return not self.unexplained


@dataclass(frozen=True, slots=True, kw_only=True)
class Identification:
    """What a file is. ``kind`` is ``unknown`` where no row of FORMATS explains any of it."""

    kind: str
    dialect: str | None
    family: FamilyId | None
    confidence: float
    reasons: tuple[str, ...]
    coverage: Coverage
    title: str
    stored: bool
    """Whether the kind can be imported."""

    family_is_certain: bool = False
    """The shapes fit no other family."""

    algorithms: tuple[str, ...] = ()
    ranks: Mapping[int, int]
    triggers: tuple[str, ...] = ()
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Returns plain values: what ``concepts identify --json`` prints."""
        listed = self.coverage.unexplained
        return {
            "kind": self.kind,
            "dialect": self.dialect,
            "family": self.family,
            "confidence": round(self.confidence, 3),
            "reasons": list(self.reasons),
            "coverage": {
                "explained": self.coverage.explained,
                "total": self.coverage.total,
                "unexplained": list(listed[:MAX_LISTED]),
            },
            "title": self.title,
            "stored": self.stored,
            "algorithms": list(self.algorithms),
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "triggers": list(self.triggers),
            "size_bytes": self.size_bytes,
        }


def identify(path: Path) -> Identification:
    """Returns what the file at ``path`` is, by its content and never by its name.

    Raises:
        NotFoundError: if there is no file.
        UsageError: if it is a folder of several adapters.
        InvalidFileError: if it is no sound safetensors file, PyTorch pickle or picture with an embedding; what it is
            instead is named. A pickle is read in an isolated process and never run.
    """
    with pause_collection():
        return _identify(path)


def _identify(path: Path) -> Identification:
    if is_model_folder(path):
        return identify_header(read_folder_header(path))
    members = list_members(path)
    if len(members) > 1:
        names = ", ".join(str(member.relative_to(path)) for member in members)
        raise UsageError(f"{str(path)!r} holds several adapters: {names}", hint="name one of them")
    return identify_header(read_any_header(members[0]))


def identify_header(header: Header) -> Identification:
    """Returns what a file with this header is: by the first row that explains all of it, else the best one."""
    found = find_format(header)
    if found is None:
        return _make_unknown(header)
    row, detection = found
    unexplained = tuple(sorted(header.tensors.keys() - detection.roles.keys()))
    reasons = detection.reasons
    if unexplained:
        reasons = (*reasons, f"{len(unexplained)} tensors have a role that is not known")
    return Identification(
        kind=row.kind,
        dialect=None if row.id == row.kind else row.id.removeprefix(f"{row.kind}_"),
        family=detection.family,
        family_is_certain=detection.family_is_certain,
        confidence=detection.confidence,
        reasons=reasons,
        coverage=Coverage(len(header.tensors) - len(unexplained), len(header.tensors), unexplained),
        title=row.title,
        stored=row.read is not None,
        algorithms=detection.algorithms,
        ranks=detection.ranks,
        triggers=detection.triggers,
        size_bytes=header.size_bytes,
    )


def find_format(header: Header) -> tuple[Format, Detection] | None:
    """Returns the first row that explains every tensor, else the one that explains most; None where none does."""
    partial: list[tuple[int, Format, Detection]] = []
    for place, row in _list_likely_first(header):
        detection = row.detect(header)
        if detection is None or not (detection.roles or detection.claims):
            continue
        if len(detection.roles) == len(header.tensors):
            return row, detection
        partial.append((place, row, detection))
    best = max(partial, key=lambda found: (*_rank(found[2]), -found[0]), default=None)
    return best[1:] if best else None


def _list_likely_first(header: Header) -> Iterator[tuple[int, Format]]:
    """Gives the rows with their places, those that cannot explain every tensor after all others."""
    unlikely = []
    for place, row in enumerate(FORMATS):
        if row.can_explain_all(header):
            yield place, row
        else:
            unlikely.append((place, row))
    yield from unlikely


def _rank(detection: Detection) -> tuple[int, int]:
    return len(detection.roles), detection.claims


def _make_unknown(header: Header) -> Identification:
    names = tuple(sorted(header.tensors))
    example = f", such as {names[0][:80]!r}" if names else ""
    reasons = [f"no known format has tensor names like these {len(names)}{example}"]
    low_rank = sum(split_suffix(name) is not None for name in names)
    if low_rank:
        reasons.append(f"{low_rank} names end as those of adapters do, of a network that is not known")
    return Identification(
        kind=UNKNOWN_KIND,
        dialect=None,
        family=None,
        confidence=0.0,
        reasons=tuple(reasons),
        coverage=Coverage(0, len(names), names),
        title="a safetensors file of no kind that is known here",
        stored=False,
        ranks={},
        size_bytes=header.size_bytes,
    )
