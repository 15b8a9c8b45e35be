"""Headers as programs write them, taken apart by their quotation marks: the columns of a regular listing, as text.

Writers put the metadata first, each entry's fields in one order, and the entries in the order of their data. Then the
quotes cut the whole listing at once, several times quicker than JSON makes objects of it, and the offsets are running
sums of sizes, which are compared as text and never parsed. What is not written so is left to the thorough reader,
which also has the words for what is wrong.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# At most 18 digits: below 2 ** 63.
_SIZE: Final = r"(0|[1-9][0-9]{0,17})"
_PLACE: Final = re.compile(rf": ?\[{_SIZE}, ?{_SIZE}\]\}}")
_SHAPE: Final = re.compile(r": ?\[([0-9, ]*)\], ?")
_BETWEEN: Final = frozenset({",", ", "})
_WHITE: Final = " \t\n\r"
# What the quotes of an entry cut: its name, and nine pieces after it.
_PIECES: Final = 10
_NAME, _DTYPE, _SHAPE_TEXT, _PLACE_TEXT = 1, 5, 8, 10
_CONSTANT: Final = (
    (2, frozenset({": {", ":{"})),
    (3, frozenset({"dtype"})),
    (4, frozenset({": ", ":"})),
    (6, _BETWEEN),
    (7, frozenset({"shape"})),
    (9, frozenset({"data_offsets"})),
)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the entries of a header say, entry for entry, as written. A name may hold an escape."""

    names: list[str]
    dtypes: list[str]
    shapes: list[str]
    places: list[str]


def cut_listing(text: str, opening: str) -> Columns | None:
    """Returns the columns of ``text``, which is ``opening``, entries between commas, and a brace; None if it is not.

    Every character but those of shapes and places is accounted for: ``read_shape`` and the two of places do the rest.
    """
    pieces = text.split('"')
    first, last = pieces[0], pieces[-1].rstrip(_WHITE)
    if len(pieces) % _PIECES != 1 or first.rstrip(" ") != opening or not last.endswith("}}"):
        return None
    for place, known in _CONSTANT:
        column = pieces[place::_PIECES]
        if not column or column[0] not in known or column.count(column[0]) < len(column):
            return None
    pieces[-1] = last[:-1]
    names, dtypes, shapes, places = (
        pieces[place::_PIECES] for place in (_NAME, _DTYPE, _SHAPE_TEXT, _PLACE_TEXT)
    )
    return Columns(names, dtypes, shapes, places)


def read_shape(text: str) -> list[int]:
    """Returns the sizes of a shape as it is written between its key and the next. Raises ValueError if it is none."""
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is no shape")
    sizes: list[int] = json.loads(f"[{found[1]}]")
    return sizes


def spell_places(ends: Sequence[int], example: str) -> str:
    """Returns the places of tensors that follow each other, as one text, spaced as ``example`` is."""
    opening = ": [" if example.startswith(": ") else ":["
    comma = ", " if ", " in example.partition("]")[0] else ","
    closing = "]}, " if example.endswith(" ") else "]},"
    numbers = ["0", *map(str, ends)]
    places = map(comma.join, itertools.pairwise(numbers))
    return f"{opening}{f'{closing}{opening}'.join(places)}]}}"


def read_places(places: str) -> tuple[list[int], list[int]] | None:
    """Returns the starts and ends that ``places`` lists one after the other; None if it holds anything else."""
    first, *rest = _PLACE.split(places)
    if first or not rest or rest.pop() or not _BETWEEN.issuperset(rest[2::3]):
        return None
    return list(map(int, rest[::3])), list(map(int, rest[1::3]))
