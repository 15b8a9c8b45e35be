"""Losses of power at every operation of a command, on a disk in memory: each state that a disk may be left in."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Final

from conceptry.registry import Registry
from conceptry.registry.operations import use_operations
from conceptry.registry.verify import verify_store
from tests.faults.children import run_child
from tests.faults.commands import COMMANDS, Command
from tests.faults.memory import Bytes, MemoryOperations, iter_states
from tests.faults.oracle import Kept, find_losses, list_kept
from tests.faults.points import Counts

ROOT: Final = Path("/disk")
SAFE: Final = "whole"
POWERED: Final = tuple(name for name in COMMANDS if name != "index rebuild")
"""The index is not in these states: it is a hint, and the store is looked at as if it had none."""


class Recorder(MemoryOperations):
    """A tree in memory that keeps the states it could be left in before each change."""

    def __init__(self, tree: dict[str, Bytes], *, most: int, seed: int) -> None:
        super().__init__(tree)
        self.states: dict[int, dict[str, Bytes]] = {}
        self._most, self._rng = most, random.Random(seed)

    def limit(self, most: int) -> None:
        """From now on at most so many states of each moment are kept."""
        self._most = most

    def before_change(self) -> None:
        """Keeps each state that was not there before."""
        if not self._most:
            return
        for state in iter_states(self, most=self._most, rng=self._rng):
            self.states.setdefault(hash(frozenset(state.items())), state)


def sweep_power(name: str, *, most: int, repeat_every: int = 20, seed: int = 0) -> Counts:
    """Return what each state came to that one command may leave; every so many are also run again."""
    said = run_child(lambda: json.dumps(_record_and_check(COMMANDS[name], most, repeat_every, seed)))
    try:
        points, violations = json.loads(said)
    except ValueError:
        return Counts(Counter(), [f"{name}: {said}"])
    return Counts(Counter(points), violations)


def _record_and_check(
    command: Command, most: int, repeat_every: int, seed: int
) -> tuple[dict[str, int], list[str]]:
    """Records and checks in one process: what carries its number counts as of a command that still runs."""
    start: dict[str, Bytes] = {"/": None, str(ROOT): None}
    with use_operations(MemoryOperations(start)) as prepared:
        command.prepare(ROOT)
        before = list_kept(ROOT)
    recorder = Recorder(_tree_of(prepared), most=most, seed=seed)
    with use_operations(recorder):
        command.run(ROOT)
        expected = list_kept(ROOT)
    recorded = list(recorder.states.values())
    final = list(iter_states(recorder, most=most, rng=random.Random(seed)))
    return _check_all(
        command,
        [(one, False) for one in recorded] + [(one, True) for one in final],
        (before, expected),
        repeat_every,
    )


def _tree_of(operations: object) -> dict[str, Bytes]:
    return operations.copy_tree() if isinstance(operations, MemoryOperations) else {}


def _check_all(
    command: Command, states: list[tuple[dict[str, Bytes], bool]], kept: tuple[Kept, Kept], repeat_every: int
) -> tuple[dict[str, int], list[str]]:
    points: Counter[str] = Counter()
    violations: list[str] = []
    for number, (state, succeeded) in enumerate(states):
        again = number % repeat_every == 0
        wrong = check_state(command, state, kept, succeeded=succeeded, again=again)
        points["run again" if again else SAFE] += 1
        violations += [f"{command.name}, state {number} of {len(states)}: {text}" for text in wrong]
        if len(violations) > 20:
            break
    return dict(points), violations


def check_state(
    command: Command, state: dict[str, Bytes], kept: tuple[Kept, Kept], *, succeeded: bool, again: bool
) -> list[str]:
    """Return what is wrong with a store in a state that a loss of power left."""
    before, expected = kept
    with use_operations(MemoryOperations(state)):
        try:
            wrong = find_losses(command, before, list_kept(ROOT), succeeded=succeeded)
            wrong += find_damage(ROOT / command.store)
            if again and not wrong:
                command.run(ROOT)
                after = list_kept(ROOT)
                wrong += [] if after == expected else [f"run again: {after}, not {expected}"]
                wrong += find_damage(ROOT / command.store)
        except Exception as error:  # noqa: BLE001 - whatever comes out of a whole store is what is looked for
            wrong = [f"{type(error).__name__}: {error}"]
    return wrong


def find_damage(root: Path) -> list[str]:
    """Return what ``concepts verify`` finds wrong, in a store that has no index."""
    store = Registry(root).store
    return [finding.message for finding in verify_store(store, repair_index=False)]
