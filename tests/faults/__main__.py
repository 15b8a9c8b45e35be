"""``make faults``: every fault of every section, one part after the other; goes on where it stopped (.runs/faults)."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults import crowd, power, small_disks, tracing
from tests.faults.commands import COMMANDS
from tests.faults.points import FAULT_BY_NAME, Counts, set_stage, sweep_fault, sweep_kills, warm_up

KEPT: Final = Path(".runs/faults")
PAGE: Final = Path("docs/faults.md")
IN_MEMORY: Final = Path("/dev/shm")
MOST_STATES: Final = 1500
"""How many states of one moment are looked at; where there are more, a sample with a fixed seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One kind of fault: its parts, and what sweeps one of them in a folder."""

    name: str
    title: str
    parts: tuple[str, ...]
    sweep: Callable[[str, Path], Counts]


def sweep_all_kills(part: str, folder: Path) -> Counts:
    """Return the kills in the place of each operation of a command."""
    return total(list(sweep_kills(set_stage(folder, part))))


def sweep_all_calls(part: str, folder: Path) -> Counts:
    """Return the kills at each system call of a command."""
    counts = total(list(tracing.sweep_calls(set_stage(folder, part))))
    tracing.end_tracers()
    return counts


def sweep_all_errors(part: str, folder: Path) -> Counts:
    """Return the failures of one kind at each operation of a command."""
    command, _, fault = part.partition(": ")
    return total(list(sweep_fault(set_stage(folder, command), FAULT_BY_NAME[fault])))


SECTIONS: Final = (
    Section(
        name="kills",
        title="SIGKILL in the place of each operation that changes files",
        parts=tuple(COMMANDS),
        sweep=sweep_all_kills,
    ),
    Section(
        name="power",
        title="Loss of power: states of the disk",
        parts=power.POWERED,
        sweep=lambda part, _: power.sweep_power(part, most=MOST_STATES),
    ),
    Section(
        name="calls",
        title="SIGKILL on entry of each system call that may change files (strace)",
        parts=tuple(COMMANDS),
        sweep=sweep_all_calls,
    ),
    Section(
        name="disks",
        title="Full disks: a tmpfs with room for so much more, in steps of 4 KiB",
        parts=small_disks.PARTS,
        sweep=small_disks.sweep_sizes,
    ),
    Section(
        name="crowd",
        title="32 processes, 10,000 mixed operations, a tenth of them killed",
        parts=crowd.LOCKS,
        sweep=crowd.sweep_crowd,
    ),
    Section(
        name="errors",
        title="An error at each operation that can fail so",
        parts=tuple(f"{command}: {fault}" for command in COMMANDS for fault in FAULT_BY_NAME),
        sweep=sweep_all_errors,
    ),
)


def total(counts: list[Counts]) -> Counts:
    """Return the sum."""
    found = Counts()
    for one in counts:
        found.add(one)
    return found


def main(wanted: list[str]) -> int:
    """Sweep what was not swept yet, of the sections named or of all, and write the page; returns 1 for a violation."""
    KEPT.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    try:
        warm_up(folder)
        for section in SECTIONS:
            for number, part in enumerate(section.parts if not wanted or section.name in wanted else ()):
                place = KEPT / f"{section.name}-{number}.json"
                if not place.exists():
                    sweep_part(section, part, folder / f"{section.name}-{number}", place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    page, violations = write_page()
    PAGE.write_text(page, encoding="utf-8")
    return 1 if violations else 0


def sweep_part(section: Section, part: str, folder: Path, place: Path) -> None:
    """Sweep one part, and keep what it came to if nothing was wrong."""
    begun = time.monotonic()
    counts = section.sweep(part, folder)
    shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - begun
    for line in counts.violations:
        print(f"VIOLATION {line}", file=sys.stderr, flush=True)  # noqa: T201
    print(f"{section.name}, {part}: {dict(counts.points)}, {seconds:.0f} s", flush=True)  # noqa: T201
    if not counts.violations:
        document = {"part": part, "points": dict(counts.points), "seconds": round(seconds, 1)}
        place.write_text(json.dumps(document) + "\n", encoding="utf-8")


def write_page() -> tuple[str, int]:
    """Return the page of counts from what was kept, and how many parts are missing or were violated."""
    lines = [
        "# Faults of the machine",
        "",
        "Written by `make faults`, which goes on where it stopped. After every fault: each listed version is",
        "whole and right, nothing published is lost, the same command run again succeeds with the same outcome,",
        "no temporary file outlives a collection, and no traceback comes out. A part is counted once it was",
        "swept without a violation. The index is no part of the states after a loss of power.",
        "",
    ]  # fmt: skip
    missing = 0
    for section in SECTIONS:
        rows = [(part, _read_kept(section, number)) for number, part in enumerate(section.parts)]
        done = [(part, kept) for part, kept in rows if kept]
        missing += len(rows) - len(done)
        points = sum(sum(kept["points"].values()) for _, kept in done)
        lines += [f"## {section.title}", "", f"{points} points, in {len(done)} of {len(rows)} parts", ""]
        lines += ["| part | points | how they ended |", "|---|---|---|"] if done else []
        for part, kept in done:
            ended = ", ".join(f"{count} {name}" for name, count in sorted(Counter(kept["points"]).items()))
            lines.append(f"| {part} | {sum(kept['points'].values())} | {ended} |")
        lines.append("")
    return "\n".join(lines), missing


def _read_kept(section: Section, number: int) -> dict[str, dict[str, int]] | None:
    place = KEPT / f"{section.name}-{number}.json"
    return json.loads(place.read_text(encoding="utf-8")) if place.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
