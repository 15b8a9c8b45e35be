"""What stands in for a weight while concepts are in it: the base's own bytes kept aside, a sum shown in their place.

The sum is always made anew from the base's own bytes, so that a strength may change at any time and nothing is ever
subtracted. In the processor's memory the two exchange places, and going back moves no byte. On an accelerator the sum
is written over the weight and the base's bytes wait in the host's memory: there is never a second copy on the device.

A weight whose sum could not be made (no memory left, or somebody pressed Ctrl-C) is remembered: what is wanted of it is
shown when anything is shown the next time, so that taking a concept out gives the base's own bytes back all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from conceptry.composer.undoing import run_all


class Contribution(ABC):
    """What one concept adds to one weight, for any strength."""

    @abstractmethod
    def add_to(self, total: Tensor, original: Tensor, strength: float) -> None:
        """Adds to ``total`` in place; both are at least float32, ``original`` are the base's own values."""

    def replace(self, original: Tensor) -> Tensor | None:
        """Returns what the weight is at strength 1 with nothing beside; None where it is a sum."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Replacement(Contribution):
    """New values: ``strength * (value - original)``; alone at strength 1 they are shown bit for bit."""

    value: Tensor

    def add_to(self, total: Tensor, original: Tensor, strength: float) -> None:
        """Adds the difference to the base's own values."""
        total.add_(self.value.to(total) - original, alpha=strength)

    def replace(self, original: Tensor) -> Tensor:
        """Returns the new values themselves."""
        return self.value.to(original)


@dataclass(frozen=True, slots=True, eq=False)
class Addition(Contribution):
    """Values of the weight's own shape."""

    value: Tensor

    def add_to(self, total: Tensor, original: Tensor, strength: float) -> None:
        """Adds them."""
        total.add_(self.value.to(total).reshape(total.shape), alpha=strength)


@dataclass(frozen=True, slots=True, eq=False)
class LowRankProduct(Contribution):
    """``scale * up @ down``, a kernel flattened into the columns."""

    up: Tensor
    down: Tensor
    scale: float

    def add_to(self, total: Tensor, original: Tensor, strength: float) -> None:
        """Adds the product; a contiguous weight is read and written once."""
        up, down = self.up.flatten(1).to(total), self.down.flatten(1).to(total)
        alpha = strength * self.scale
        if total.is_contiguous():
            total.view(total.shape[0], -1).addmm_(up, down, alpha=alpha)
        else:
            total.add_((up @ down).reshape(total.shape), alpha=alpha)


@dataclass(slots=True, eq=False)
class StandIn:
    """The base's own bytes of one weight, and what each patch adds to them."""

    original: Tensor
    wanted: dict[object, tuple[float, Contribution]] = field(default_factory=dict)
    """Strength and contribution by a mark of the patch, not the patch: it would keep the whole component alive."""

    shown: Tensor | None = None
    """Memory of our own that the weight points to meanwhile."""

    def show(self, target: Tensor) -> None:
        """Lets ``target`` hold what is wanted of it: the base's own bytes where that is nothing."""
        rows = [row for row in self.wanted.values() if row[0] != 0]
        moved = self.original.dtype != target.dtype
        if _is_on_host(target) and _is_on_host(self.original) and not moved:
            target.data = self._fill(rows) if rows else self.original
        elif moved:
            # The pipeline was converted meanwhile: it keeps its precision, we keep the base's own.
            target.data = _add_up(self.original.to(device=target.device, dtype=target.dtype), rows)
        else:
            target.data.copy_(self.original, non_blocking=True)
            _add_in_place(target.data, rows)

    def _fill(self, rows: list[tuple[float, Contribution]]) -> Tensor:
        if self.shown is None:
            self.shown = torch.empty_like(self.original)
        single = rows[0][1].replace(self.original) if len(rows) == 1 and rows[0][0] == 1.0 else None
        if single is not None:
            return single
        self.shown.copy_(self.original)
        _add_in_place(self.shown, rows, self.original)
        return self.shown


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _add_up(original: Tensor, rows: list[tuple[float, Contribution]]) -> Tensor:
    total = original.clone()
    _add_in_place(total, rows)
    return total


