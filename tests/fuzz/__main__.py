"""``python -m tests.fuzz [--executions N] [--state FILE]``: goes on where it stopped, and prints what was executed."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Final

from tests.fuzz.execution import Failure, execute
from tests.fuzz.targets import TARGETS

BATCH: Final = 2000
MAX_GROWTH_KIB: Final = 256 << 10


def main() -> int:
    """Returns 1 where an execution failed; its input is kept beside the state."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--state", type=Path, default=Path(".runs/fuzz/state.json"))
    given = parser.parse_args()
    given.state.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = dict.fromkeys(TARGETS, 0)
    if given.state.exists():
        counts |= json.loads(given.state.read_text(encoding="utf-8"))
    failures = fuzz(counts, given.executions, given.state)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"{json.dumps(counts)}\n{sum(counts.values())} executions, peak memory {grown >> 10} MiB\n"
    )
    return 1 if failures else 0


def fuzz(counts: dict[str, int], wanted: int, state: Path) -> int:
    """Returns how many executions failed until ``wanted`` were made in all; ``counts`` go up."""
    failures, started, first, before = 0, time.monotonic(), sum(counts.values()), 0
    while sum(counts.values()) < wanted:
        for name, target in TARGETS.items():
            start = counts[name]
            for failure in execute(name, range(start, start + BATCH * target.share)):
                failures += 1
                _keep(failure, state.parent)
            counts[name] += BATCH * target.share
        state.write_text(json.dumps(counts), encoding="utf-8")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = before or peak
        if peak - before > MAX_GROWTH_KIB:
            sys.stdout.write(f"memory grew by {(peak - before) >> 10} MiB\n")
            failures, before = failures + 1, peak
        done = sum(counts.values())
        rate = (done - first) / (time.monotonic() - started)
        sys.stdout.write(f"{done} executions, {rate:.0f} a second, {failures} failures\n")
        sys.stdout.flush()
    return failures


def _keep(failure: Failure, folder: Path) -> None:
    path = folder / f"{failure.target}-{failure.number}"
    path.write_bytes(failure.data)
    sys.stdout.write(f"{path}: {failure.reason}\n")


if __name__ == "__main__":
    sys.exit(main())
