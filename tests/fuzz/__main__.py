"""``python -m tests.fuzz [--executions N] [--shard I] [--records FILE]``: goes on until N executions are on record.

The record (``executions.jsonl`` beside this file) is a line for each run and target, and is committed: runs of several
sessions, and on several machines under different shards, add up as long as the code of the readers is the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.fuzz.execution import Failure, execute
from tests.fuzz.records import (
    DEFAULT,
    Record,
    count_executions,
    digest_code,
    find_next,
    read_records,
    write_records,
)
from tests.fuzz.targets import TARGETS

BATCH: Final = 2000
MAX_GROWTH_KIB: Final = 256 << 10
FAILED: Final = Path(".runs/fuzz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 where an execution failed; its input is kept in ``.runs/fuzz``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--records", type=Path, default=DEFAULT)
    parser.add_argument("--batch", type=int, default=BATCH)
    given = parser.parse_args(arguments)
    code, others = digest_code(), read_records(given.records)
    failures = fuzz(others, code, given)
    counts = count_executions(read_records(given.records), code)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"{json.dumps(counts)}\n{sum(counts.values())} executions of code {code}, peak memory {grown >> 10} MiB\n"
    )
    return 1 if failures else 0


def fuzz(others: Sequence[Record], code: str, given: argparse.Namespace) -> int:
    """Returns how many executions failed until those that were wanted are on record with ``others``."""
    mine = {
        name: Record(code=code, target=name, start=start, stop=start, failures=0, processor_seconds=0.0)
        for name in TARGETS
        for start in [find_next(others, code, name, given.shard)]
    }
    failures = before = 0
    while (done := sum(count_executions([*others, *mine.values()], code).values())) < given.executions:
        started = time.process_time()
        for name, target in TARGETS.items():
            mine[name] = _run_batch(mine[name], given.batch * target.share)
        write_records(given.records, [*others, *mine.values()])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = before or peak
        if peak - before > MAX_GROWTH_KIB:
            sys.stdout.write(f"memory grew by {(peak - before) >> 10} MiB\n")
            failures, before = failures + 1, peak
        made = sum(given.batch * target.share for target in TARGETS.values())
        rate = made / max(time.process_time() - started, 1e-9)
        found = sum(record.failures for record in mine.values())
        sys.stdout.write(
            f"{done + made} executions, {rate:.0f} a second of the processor, {found} failures\n"
        )
        sys.stdout.flush()
    return failures + sum(record.failures for record in mine.values())


def _run_batch(record: Record, count: int) -> Record:
    started, failures = time.process_time(), 0
    for failure in execute(record.target, range(record.stop, record.stop + count)):
        failures += 1
        _keep(failure)
    seconds = record.processor_seconds + time.process_time() - started
    return replace(
        record,
        stop=record.stop + count,
        failures=record.failures + failures,
        processor_seconds=round(seconds, 2),
    )


def _keep(failure: Failure) -> None:
    FAILED.mkdir(parents=True, exist_ok=True)
    path = FAILED / f"{failure.target}-{failure.number}"
    path.write_bytes(failure.data)
    sys.stdout.write(f"{path}: {failure.reason}\n")


if __name__ == "__main__":
    sys.exit(main())
