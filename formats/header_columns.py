"""Headers as programs write them, taken apart in one pass: the columns of a regular listing, as text.

Writers put the metadata first and each entry's fields in one order, so that one pattern cuts the whole listing, several
times quicker than JSON makes objects of it. What is not written so is left to the thorough reader, which also has the
words for what is wrong.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# At most 18 digits: below 2 ** 63. A name holds neither quotes nor escapes, so that it is what stands there.
_SIZE: Final = r"(0|[1-9][0-9]{0,17})"
_ENTRY: Final = re.compile(
    r'"([^"\\]+)": ?\{"dtype": ?"([A-Z0-9_]+)", ?"shape": ?\[([0-9, ]*)\], ?'
    rf'"data_offsets": ?\[{_SIZE}, ?{_SIZE}\]\}}'
)
_FIELDS: Final = 5
_BETWEEN: Final = frozenset({",", ", "})
_WHITE: Final = " \t\n\r"


class Columns(NamedTuple):
    """What the entries of a header say, entry for entry; ``shapes`` are what stands between the brackets."""

    names: list[str]
    dtypes: list[str]
    shapes: list[str]
    starts: list[int]
    ends: list[int]


def cut_listing(text: str, opening: str) -> Columns | None:
    """Returns the columns of ``text``, which is ``opening``, entries between commas, and a brace; None if it is not.

    Every character is accounted for: what stands between two entries is a comma and at most one space.
    """
    pieces = _ENTRY.split(text)
    first, *between, last = pieces[:: _FIELDS + 1] if len(pieces) > 1 else ("", text)
    if first.rstrip(" ") != opening or last.rstrip(_WHITE) != "}" or not _BETWEEN.issuperset(between):
        return None
    names, dtypes, shapes, starts, ends = (pieces[field :: _FIELDS + 1] for field in range(1, _FIELDS + 1))
    return Columns(names, dtypes, shapes, list(map(int, starts)), list(map(int, ends)))
