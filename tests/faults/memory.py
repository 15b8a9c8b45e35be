"""A file system in memory that knows what would be left of it if the power failed now.

A file's bytes are safe once it was synced, a name once its folder was. Until then a disk may have kept the old bytes,
the new ones, a beginning of them, or their length in zeros; and of the changes of names any that it likes, in any
order, as long as changes of one name stay in theirs. A rename is one change. Modes are not followed.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from conceptry.registry.operations import (
    CHANGING_OPERATIONS,
    READING_OPERATIONS,
    DatabaseMode,
    FileOperations,
)

SECTOR_BYTES = 512
Bytes = bytes | None  # None for a folder


@dataclass(slots=True)
class Node:
    """A file, or a folder where there are no bytes."""

    number: int
    data: bytearray | None
    safe: bytes = b""
    """What was synced last."""

    mode: int = 0o600
    time_ns: int = field(default_factory=time.time_ns)

    @property
    def is_dirty(self) -> bool:
        """Whether bytes of it could be lost."""
        return self.data is not None and self.data != self.safe


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One change of names that is not safe yet: what each name means from then on, None for nothing."""

    names: tuple[tuple[str, Node | None], ...]


class MemoryOperations(FileOperations):
    """Operations on a tree in memory; there is no SQLite in it, so a store works without its index."""

    def __init__(self, tree: dict[str, Bytes] | None = None) -> None:
        super().__init__()
        self._lock = threading.RLock()
        for name in (CHANGING_OPERATIONS | READING_OPERATIONS) - {"lock"}:
            setattr(self, name, self._alone(getattr(self, name)))
        self._numbers = itertools.count(1)
        self._opened: dict[int, tuple[Node, int]] = {}
        self.names_safe: dict[str, Node] = {}
        for path, data in sorted((tree or {}).items()):
            node = self._make(data)
            node.safe = data or b""
            self.names_safe[path] = node
        self.tree = dict(self.names_safe)
        self.folders: dict[str, set[str]] = {}
        for path in self.tree:
            self._list(path)
        self.pending: list[Change] = []

    def _alone(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        """An operation is one moment: threads take turns."""

        def call(*arguments: Any, **more: Any) -> Any:
            with self._lock:
                return operation(*arguments, **more)

        return call

    def before_change(self) -> None:
        """Called before each change; a subclass looks at the tree here."""

    def keep_all(self) -> None:
        """Makes everything safe at once."""
        self.pending.clear()
        self.names_safe = dict(self.tree)
        for node in self.tree.values():
            node.safe = bytes(node.data or b"")

    def copy_tree(self) -> dict[str, Bytes]:
        """Returns what is there now."""
        return {path: None if node.data is None else bytes(node.data) for path, node in self.tree.items()}

    # --- names -------------------------------------------------------------------------------------------------

    def status(self, path: Path | str) -> os.stat_result:
        """Returns what is known of a name."""
        return self._describe(self._find(path))

    followed_status = status

    def names(self, folder: Path | str) -> list[str]:
        """Returns the names in a folder."""
        if self._find(folder).data is not None:
            _fail(errno.ENOTDIR)
        return list(self.folders.get(os.fspath(folder), ()))

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name."""
        node = self._find(source)
        self._refuse_taken(target)
        self._change((os.fspath(target), node))

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file another name."""
        node = self._find(source)
        self._find(target.parent)
        self._change((os.fspath(source), None), (os.fspath(target), node))

    def rename_new(self, source: Path, target: Path) -> None:
        """Gives a file another name that nothing had."""
        self._refuse_taken(target)
        self.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Takes a name away."""
        self._find(path)
        self._change((os.fspath(path), None))

    def make_folder(self, path: Path, mode: int) -> None:
        """Makes a folder."""
        self._refuse_taken(path)
        self._change((os.fspath(path), self._make(None)))

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder."""
        if self.names(path):
            _fail(errno.ENOTEMPTY)
        self._change((os.fspath(path), None))

    def change_mode(self, path: Path, mode: int) -> None:
        """Sets a mode."""
        self._find(path).mode = mode

    def make_symbolic_link(self, target: Path, path: Path) -> None:
        """Refuses: a store has none."""
        _fail(errno.EPERM)

    def sync_folder(self, folder: Path) -> None:
        """Makes all changes of names in a folder safe."""
        self.before_change()
        text = os.fspath(folder)
        for change in [
            one for one in self.pending if any(os.path.dirname(name) == text for name, _ in one.names)
        ]:
            self.pending.remove(change)
            for name, node in change.names:
                _put(self.names_safe, name, node)

    # --- open files --------------------------------------------------------------------------------------------

    def open(self, path: Path | str) -> int:
        """Opens a file or folder for reading."""
        return self._open(self._find(path))

    def create(self, path: Path) -> int:
        """Opens a new file."""
        self._refuse_taken(path)
        node = self._make(b"")
        self._change((os.fspath(path), node))
        return self._open(node)

    def open_for_update(self, path: Path) -> int:
        """Opens a file, made where it is missing."""
        return self._open(self.tree[os.fspath(path)]) if os.fspath(path) in self.tree else self.create(path)

    def close(self, descriptor: int) -> None:
        """Closes."""
        del self._opened[descriptor]

    def read(self, descriptor: int, count: int) -> bytes:
        """Returns the next bytes."""
        node, place = self._opened[descriptor]
        piece = bytes((node.data or b"")[place : place + count])
        self._opened[descriptor] = node, place + len(piece)
        return piece

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        """Writes at the present place."""
        self.before_change()
        node, place = self._opened[descriptor]
        if node.data is None:
            _fail(errno.EBADF)
        node.data[place : place + len(data)] = data
        node.time_ns = time.time_ns()
        self._opened[descriptor] = node, place + len(data)
        return len(data)

    def seek(self, descriptor: int, offset: int) -> None:
        """Goes on elsewhere."""
        self._opened[descriptor] = self._opened[descriptor][0], offset

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cuts a file."""
        self.before_change()
        node = self._opened[descriptor][0]
        if node.data is not None:
            del node.data[size_bytes:]

    def sync(self, descriptor: int) -> None:
        """Makes the bytes of a file safe."""
        self.before_change()
        node = self._opened[descriptor][0]
        node.safe = bytes(node.data or b"")

    def status_of(self, descriptor: int) -> os.stat_result:
        """Returns what is known of an open file."""
        return self._describe(self._opened[descriptor][0])

    def lock(self, descriptor: int) -> bool:
        """There is nobody else."""
        return True

    def clone(self, source: int, target: int) -> None:
        """Refuses, as most file systems do."""
        _fail(errno.ENOTSUP)

    def connect(self, path: Path, mode: DatabaseMode, *, timeout_seconds: float) -> sqlite3.Connection:
        """Refuses: SQLite would open a file of the system."""
        raise sqlite3.OperationalError("unable to open database file")

    # --- inside ------------------------------------------------------------------------------------------------

    def _make(self, data: Bytes) -> Node:
        return Node(next(self._numbers), None if data is None else bytearray(data))

    def _open(self, node: Node) -> int:
        descriptor = next(self._numbers)
        self._opened[descriptor] = node, 0
        return descriptor

    def _find(self, path: Path | str) -> Node:
        node = self.tree.get(os.fspath(path))
        if node is None:
            _fail(errno.ENOENT)
        return node

    def _refuse_taken(self, path: Path) -> None:
        if os.fspath(path) in self.tree:
            _fail(errno.EEXIST)
        if self._find(path.parent).data is not None:
            _fail(errno.ENOTDIR)

    def _change(self, *names: tuple[str, Node | None]) -> None:
        self.before_change()
        for name, node in names:
            _put(self.tree, name, node)
            self._list(name)
        self.pending.append(Change(names))

    def _list(self, path: str) -> None:
        folder, name = os.path.split(path)
        known = self.folders.setdefault(folder, set())
        if path in self.tree:
            known.add(name)
        else:
            known.discard(name)

    def _describe(self, node: Node) -> os.stat_result:
        kind = stat.S_IFDIR | 0o700 if node.data is None else stat.S_IFREG | node.mode
        seconds = node.time_ns // 1_000_000_000
        times: dict[str, Any] = {f"st_{one}time_ns": node.time_ns for one in "amc"}
        size = len(node.data or b"")
        row = (kind, node.number, 1, 1, os.geteuid(), os.getegid(), size, seconds, seconds, seconds)
        return os.stat_result((*row, *[float(seconds)] * 3, *[node.time_ns] * 3), times)


def iter_states(operations: MemoryOperations, *, most: int, rng: random.Random) -> Iterator[dict[str, Bytes]]:
    """Yields what a disk may hold if the power failed now: all states if there are at most ``most``, else a sample.

    The first are the two ends, everything lost that can be and nothing lost.
    """
    changes = list(operations.pending)
    dirty = [node for node in {id(n): n for n in operations.tree.values()}.values() if node.is_dirty]
    versions = [list_versions_of(node) for node in dirty]
    total = 2 ** len(changes)
    for choices in versions:
        total *= len(choices)
    numbers: Iterator[int] | range = range(total)
    if total > most:
        numbers = itertools.chain((0, total - 1), (rng.randrange(total) for _ in range(most - 2)))
    for number in numbers:
        kept, rest = number % 2 ** len(changes), number // 2 ** len(changes)
        bytes_of: dict[int, bytes] = {}
        for node, choices in zip(dirty, versions, strict=True):
            rest, chosen = divmod(rest, len(choices))
            bytes_of[id(node)] = choices[chosen]
        yield _build(operations, [one for i, one in enumerate(changes) if kept >> i & 1], bytes_of)


def list_versions_of(node: Node) -> list[bytes]:
    """Return the bytes that a file may have: as synced, all, or up to any sector, then its end or zeros."""
    now, safe = bytes(node.data or b""), node.safe
    cuts = [now[:place] for place in range(SECTOR_BYTES, len(now), SECTOR_BYTES)]
    torn = [now[:cut] + bytes(len(now) - cut) for cut in range(0, len(now), SECTOR_BYTES)]
    return list(dict.fromkeys([safe, *cuts, *torn, b"", now]))


def _build(
    operations: MemoryOperations, changes: list[Change], bytes_of: dict[int, bytes]
) -> dict[str, Bytes]:
    names = dict(operations.names_safe)
    for change in changes:
        for name, node in change.names:
            _put(names, name, node)
    tree: dict[str, Bytes] = {}
    for path in sorted(names, key=lambda one: one.count("/")):
        node = names[path]
        folder = os.path.dirname(path)
        if path == "/" or (folder in tree and tree[folder] is None):  # what lies in a lost folder is lost
            tree[path] = None if node.data is None else bytes_of.get(id(node), node.safe)
    return tree


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
