"""Shapes of tensors that belong together, read against patterns such as ``r i *k``: every letter is one size.

A letter has the same size wherever it occurs. ``*k`` is the kernel: the same sizes wherever it occurs. ``*1`` is as
many ones as the kernel has sizes, ``*u`` any number of ones, ``*w`` anything. A number is that number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conceptry.errors import InvalidFileError

Shape = tuple[int, ...]

_WORDS: Final[Mapping[str, str]] = {
    "r": "ranks",
    "o": "numbers of outputs",
    "i": "numbers of inputs",
    "n": "numbers of inputs",
    "b": "block sizes",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of each letter, and the kernel where a pattern has one that is not only ones."""

    values: Mapping[str, int]
    kernel: Shape | None = None

    def product(self, letters: str) -> int | None:
        """Returns the product of the sizes of ``letters``, None where there are none or one is not known."""
        sizes = [self.values.get(letter) for letter in letters.split()]
        if not sizes or None in sizes:
            return None
        return math.prod(size for size in sizes if size is not None)


def match_shapes(patterns: Mapping[str, str], shapes: Mapping[str, Shape], *, outputs: str = "o") -> Sizes:
    """Returns the sizes for which every pattern is the shape of its part.

    Args:
        patterns: part -> pattern.
        shapes: part -> shape, of the same parts.
        outputs: letters whose product is ``o`` where no pattern of the weight itself says ``o``.

    Raises:
        InvalidFileError: at the part that does not fit, with both shapes.
    """
    matcher = _Matcher(shapes)
    for part, pattern in patterns.items():
        matcher.bind(part, pattern)
    product = Sizes(matcher.values).product(outputs)
    known = matcher.values.get("o")
    if None not in (product, known) and product != known:
        part = matcher.source["o"]
        raise InvalidFileError(
            f"its shape {list(shapes[part])} does not fit a weight with {product} outputs", where=part
        )
    return Sizes(matcher.values, matcher.kernel)


def has_sizes(pattern: str, shape: Shape) -> bool:
    """Returns whether ``shape`` has as many sizes as ``pattern`` asks for."""
    letters = pattern.split()
    open_end = bool(letters) and letters[-1].startswith("*")
    return len(shape) >= len(letters) - 1 if open_end else len(shape) == len(letters)


class _Matcher:
    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self.values: dict[str, int] = {}
        self.source: dict[str, str] = {}
        self.kernel: Shape | None = None
        self._ones: dict[str, int] = {}

    def bind(self, part: str, pattern: str) -> None:
        shape = self.shapes[part]
        letters = pattern.split()
        star = letters.pop() if letters and letters[-1].startswith("*") else ""
        head, tail = shape[: len(letters)], shape[len(letters) :]
        if len(head) < len(letters) or (tail and not star):
            raise self._refuse(part, f"its shape {list(shape)} has {len(shape)} sizes")
        for letter, size in zip(letters, head, strict=True):
            self._bind_letter(part, letter, size)
        if star in ("*1", "*k"):
            self._bind_tail(part, star, tail)
        elif star == "*u" and any(size != 1 for size in tail):
            raise self._refuse(part, f"its shape {list(shape)} is more than one row")

    def _bind_letter(self, part: str, letter: str, size: int) -> None:
        if size < 1:
            raise self._refuse(part, f"its shape {list(self.shapes[part])} holds nothing")
        if letter.isdigit():
            if size != int(letter):
                raise self._refuse(part, f"its shape is {list(self.shapes[part])}")
            return
        if self.values.setdefault(letter, size) != size:
            other = self.source[letter]
            words = _WORDS.get(letter, "sizes")
            raise InvalidFileError(
                f"the {words} of {list(self.shapes[part])} and {list(self.shapes[other])} ({other}) differ",
                where=part,
            )
        self.source.setdefault(letter, part)

    def _bind_tail(self, part: str, star: str, tail: Shape) -> None:
        # Flattened factors leave the kernel to the weight itself, so only forms with cores or 4-D factors bind it.
        for other, length in self._ones.items():
            if length != len(tail):
                raise InvalidFileError(
                    f"factors {list(self.shapes[other])} and {list(self.shapes[part])} are of no linear layer "
                    "or convolution",
                    where=part,
                )
        self._ones[part] = len(tail)
        if star == "*1" and any(size != 1 for size in tail):
            raise self._refuse(
                part, f"its shape {list(self.shapes[part])} has a kernel where it can have none"
            )
        if star == "*k":
            if any(size < 1 for size in tail):
                raise self._refuse(part, f"its shape {list(self.shapes[part])} holds nothing")
            if self.kernel is None:
                self.kernel = tail
            elif self.kernel != tail:
                raise self._refuse(part, f"its kernel {list(tail)} differs from {list(self.kernel)}")

    def _refuse(self, part: str, why: str) -> InvalidFileError:
        return InvalidFileError(f"{why}, which does not fit its module", where=part)
