"""Generations: names of states of the references. An index says of which it is, and is believed while that is present.

Whoever changes references has a mark among the leases meanwhile, and writes the name of an open generation first: no
index is ever of that. Whoever has brought the index up to date settles it under a new name, unless marks show that
somebody else may have changed references since; who ends beside such a one leaves its mark for it to see. So nothing
rests on a lock, and a change that was killed leaves an index that is behind, never one that is believed and lacks it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.errors import ConceptryError
from conceptry.registry.file_reading import look_at, names_in, read_small_file
from conceptry.registry.files import ensure_folder, replace_name, write_file
from conceptry.registry.operations import current_operations
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import CHANGE, Layout, draw_name
from conceptry.registry.processes import is_running

LONGEST_SECONDS: Final = 3600
"""A mark that is older was left by a process that is gone, although its number may be somebody else's now."""

_OPEN: Final = "open-"
_ENDED: Final = "d"
_MARKS: Final = (f"-{CHANGE}", f"-{CHANGE}{_ENDED}")
_NAME_BYTES: Final = 16
_LIMIT_BYTES: Final = 4096


@dataclass(slots=True, kw_only=True, eq=False)
class Change:
    """A change of references in progress: the generation that it found, and what else it may be disturbed by."""

    layout: Layout
    mark: str
    previous: str
    opened: str
    others: frozenset[str]
    """The marks of other changes when this one began: the index may lack these, and must be made anew."""

    is_alone: bool
    """Whether none of these was of a process that still runs."""

    is_settled: bool = False
    """Whether the index was brought up to date with it."""

    def settle(self, generation: str) -> bool:
        """Returns True once this is the present generation; False if somebody else changed something meanwhile.

        Raises:
            StoreError: if the disk refuses; then no index is believed.
        """
        if not self.is_alone or read_generation(self.layout) != self.opened:
            return False
        _write(self.layout, generation)
        self.is_settled = _list_marks(self.layout, self.mark) <= self.others
        if not self.is_settled:  # somebody began after the look, and what they opened was replaced
            _write(self.layout, _draw_open())
        for mark in self.others if self.is_settled else ():
            _remove_mark(self.layout.lease_entry(mark))
        return self.is_settled

    def end(self) -> None:
        """Sees to it that no index is believed that somebody made before this change was done. Raises StoreError."""
        mark = self.layout.lease_entry(self.mark)
        if not self.is_settled and is_settled(read_generation(self.layout)):
            _write(self.layout, _draw_open())
        if self.is_settled or self.is_alone:
            _remove_mark(mark)
            return
        with contextlib.suppress(
            OSError
        ):  # under its present name it says more than is so, until this process ends
            replace_name(mark, self.layout.lease_entry(f"{self.mark}{_ENDED}"))


def read_generation(layout: Layout) -> str:
    """Returns the name of the present state of the references, empty where none was ever written. Raises StoreError."""
    return (read_small_file(layout.generation, _LIMIT_BYTES) or b"").decode("ascii", "replace")


def is_settled(generation: str) -> bool:
    """Returns whether this names a state of the references, and not a change of them."""
    return not generation.startswith(_OPEN)


def draw_generation() -> str:
    """Returns a new name for a state of the references."""
    return draw_name(_NAME_BYTES)


def begin_generation(layout: Layout) -> str:
    """Returns a new name for the state of the references; an index of any other is behind from now on."""
    return _write(layout, draw_generation())


@contextmanager
def begin_change(layout: Layout) -> Iterator[Change]:
    """Marks the index as behind, then yields; references may be changed inside.

    Raises:
        StoreError: if the disk refuses.
    """
    path = layout.change_mark()
    ensure_folder(layout.leases)
    operations = current_operations()
    with explain_os_errors("write to", layout.leases):
        operations.close(operations.create(path))
    try:
        change = _open(layout, path.name)
    except BaseException:
        _remove_mark(path)
        raise
    try:
        yield change
    finally:
        change.end()


def _open(layout: Layout, mark: str) -> Change:
    """The generation is opened before others are looked for: who is not seen then opens a later one."""
    previous, opened = read_generation(layout), _write(layout, _draw_open())
    others = _list_marks(layout, mark)
    alone = all(_is_over(layout, name) for name in others)
    return Change(layout=layout, mark=mark, previous=previous, opened=opened, others=others, is_alone=alone)


def _draw_open() -> str:
    return f"{_OPEN}{draw_generation()}"


def _write(layout: Layout, generation: str) -> str:
    write_file(layout.generation, generation.encode("ascii"), temporary=layout.temporary(), replace=True)
    return generation


def _list_marks(layout: Layout, own: str) -> frozenset[str]:
    return frozenset(name for name in names_in(layout.leases) if name.endswith(_MARKS) and name != own)


def _remove_mark(path: Path) -> None:
    with contextlib.suppress(OSError):  # one that stays is gone with the next gc
        current_operations().unlink(path)


def _is_over(layout: Layout, mark: str) -> bool:
    """A process of another machine cannot be asked, and a number may be another process's by now."""
    if mark.endswith(_ENDED) or is_running(mark) is False:
        return True
    with contextlib.suppress(ConceptryError):
        status = look_at(layout.lease_entry(mark))
        return status is None or time.time() - status.st_mtime > LONGEST_SECONDS
    return True  # not put there by us
