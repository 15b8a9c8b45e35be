"""Programs of several commands, one after the other on a disk in memory that loses its power at any moment of any.

What an earlier command has brought must outlive a loss of power in a later one, whatever that one leaves unsynced.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from conceptry.errors import ConceptryError
from conceptry.names import ConceptName, RemoteName, parse_tag
from conceptry.registry import Registry
from conceptry.registry.operations import use_operations
from conceptry.registry.tags import read_tag
from tests.faults.children import run_child
from tests.faults.commands import Command, list_all, locate_studio, write_concept
from tests.faults.memory import Bytes, iter_states
from tests.faults.oracle import Kept, list_kept
from tests.faults.points import Counts
from tests.faults.power import ROOT, SAFE, Recorder, check_state

PARTS: Final = tuple(f"program {number:02}" for number in range(1, 31))
LENGTH: Final = 12
MOST_STATES: Final = 24
"""Of one moment: a program has hundreds, and what none of its commands has synced adds up to billions of states."""

VERSIONS: Final = 4


@dataclass(frozen=True, slots=True)
class Act:
    """One kind of command on one of the versions: what it does, and what is there or gone after it."""

    name: str
    store: str
    run: Callable[[Path, str], object]
    adds: str = ""
    """``version`` if that is there afterwards, else the text of a tag."""

    def on(self, version: str) -> Command:
        """Returns the command on one version, such as ``me/imp@1.0.0``."""
        adds = version if self.adds == "version" else self.adds
        return Command(
            name=f"{self.name} {version}",
            prepare=lambda folder: None,
            run=lambda folder: self.run(folder, version),
            store=self.store,
            adds=(adds,) if adds else (),
        )


def _publish(folder: Path, version: str) -> None:
    Registry(folder / "home").publish(folder / "made" / version.replace("/", "-").replace("@", "-"))


def _push(folder: Path, version: str) -> None:
    Registry(folder / "home").push(version, locate_studio(folder))


def _pull(folder: Path, version: str) -> None:
    Registry(folder / "second").pull(f"studio::{version}")


def _tag(folder: Path, version: str) -> None:
    Registry(folder / "home").tag(version, parse_tag("stable"))


def _remove(folder: Path, version: str) -> None:
    registry = Registry(folder / "home")
    move = read_tag(registry.store.layout, ConceptName("me", "imp"), parse_tag("stable"))
    is_tagged = move is not None and version.endswith(f"@{move.version}")  # its tag would point to nothing
    if not is_tagged and version in {str(row.reference) for row in list_all(registry)}:
        registry.remove(version)


def _restore(folder: Path, version: str) -> None:
    registry = Registry(folder / "home")
    if version not in {str(row.reference) for row in list_all(registry)}:
        registry.restore(version)


def _collect(folder: Path, version: str) -> None:
    for store in ("home", "second"):
        Registry(folder / store).collect_garbage(grace_seconds=0)


ACTS: Final = (
    Act("publish", "home", _publish, adds="version"),
    Act("publish", "home", _publish, adds="version"),
    Act("push", "studio", _push, adds="version"),
    Act("pull", "second", _pull, adds="version"),
    Act("tag", "home", _tag, adds="me/imp:stable"),
    Act("remove", "home", _remove),
    Act("restore", "home", _restore, adds="version"),
    Act("gc", "home", _collect),
)


def sweep_program(
    part: str, *, most: int = MOST_STATES, repeat_every: int = 40, length: int = LENGTH
) -> Counts:
    """Return what each state came to that a program of commands drawn by its number may leave."""
    seed = int(part.rsplit(maxsplit=1)[-1])
    said = run_child(lambda: json.dumps(_run(seed, most, repeat_every, length)))
    try:
        points, violations = json.loads(said)
    except ValueError:
        return Counts(Counter(), [f"{part}: {said}"])
    return Counts(Counter(points), [f"{part}: {one}" for one in violations])


def _run(seed: int, most: int, repeat_every: int, length: int) -> tuple[dict[str, int], list[str]]:
    rng, points, violations = random.Random(seed), Counter[str](), list[str]()
    tree: dict[str, Bytes] = {"/": None, str(ROOT): None}
    recorder = Recorder(tree, most=0, seed=seed)
    versions = [f"me/imp@1.{number}.0" for number in range(VERSIONS)]
    with use_operations(recorder):
        for version in versions:
            write_concept(ROOT, version)
        Registry(ROOT / "second").add_remote(RemoteName("studio"), locate_studio(ROOT))
        recorder.keep_all()
    recorder.limit(most)
    done = 0
    while done < length and len(violations) < 20:
        command = rng.choice(ACTS).on(rng.choice(versions))
        recorder.states.clear()
        with use_operations(recorder):
            before = list_kept(ROOT)
            try:
                command.run(ROOT)
            except ConceptryError:  # it does not go now: nothing to push, or to restore
                continue
            expected = list_kept(ROOT)
        done += 1
        store = f"{command.store} "  # with a concept's last version go its tags
        gone = tuple(
            key.removeprefix(store) for key in before if key.startswith(store) and key not in expected
        )
        command = replace(command, removes=(*command.removes, *gone))
        states = [(state, False) for state in recorder.states.values()]
        states += [(state, True) for state in iter_states(recorder, most=most, rng=random.Random(seed))]
        _look_at_all(command, states, (before, expected), repeat_every, points, violations)
    return dict(points), violations


def _look_at_all(
    command: Command,
    states: list[tuple[dict[str, Bytes], bool]],
    kept: tuple[Kept, Kept],
    repeat_every: int,
    points: Counter[str],
    violations: list[str],
) -> None:
    for number, (state, succeeded) in enumerate(states):
        again = number % repeat_every == 0
        wrong = check_state(command, state, kept, succeeded=succeeded, again=again)
        points["run again" if again else SAFE] += 1
        violations += [f"{command.name}, state {number} of {len(states)}: {text}" for text in wrong]
