"""What was executed, line by line: counts of several sessions and machines add up, as long as the code is the same."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from tests.fuzz.targets import TARGETS, list_seeds

ROOT: Final = Path(__file__).resolve().parents[2]
DEFAULT: Final = Path(__file__).with_name("executions.jsonl")
# Executions of a shard begin here, so that several machines never make the same ones.
SHARD: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Executions ``start`` to ``stop`` (left out) of one target with the code of that digest."""

    code: str
    target: str
    start: int
    stop: int
    failures: int
    processor_seconds: float


def digest_code() -> str:
    """Returns the digest of all modules that an execution runs, the tables beside them, and the fuzzer itself.

    Modules are found by running every seed: what a reader imports late counts too.
    """
    for name, target in TARGETS.items():
        for seed in list_seeds(name):
            target.run(seed)
    files = {
        Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if name.startswith(("conceptry.", "tests.")) and module.__file__
    }
    files |= set((ROOT / "formats" / "data").glob("*.toml"))
    parts = sorted((file.relative_to(ROOT).as_posix(), Digest.of_file(file).hex) for file in files)
    return Digest.of_bytes(json.dumps(parts).encode()).short


def read_records(path: Path) -> list[Record]:
    """Returns the records of a file, none where there is no file."""
    if not path.exists():
        return []
    return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes the records, a line each."""
    lines = (json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)


def count_executions(records: Iterable[Record], code: str) -> dict[str, int]:
    """Returns target -> how many different executions of it were made with this code."""
    counts = dict.fromkeys(TARGETS, 0)
    for target in counts:
        mine = [record for record in records if record.code == code and record.target == target]
        counts[target] = sum(stop - start for start, stop in _merge(mine))
    return counts


def find_next(records: Iterable[Record], code: str, target: str, shard: int) -> int:
    """Returns the first execution of a shard that is after all that were made with this code."""
    first = shard * SHARD
    mine = (record for record in records if (record.code, record.target) == (code, target))
    return max((one.stop for one in mine if first <= one.start < first + SHARD), default=first)


def _merge(records: Iterable[Record]) -> Iterator[tuple[int, int]]:
    """Gives the ranges of the records without what two of them share."""
    done = 0
    for record in sorted(records, key=lambda record: record.start):
        start = max(record.start, done)
        if start < record.stop:
            yield start, record.stop
            done = record.stop
