"""Two commands at once where locks exclude nobody: the other one runs as a whole at a chosen moment of the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from conceptry.registry.operations import CHANGING_OPERATIONS, READING_OPERATIONS, FileOperations

ALL: Final = CHANGING_OPERATIONS | READING_OPERATIONS


class Meanwhile(FileOperations):
    """Operations without locks, before some of which ``act`` is done: the first that ``is_moment`` likes."""

    def __init__(
        self, is_moment: Callable[[str, Any], bool], act: Callable[[], object], *, times: int = 1
    ) -> None:
        super().__init__()
        self.count = 0
        self.is_done = False
        self._times = times
        self._is_moment, self._act = is_moment, act
        for name in ALL:
            setattr(self, name, self._wrap(name, getattr(super(), name)))
        self.lock = lambda descriptor: True  # type: ignore[method-assign]

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if self._times:
                self.count += 1
                if self._is_moment(name, arguments[0]):
                    self.is_done = True
                    times, self._times = self._times - 1, 0  # what it does itself is not interrupted
                    self._act()
                    self._times = times
            return real(*arguments, **more)

        return call


def at_number(number: int, act: Callable[[], object]) -> Meanwhile:
    """Return operations before the NUMBER-th of which, counted from 1, ``act`` is done."""

    def is_moment(name: str, subject: object) -> bool:
        return operations.count == number

    operations = Meanwhile(is_moment, act)
    return operations


def before(wanted: str, path: Path, act: Callable[[], object], *, times: int = 1) -> Meanwhile:
    """Return operations before the first TIMES of which that are so called and on this path ``act`` is done."""
    return Meanwhile(lambda name, subject: name == wanted and str(subject) == str(path), act, times=times)
