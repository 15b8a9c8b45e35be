"""Many processes on one store and one remote, each doing what it likes, a tenth of it killed in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from conceptry.errors import ConceptryError, ConflictError, NotFoundError
from conceptry.names import ConceptName, Reference, parse_tag
from conceptry.registry import Registry
from conceptry.registry.index import is_index_equal, rebuild_index
from conceptry.registry.operations import CHANGING_OPERATIONS, FileOperations, use_operations
from conceptry.registry.pulling import pull_versions
from conceptry.registry.remotes import open_remote
from conceptry.registry.verify import verify_store
from tests.faults.children import KILLED, OK, run_child
from tests.faults.commands import SAMPLE_BYTES, list_all
from tests.faults.oracle import list_kept
from tests.faults.points import Counts
from tests.faults.strikes import CountedOperations
from tests.registry.folders import temporaries_below, write_folder

PROCESSES: Final = 32
OPERATIONS: Final = 10_000
VERSIONS: Final = 40
NAME: Final = ConceptName("me", "imp")
LOCKS: Final = ("kernel locks", "locks that always succeed")
EXPECTED: Final = (ConflictError, NotFoundError)
"""What may come of two processes that want the same thing."""


class AlwaysLocked(FileOperations):
    """A file system on which everybody gets each lock at once, as on some shares."""

    def lock(self, descriptor: int) -> bool:
        """Says yes."""
        return True


def sweep_crowd(
    part: str, folder: Path, *, processes: int = PROCESSES, operations: int = OPERATIONS
) -> Counts:
    """Return what the operations of all came to, and what is wrong once all have ended."""
    folder.mkdir(parents=True)
    for number in range(VERSIONS):
        data = f"version {number} ".encode() * SAMPLE_BYTES
        write_folder(folder / "made" / str(number), "me/imp", f"1.{number}.0", file=data[:SAMPLE_BYTES])
    double = FileOperations() if part == LOCKS[0] else AlwaysLocked()
    counts = Counts()
    share = -(-operations // processes)
    with use_operations(double):
        for said in _run_all(lambda number: _live(folder, random.Random(number), share), processes):
            try:
                ended, wrong = json.loads(said)
            except ValueError:
                ended, wrong = {}, [said]
            counts.add(Counts(Counter(ended), wrong))
        said = run_child(lambda: _look(folder))
    counts.violations += [] if said == OK else [said]
    counts.violations = [f"{part}: {one}" for one in counts.violations]
    return counts


def _run_all(work: Callable[[int], str], count: int) -> list[str]:
    """Return what each process said; all run at the same time."""
    pipes: list[tuple[int, int]] = []
    for number in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            said = run_child(lambda number=number: work(number))  # type: ignore[misc]
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(said.encode())
            os._exit(0)
        os.close(writing)
        pipes.append((child, reading))
    said_by_all = []
    for child, reading in pipes:
        with os.fdopen(reading, "rb") as pipe:
            said_by_all.append(pipe.read().decode("utf-8", "replace"))
        os.waitpid(child, 0)
    return said_by_all


def _live(folder: Path, rng: random.Random, count: int) -> str:
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    for _ in range(count):
        name, act = rng.choice(ACTS)
        number = rng.randrange(VERSIONS)
        if rng.random() < 0.1:
            moment = rng.randrange(1, 60)
            said = run_child(lambda act=act, n=number, m=moment: _die(folder, act, n, m))  # type: ignore[misc]
        else:
            said = _try(folder, act, number)
        if said not in (OK, KILLED, "refused"):
            wrong.append(f"{name} {number}: {said}")
        ended[f"{name} {said}" if said in (OK, KILLED, "refused") else "wrong"] += 1
    return json.dumps([ended, wrong[:5]])


def _die(folder: Path, act: Act, number: int, moment: int) -> str:
    def strike(name: str, now: int) -> int:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    operations = CountedOperations(CHANGING_OPERATIONS, strike)
    with use_operations(operations):
        return _try(folder, act, number)


def _try(folder: Path, act: Act, number: int) -> str:
    try:
        act(folder, number)
    except EXPECTED:
        return "refused"
    except ConceptryError as error:
        return f"{type(error).__name__}: {error}"
    return OK


def _publish(folder: Path, number: int) -> None:
    Registry(folder / "home").publish(folder / "made" / str(number))


def _push(folder: Path, number: int) -> None:
    Registry(folder / "home").push(f"me/imp@1.{number}.0", (folder / "studio").as_uri())


def _pull(folder: Path, number: int) -> None:
    if not (folder / "studio").is_dir():
        return
    remote = open_remote((folder / "studio").as_uri(), {})
    if remote.list_versions(NAME):
        pull_versions(Registry(folder / "second").store, [(Reference.parse(f"me/imp@1.{number}.0"), remote)])


def _tag(folder: Path, number: int) -> None:
    Registry(folder / "home").tag(f"me/imp@1.{number}.0", parse_tag("stable"))


def _get(folder: Path, number: int) -> None:
    Registry(folder / "home").get(f"me/imp@1.{number}.0")


def _list(folder: Path, number: int) -> None:
    list_all(Registry(folder / "home"))


def _collect(folder: Path, number: int) -> None:
    Registry(folder / "home").collect_garbage(grace_seconds=0)


def _rebuild(folder: Path, number: int) -> None:
    rebuild_index(Registry(folder / "home").store)


Act = Callable[[Path, int], None]
ACTS: Final[tuple[tuple[str, Act], ...]] = (
    *[("publish", _publish)] * 4,
    *[("push", _push)] * 3,
    *[("pull", _pull)] * 3,
    *[("tag", _tag)] * 2,
    *[("get", _get)] * 4,
    *[("list", _list)] * 3,
    ("gc", _collect),
    ("index rebuild", _rebuild),
)


def _look(folder: Path) -> str | None:
    """Whatever was there stays: no act removes a version, so each that a remote or store has must be whole."""
    wrong: list[str] = []
    there = list_kept(folder)
    for store in ("home", "second", "studio"):
        registry = Registry(folder / store)
        if not registry.store.exists:
            continue
        wrong += [f"{store}: {one.message}" for one in verify_store(registry.store, repair_index=False)]
        registry.collect_garbage(grace_seconds=0)
        wrong += [f"{store}: outlived gc: {name}" for name in temporaries_below(registry.root)]
        if store != "studio":
            listed = len(list_all(registry))
            count = sum(key.startswith(f"{store} ") and "@" in key for key in there)
            wrong += [] if listed == count else [f"{store}: {listed} listed, {count} there"]
            wrong += [] if is_index_equal(registry.store) else [f"{store}: the index is wrong"]
    wrong += [] if list_kept(folder) == there else ["a collection changed references"]
    return "; ".join(wrong) or None
