"""What sweeps came to, a line for each part, kept in the repository so that several sessions and machines add up.

A line holds for the code that it names by a digest of its sources. A part is swept again once that code changed; until
then its older line is shown as such.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).parent / "results.jsonl"
ROOT: Final = Path(__file__).parent.parent.parent
MACHINE_CODE: Final = ("core/*.py", "registry/*.py", "tests/faults/*.py", "tests/registry/folders.py")
WEB_CODE: Final = (
    "core/*.py",
    "registry/*.py",
    "tests/simulators/http_*.py",
    "tests/registry/http_sweep.py",
    "tests/registry/folders.py",
)
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One part of a sweep that went without a violation."""

    sweep: str
    part: str
    code: str
    points: Mapping[str, int]
    """How many points were struck, by how they ended."""

    seconds: float

    @property
    def struck(self) -> int:
        """How many points were struck."""
        return sum(self.points.values())


def digest_code(patterns: Sequence[str]) -> str:
    """Return the first digits of a digest of all sources that the patterns name."""
    hasher = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        hasher.update(f"{path.relative_to(ROOT).as_posix()} {path.stat().st_size}\n".encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()[:_DIGITS]


def read_results(place: Path = RESULTS) -> dict[tuple[str, str], Result]:
    """Return the last line of each sweep and part."""
    lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
    found = [Result(**json.loads(line)) for line in lines if line]
    return {(one.sweep, one.part): one for one in found}


def keep_result(result: Result, place: Path = RESULTS) -> None:
    """Add a line, in the place of an older one of the same part."""
    known = {**read_results(place), (result.sweep, result.part): result}
    lines = [json.dumps(asdict(one), sort_keys=True) for _, one in sorted(known.items())]
    place.write_text("\n".join([*lines, ""]), encoding="utf-8")


def choose_shard(parts: Iterable[str], shard: str) -> list[str]:
    """Return every n-th part from the i-th on, for ``i/n``; all of them for ``1/1``."""
    number, _, count = shard.partition("/")
    return list(parts)[int(number) - 1 :: int(count)]
