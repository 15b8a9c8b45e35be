"""One command, struck at each of its operations in turn, in a child of this process; then everything is looked at."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from conceptry.registry.operations import CHANGING_OPERATIONS, FileOperations, use_operations
from tests.faults.children import KILLED, OK, REFUSED, copy_fresh, run_child
from tests.faults.commands import COMMANDS, Command
from tests.faults.more_commands import MORE_COMMANDS
from tests.faults.oracle import Kept, list_kept, look_after, repeat
from tests.faults.strikes import FAULTS, KILL, CountedOperations, Fault, fail_at, kill_at, list_struck
from tests.registry.folders import temporaries_below


@dataclass(slots=True)
class Counts:
    """What a sweep came to."""

    points: Counter[str] = field(default_factory=Counter)
    """How many points were struck, by how the command ended."""

    violations: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Takes the counts of another sweep in."""
        self.points += other.points
        self.violations += other.violations

    @property
    def struck(self) -> int:
        """How many points were struck."""
        return sum(self.points.values())


@dataclass(frozen=True, slots=True)
class Stage:
    """A command with its folders: as they are before it, a place to run it, and what it came to undisturbed."""

    command: Command
    prepared: Path
    folder: Path
    before: Kept
    expected: Kept


def set_stage(parent: Path, name: str) -> Stage:
    """Return the stage of a command below ``parent``, after an undisturbed run. Raises RuntimeError if that fails."""
    command, folder = (COMMANDS | MORE_COMMANDS)[name], parent / "work"
    folder.mkdir(parents=True)
    said = run_child(lambda: void(command.prepare(folder)))
    copy_fresh(folder, parent / "prepared")
    before = list_kept(folder)
    said = said if said != OK else run_child(lambda: void(command.run(folder)))
    if said != OK:
        raise RuntimeError(f"{name} fails without a fault: {said}")
    return Stage(command, parent / "prepared", folder, before, list_kept(folder))


def warm_up(parent: Path) -> None:
    """Import all that commands and checks need, so that no child has to: by running each once in this process."""
    for name, command in (COMMANDS | MORE_COMMANDS).items():
        folder = parent / "warm" / name
        folder.mkdir(parents=True)
        command.prepare(folder)
        command.run(folder)
        look_after(folder, command, {}, succeeded=False)
        repeat(folder, command, {}, {})
    gc.collect()
    gc.freeze()  # else each child copies every page of it when it collects


def count_operations(stage: Stage, counted: frozenset[str]) -> int:
    """Return how many of these operations the undisturbed command makes."""
    copy_fresh(stage.prepared, stage.folder)

    def count() -> str:
        with use_operations(CountedOperations(counted)) as operations:
            stage.command.run(stage.folder)
        return str(operations.count if isinstance(operations, CountedOperations) else 0)

    return int(run_child(count))


def check_point(
    stage: Stage, label: str, strike: Callable[[], str | None], *, tidy: bool = False, watch: Watch = None
) -> Counts:
    """Return how the command ended when it was struck, and what was wrong then.

    ``tidy`` says that nothing kept it from removing its private files itself; else they are gone with the next gc.
    """
    copy_fresh(stage.prepared, stage.folder)
    folder, command = stage.folder, stage.command
    ended = run_child(strike, stop=watch)
    counts = Counts(Counter([ended if ended in (OK, KILLED, REFUSED) else "traceback"]))
    wrong = [] if ended in (OK, KILLED, REFUSED) else [ended]
    if tidy and ended != KILLED:
        left = temporaries_below(folder / command.store)
        before = temporaries_below(stage.prepared / command.store)
        mine = [name for name in left if not name.startswith("partial/")]  # what the next try goes on with
        wrong += [f"left behind: {name}" for name in mine if name not in before]

    def check() -> str | None:
        found = look_after(folder, command, stage.before, succeeded=ended == OK)
        return "; ".join(filter(None, (found, repeat(folder, command, stage.before, stage.expected)))) or None

    wrong += [said] if (said := run_child(check)) != OK else []
    counts.violations += [f"{command.name}, {label}: {text}" for text in wrong]
    return counts


Watch = Callable[[int], None] | None


def run_struck(stage: Stage, operations: FileOperations) -> str | None:
    """Run the command on operations that will be struck."""
    with use_operations(operations):
        stage.command.run(stage.folder)
    return None


def sweep_kills(stage: Stage, *, step: int = 1) -> Iterator[Counts]:
    """Yield what each kill came to: one in the place of every STEP-th change of files."""
    for number in range(1, count_operations(stage, CHANGING_OPERATIONS) + 1, step):
        yield check_point(stage, f"{KILL} at change {number}", partial(run_struck, stage, kill_at(number)))


def sweep_fault(stage: Stage, fault: Fault, *, step: int = 1) -> Iterator[Counts]:
    """Yield what each failure came to: one of every STEP-th operation that can fail so."""
    for number in range(1, count_operations(stage, list_struck(fault)) + 1, step):
        label = f"{fault.name} at operation {number}"
        tidy = not stage.command.cleans_by & list_struck(fault)
        yield check_point(stage, label, partial(run_struck, stage, fail_at(fault, number)), tidy=tidy)


FAULT_BY_NAME: Final = {fault.name: fault for fault in FAULTS}


def void(value: object) -> str | None:
    """Drop a value; children say nothing where nothing is wrong."""
    return None
