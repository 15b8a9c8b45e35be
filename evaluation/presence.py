"""Who is in a picture of several concepts: which object is which member, who is missing, who was mixed up.

An object is a member's if its likeness is one that few other things of the member's class reach
(identity_thresholds.py) and no other member is nearer. A global score is blind to this (methods.md 0.8): two members
merged into one thing resemble both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.scorer import Detection, Reading

_SIDES: Final[Mapping[str, Callable[[Detection, Detection], bool]]] = MappingProxyType(
    {
        "left": lambda one, other: one.x < other.x,
        "right": lambda one, other: one.x > other.x,
        "above": lambda one, other: one.y < other.y,
        "below": lambda one, other: one.y > other.y,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One member as the scorer knows it."""

    prototype: NDArray[np.float32]
    threshold: float
    """From which likeness on an object is taken for it."""

    kind: str
    """Its class."""

    color: str
    """Its main colour as the scorer reads it on its references."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What one picture shows of its members."""

    found: tuple[Detection | None, ...]
    """The object that is each member."""

    extra: int
    """Further objects that are a member that is there already."""

    swaps: int
    """Objects of one member's class, not that member, in the colour of another."""

    in_place: bool | None
    """Whether the first stands where it was asked to from the second; None where none was asked or one is missing."""

    @property
    def is_joint(self) -> bool:
        """Whether each member is there, once."""
        return None not in self.found and self.extra == 0


def find_members(reading: Reading, members: Sequence[Identity], side: str | None = None) -> Presence:
    """Returns who is in a picture. ``side`` is where the first was asked to stand from the second."""
    table = np.asarray(
        [[float(one.embedding @ member.prototype) for member in members] for one in reading.objects]
    ).reshape(len(reading.objects), len(members))
    found: list[Detection | None] = [None] * len(members)
    extra = swaps = 0
    for row in np.argsort(-table.max(axis=1)) if table.size else ():
        place = int(table[row].argmax())
        one = reading.objects[int(row)]
        if table[row, place] < members[place].threshold:
            swaps += _is_swapped(one, members)
        elif found[place] is None:
            found[place] = one
        else:
            extra += 1
    return Presence(found=tuple(found), extra=extra, swaps=swaps, in_place=_judge_side(found, side))


def _is_swapped(one: Detection, members: Sequence[Identity]) -> bool:
    owners = [member for member in members if member.kind == one.kind]
    others = [member for member in members if member.kind != one.kind]
    return any(owner.color != one.color for owner in owners) and any(
        other.color == one.color for other in others
    )


def _judge_side(found: Sequence[Detection | None], side: str | None) -> bool | None:
    if side is None or len(found) < 2 or found[0] is None or found[1] is None:
        return None
    return _SIDES[side](found[0], found[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class JointScores:
    """Shares over pictures of one group in one way."""

    pictures: int
    joint: float
    recall: tuple[float, ...]
    """Of each member."""

    swaps: float
    duplicates: float
    region: float | None
    leaks: float | None
    """Share of pictures in which a member appears although none was called."""


def score_presences(presences: Sequence[Presence], uncalled: Sequence[Presence]) -> JointScores:
    """Returns the shares over pictures that called all members, and over pictures that called none."""
    count = len(presences[0].found) if presences else 0
    placed = [one.in_place for one in presences if one.in_place is not None]
    return JointScores(
        pictures=len(presences),
        joint=_share([one.is_joint for one in presences]),
        recall=tuple(_share([one.found[place] is not None for one in presences]) for place in range(count)),
        swaps=_share([one.swaps > 0 for one in presences]),
        duplicates=_share([one.extra > 0 for one in presences]),
        region=_share(placed) if placed else None,
        leaks=_share([any(found is not None for found in one.found) for one in uncalled])
        if uncalled
        else None,
    )


def _share(answers: Sequence[bool]) -> float:
    return float(np.mean(answers)) if answers else float("nan")
