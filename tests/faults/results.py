"""What sweeps came to, a line for each part, kept in the repository so that several sessions and machines add up.

A line holds for the code that it names by a digest of its sources. A part is swept again once that code changed; until
then its older line is shown as such.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).parent / "results.jsonl"
ROOT: Final = Path(__file__).parent.parent.parent
_FILES_OF_CORE: Final = "conceptry.(digests|documents|errors|names|written_files)"
MACHINE_CODE: Final = re.compile(rf"{_FILES_OF_CORE}|conceptry[.]registry([.].+)?")
"""Modules that name, write, read or list files. Not the vocabulary of manifests, nor formats."""

WEB_CODE: Final = re.compile(
    rf"{_FILES_OF_CORE}|conceptry[.]registry([.].+)?|tests[.]simulators[.]http_.+|__main__"
)
CHECKS: Final = 2
"""Raised when a sweep strikes or looks at something else than before: part of what a result is kept by."""

_DIGITS: Final = 12
SAME_CODE: Final[dict[str, tuple[str, str, str]]] = {}
"""Earlier code -> the code that it is as good as, for which parts it is not (a pattern), and why."""


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


def digest_code(names: re.Pattern[str]) -> str:
    """Return the first digits of a digest of the sources of all modules so named that were imported until now.

    To be asked once everything ran that is to be swept: what was never imported has no part in it.
    """
    hasher = hashlib.sha256(f"checks {CHECKS}\n".encode())
    for name, module in sorted(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if place is not None and names.fullmatch(name):
            data = Path(place).read_bytes()
            hasher.update(f"{name} {len(data)}\n".encode())
            hasher.update(data)
    return hasher.hexdigest()[:_DIGITS]


def is_of_code(result: Result, code: str) -> bool:
    """Return whether a result holds for this code: it is of it, or of code that is as good for its part."""
    same, except_for, _ = SAME_CODE.get(result.code, ("", "", ""))
    return result.code == code or (same == code and not re.search(except_for, result.part))


def read_results(place: Path = RESULTS) -> dict[tuple[str, str], Result]:
    """Return the last line of each sweep and part."""
    lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
    found = [Result(**json.loads(line)) for line in lines if line]
    return {(one.sweep, one.part): one for one in found}


def keep_result(result: Result, place: Path = RESULTS) -> None:
    """Add a line, in the place of an older one of the same part."""
    import fcntl  # where tests alone read what is kept, there may be none

    with place.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several sweeps may run at a time
        known = {**read_results(place), (result.sweep, result.part): result}
        lines = [json.dumps(asdict(one), sort_keys=True) for _, one in sorted(known.items())]
        file.truncate(0)
        file.write("\n".join([*lines, ""]))


def choose_shard(parts: Iterable[str], shard: str) -> list[str]:
    """Return every n-th part from the i-th on, for ``i/n``; all of them for ``1/1``."""
    number, _, count = shard.partition("/")
    return list(parts)[int(number) - 1 :: int(count)]
