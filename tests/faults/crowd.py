"""Many processes on one store and one remote, each doing what it likes, a tenth of it killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.errors import ConceptryError, ConflictError, NotFoundError
from conceptry.names import Reference, parse_tag
from conceptry.registry import Registry
from conceptry.registry.index import is_index_equal, rebuild_index
from conceptry.registry.operations import (
    CHANGING_OPERATIONS,
    READING_OPERATIONS,
    DatabaseMode,
    FileOperations,
    use_operations,
)
from conceptry.registry.pulling import pull_versions
from conceptry.registry.remotes import open_remote
from conceptry.registry.verify import verify_store
from tests.faults.children import KILLED, OK, REFUSED, run_child
from tests.faults.commands import SAMPLE_BYTES, list_all
from tests.faults.oracle import list_kept
from tests.faults.points import Counts
from tests.faults.strikes import CountedOperations
from tests.registry.folders import temporaries_below, write_folder

PROCESSES: Final = 32
OPERATIONS: Final = 10_000
VERSIONS: Final = 40
LOCKS: Final = ("kernel locks", "locks that always succeed")
EXPECTED: Final = (ConflictError, NotFoundError)
"""What may come of two processes that want the same thing."""


class AlwaysLocked(FileOperations):
    """A file system on which everybody gets each lock at once, as on some shares; SQLite gets none either."""

    def lock(self, descriptor: int) -> bool:
        """Says yes."""
        return True

    def connect(self, path: Path, mode: DatabaseMode, *, timeout_seconds: float) -> sqlite3.Connection:
        """Opens without a lock what others may change at the same time."""
        uri = f"{path.as_uri()}?mode={'ro' if mode == 'fixed' else mode}&nolock=1&immutable={int(mode == 'fixed')}"
        return sqlite3.connect(uri, uri=True, timeout=timeout_seconds)


class CountedAlwaysLocked(CountedOperations, AlwaysLocked):
    """The same, counted and struck."""


COUNTED: Final = dict(zip(LOCKS, (CountedOperations, CountedAlwaysLocked), strict=True))
ALL_OPERATIONS: Final = CHANGING_OPERATIONS | READING_OPERATIONS


def sweep_crowd(
    part: str, folder: Path, *, processes: int = PROCESSES, operations: int = OPERATIONS
) -> Counts:
    """Return what the operations of all came to, and what is wrong once all have ended."""
    folder.mkdir(parents=True)
    for number in range(VERSIONS):
        write_folder(folder / "made" / str(number), "me/imp", f"1.{number}.0", file=_make_bytes(number))
    counts = Counts()
    sure: set[str] = set()
    share = -(-operations // processes)
    for said in _run_all(lambda number: _Life(folder, part, random.Random(number)).run(share), processes):
        try:
            ended, wrong, kept = json.loads(said)
        except ValueError:
            ended, wrong, kept = {}, [said], []
        counts.add(Counts(Counter(ended), wrong))
        sure |= set(kept)
    with use_operations(COUNTED[part](frozenset())):
        said = run_child(lambda: _look(folder, sure))
    counts.violations += [] if said == OK else [said]
    killed = sum(count for name, count in counts.points.items() if name.endswith(f" {KILLED}"))
    counts.violations += [] if killed * 10 >= counts.struck else [f"only {killed} were killed"]
    counts.violations = [f"{part}: {one}" for one in counts.violations]
    return counts


def _make_bytes(number: int) -> bytes:
    return (f"version {number} ".encode() * SAMPLE_BYTES)[:SAMPLE_BYTES]


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


class _Life:
    """What one process does, one operation after the other; of ten, one is killed at a moment drawn from its length."""

    def __init__(self, folder: Path, part: str, rng: random.Random) -> None:
        self.folder, self.part, self.rng = folder, part, rng
        self.ended: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.killed = 0
        self.lengths: dict[str, int] = {}
        self.sure: set[str] = set()
        """What a command said is there, which it must be from then on."""

    def run(self, count: int) -> str:
        """Return how the operations ended, the first things that were wrong, and what must be there."""
        for number in range(count):
            act = self.rng.choice(ACTS)
            version = self.rng.randrange(VERSIONS)
            said = self._act(act, version, is_struck=self.killed * 10 <= number)
            self._note(act, version, said)
        return json.dumps([self.ended, self.wrong[:5], sorted(self.sure)])

    def _act(self, act: Act, version: int, *, is_struck: bool) -> str:
        if is_struck:  # at each moment alike; one that is past the end kills the next operation instead
            moment = self.rng.randint(1, max(1, self.lengths.get(act.name, 10)))
            return run_child(lambda: self._try(act, version, moment)[0])
        said, length = self._try(act, version, None)
        self.lengths[act.name] = length
        return said

    def _try(self, act: Act, version: int, moment: int | None) -> tuple[str, int]:
        def strike(name: str, now: int) -> int:
            if now == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0

        operations = COUNTED[self.part](ALL_OPERATIONS, strike)
        with use_operations(operations):
            try:
                act.run(self.folder, version)
            except EXPECTED:
                said = REFUSED
            except ConceptryError as error:
                said = f"{type(error).__name__}: {error}"
            else:
                said = OK
        return said, operations.count

    def _note(self, act: Act, version: int, said: str) -> None:
        self.killed += said == KILLED
        if said == REFUSED and f"{act.needs} me/imp@1.{version}.0" in self.sure:
            said = "refused, though it was there"
        if said == OK and act.makes:
            self.sure.add(f"{act.makes} me/imp@1.{version}.0")
        known = said in (OK, KILLED, REFUSED)
        self.wrong += [] if known else [f"{act.name} {version}: {said}"]
        self.ended[f"{act.name} {said}" if known else "wrong"] += 1


def _publish(folder: Path, number: int) -> None:
    Registry(folder / "home").publish(folder / "made" / str(number))


def _push(folder: Path, number: int) -> None:
    Registry(folder / "home").push(f"me/imp@1.{number}.0", (folder / "studio").as_uri())


def _pull(folder: Path, number: int) -> None:
    if not (folder / "studio").is_dir():
        raise NotFoundError("nobody has pushed anything yet")
    remote = open_remote((folder / "studio").as_uri(), {})
    pull_versions(Registry(folder / "second").store, [(Reference.parse(f"me/imp@1.{number}.0"), remote)])


def _tag(folder: Path, number: int) -> None:
    Registry(folder / "home").tag(f"me/imp@1.{number}.0", parse_tag("stable"))


def _get(folder: Path, number: int) -> None:
    concept = Registry(folder / "home").get(f"me/imp@1.{number}.0")
    for path in concept.blobs.values():
        with contextlib.suppress(FileNotFoundError):  # a collection that is about to bring it back
            if path.read_bytes() != _make_bytes(number):
                raise RuntimeError(f"wrong bytes were handed out: {path}")


def _list(folder: Path, number: int) -> None:
    list_all(Registry(folder / "home"))


def _collect(folder: Path, number: int) -> None:
    Registry(folder / "home").collect_garbage(grace_seconds=0)


def _rebuild(folder: Path, number: int) -> None:
    rebuild_index(Registry(folder / "home").store)


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a process does; ``makes`` is where the version is after it, ``needs`` where it was before."""

    name: str
    run: Callable[[Path, int], None]
    makes: str = ""
    needs: str = ""


_COMMON: Final = (
    (4, Act("publish", _publish, makes="home")),
    (3, Act("push", _push, makes="studio", needs="home")),
    (3, Act("pull", _pull, makes="second", needs="studio")),
    (2, Act("tag", _tag)),
    (4, Act("get", _get, needs="home")),
    (3, Act("list", _list)),
    (1, Act("gc", _collect)),
    (1, Act("index rebuild", _rebuild)),
)
ACTS: Final = tuple(act for count, act in _COMMON for _ in range(count))


def _look(folder: Path, sure: set[str]) -> str | None:
    """Whatever was there stays: no act removes a version, so each that a remote or store has must be whole."""
    wrong: list[str] = []
    there = list_kept(folder)
    wrong += [f"lost: {key}" for key in sorted(sure - set(there))]
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
