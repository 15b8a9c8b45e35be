"""The weight that the tensors of an adapter's module belong to: how wide it reads, how many dimensions it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Shape = tuple[int, ...]
_LINEAR: Final = 2

# The parts of a module that show how many inputs its weight has: the product of the second sizes of one row's parts.
# A Kronecker product has the columns of both of its factors (arXiv 2309.14859, LoKr).
_WIDTHS: Final[tuple[tuple[str, ...], ...]] = (
    ("down",),
    ("factor 1b",),
    ("factor 1b", "factor 2b"),
)


def measure_module(shapes: Mapping[str, Shape]) -> tuple[int | None, int]:
    """Returns the width of what a module reads, None where its tensors do not tell, and its weight's dimensions."""
    for parts in _WIDTHS:
        found = [shapes.get(part, ()) for part in parts]
        if all(len(shape) >= _LINEAR for shape in found):
            return found[0][1], len(found[0])
    return None, _LINEAR
