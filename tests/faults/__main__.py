"""``make faults``: every fault of every section, one part after the other; goes on where it stopped."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults import crowd, pairs, power, programs, small_disks, tracing
from tests.faults.commands import COMMANDS
from tests.faults.more_commands import MORE_COMMANDS
from tests.faults.points import FAULT_BY_NAME, Counts, set_stage, sweep_fault, sweep_kills, warm_up
from tests.faults.results import (
    MACHINE_CODE,
    SAME_CODE,
    Result,
    choose_shard,
    digest_code,
    is_of_code,
    keep_result,
    read_results,
)

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
        name="programs",
        title="Loss of power in programs of twelve commands: states of the disk",
        parts=programs.PARTS,
        sweep=lambda part, _: programs.sweep_program(part),
    ),
    Section(
        name="calls",
        title="SIGKILL on entry of each system call that may change files (strace)",
        parts=(*COMMANDS, *MORE_COMMANDS),
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
        name="pairs",
        title="Another command as a whole at each moment of one, where locks exclude nobody",
        parts=pairs.PARTS,
        sweep=pairs.sweep_pair,
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


def main() -> int:
    """Sweep what was not swept on this code, of the sections named or of all, and write the page.

    Returns 1 for a violation.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th part from the I-th on")
    parser.add_argument("sections", nargs="*")
    chosen = parser.parse_args()
    parts = [
        (one, part) for one in SECTIONS for part in one.parts if one.name in (chosen.sections or one.name)
    ]
    names = choose_shard([f"{section.name} {part}" for section, part in parts], chosen.shard)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    violations = 0
    try:
        warm_up(folder)
        code, known = digest_code(MACHINE_CODE), read_results()
        for number, (section, part) in enumerate(parts):
            last = known.get((section.name, part))
            if f"{section.name} {part}" in names and (last is None or not is_of_code(last, code)):
                violations += sweep_part(section, part, folder / f"{section.name}-{number}", code)
                PAGE.write_text(write_page(code), encoding="utf-8")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    PAGE.write_text(write_page(code), encoding="utf-8")
    return 1 if violations else 0


def sweep_part(section: Section, part: str, folder: Path, code: str) -> int:
    """Sweep one part, and keep what it came to if nothing was wrong; returns how many violations there were."""
    begun = time.monotonic()
    counts = section.sweep(part, folder)
    shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - begun
    for line in counts.violations:
        print(f"VIOLATION {line}", file=sys.stderr, flush=True)  # noqa: T201
    print(f"{section.name}, {part}: {dict(counts.points)}, {seconds:.0f} s", flush=True)  # noqa: T201
    if not counts.violations:
        keep_result(
            Result(
                sweep=section.name,
                part=part,
                code=code,
                points=dict(sorted(counts.points.items())),
                seconds=round(seconds, 1),
            )
        )
    return len(counts.violations)


def write_page(code: str) -> str:
    """Return the page of counts from the lines that were kept."""
    known = read_results()
    rows = {
        one.name: [known[one.name, part] for part in one.parts if (one.name, part) in known]
        for one in SECTIONS
    }
    present = sum(one.struck for kept in rows.values() for one in kept if is_of_code(one, code))
    earlier = sum(one.struck for kept in rows.values() for one in kept if not is_of_code(one, code))
    lines = [
        "# Faults of the machine",
        "",
        "Written by `make faults` from tests/faults/results.jsonl; `make faults SHARD=2/8` sweeps every eighth part",
        "from the second on, and a part whose code did not change is not swept again. After every fault: each listed",
        "version is whole and right, nothing published is lost, the same command run again succeeds with the same",
        "outcome, no temporary file outlives a collection, and no traceback comes out. A part is counted once it was",
        "swept without a violation. The index is no part of the states after a loss of power.",
        "",
        f"Points on this code ({code}): {present}. On earlier code, by the digest of its sources: {earlier}.",
        *(f"Counted as this code too: {old}, which {why}." for old, (new, _, why) in SAME_CODE.items() if new == code),
        "",
    ]  # fmt: skip
    for section in SECTIONS:
        kept = rows[section.name]
        points = sum(one.struck for one in kept)
        lines += [
            f"## {section.title}",
            "",
            f"{points} points, in {len(kept)} of {len(section.parts)} parts",
            "",
        ]
        lines += ["| part | points | how they ended | code |", "|---|---|---|---|"] if kept else []
        for one in kept:
            ended = ", ".join(f"{count} {name}" for name, count in sorted(one.points.items()))
            lines.append(
                f"| {one.part} | {one.struck} | {ended} | {'this' if is_of_code(one, code) else one.code} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