@torch.no_grad()
def _add_in_place(
    total: Tensor, rows: list[tuple[float, Contribution]], original: Tensor | None = None
) -> None:
    """Adds to the base's values that ``total`` holds; half precision is left and entered once."""
    single = rows[0][1].replace(total) if len(rows) == 1 and rows[0][0] == 1.0 else None
    if single is not None:
        total.copy_(single)
        return
    wide = total.dtype in (torch.float32, torch.float64)
    if not wide:
        original = total.float()
    elif original is None:
        original = total.clone() if _needs_original(rows) else total
    sums = total if wide else original.clone()
    for strength, contribution in rows:
        contribution.add_to(sums, original, strength)
    if not wide:
        total.copy_(sums)


def _needs_original(rows: list[tuple[float, Contribution]]) -> bool:
    return any(isinstance(contribution, Replacement) for _, contribution in rows)


_MADE: Final = "_conceptry_made"

# By the tensor itself, so that patches of several attachments to one pipeline know of each other.
_STAND_INS: Final[MutableMapping[Tensor, StandIn]] = WeakTensorKeyDictionary()


class _Waiting:
    """Weights that do not show yet what is wanted of them, by identity, and how many blocks of ``together`` run."""

    targets: Final[dict[int, Tensor]] = {}
    depth: int = 0


def want(target: Tensor, mark: object, strength: float, contribution: Contribution) -> None:
    """Adds or changes what the patch of ``mark`` wants of ``target``, and shows it."""
    _Waiting.targets[id(target)] = target  # before anything is changed, which an exception may cut short
    found = _STAND_INS.get(target)
    if found is None:
        data = target.data
        aside = data if _is_on_host(data) else _copy_to_host(data)
        found = _STAND_INS[target] = StandIn(aside)
    found.wanted[mark] = (strength, contribution)
    settle()


def come_last(target: Tensor, mark: object) -> None:
    """Lets what the patch of ``mark`` wants be added after all others: sums are rounded in the order of making."""
    found = _STAND_INS.get(target)
    if found is None or mark not in found.wanted or next(reversed(found.wanted)) is mark:
        return
    _Waiting.targets[id(target)] = target
    others = {other: row for other, row in found.wanted.items() if other is not mark}
    found.wanted = {**others, mark: found.wanted[mark]}
    settle()


def forget(target: Tensor, mark: object) -> None:
    """Takes back what the patch of ``mark`` wanted; the last one gives the base's own bytes back."""
    found = _STAND_INS.get(target)
    if found is not None:
        _Waiting.targets[id(target)] = target
        found.wanted.pop(mark, None)
        settle()


def read_original(tensor: Tensor) -> Tensor:
    """Returns the base's own values of a parameter or buffer, also while patches stand in for it."""
    found = _STAND_INS.get(tensor)
    return tensor.data if found is None else found.original


def mark_made(tensor: Tensor) -> None:
    """Lets ``is_made`` say that ``tensor`` is none of the base's, but made for what concepts add."""
    setattr(tensor, _MADE, True)


def is_made(tensor: Tensor) -> bool:
    """Returns whether the base lacks ``tensor``: it goes with the last concept that wants anything of it."""
    return hasattr(tensor, _MADE)


def is_wanted(tensor: Tensor) -> bool:
    """Returns whether some patch wants anything of ``tensor``."""
    found = _STAND_INS.get(tensor)
    return found is not None and bool(found.wanted)


@contextmanager
def together() -> Iterator[None]:
    """Shows what changes while the block runs once, at its end, however often it changes.

    One weight that cannot be shown does not keep the others from it; the first error is raised after all of them.
    """
    before = _Waiting.depth
    try:
        _Waiting.depth = before + 1
        yield
    finally:
        _Waiting.depth = before
        settle()


def end_all() -> None:
    """Ends the blocks of ``together`` that an exception cut short at their very end; to be called outside of any."""
    _Waiting.depth = 0


def settle() -> None:
    """Shows what is wanted of every weight that does not show it yet; inside of ``together`` that is its end's work."""
    if _Waiting.depth:
        return
    run_all([partial(_show, target) for target in _Waiting.targets.values()])


def _show(target: Tensor) -> None:
    found = _STAND_INS.get(target)
    if found is not None:
        with torch.no_grad():
            found.show(target)
        if not found.wanted:
            del _STAND_INS[target]
    del _Waiting.targets[id(target)]


def _copy_to_host(data: Tensor) -> Tensor:
    host = torch.empty_like(data, device="cpu", pin_memory=data.device.type == "cuda")
    return host.copy_(data)
