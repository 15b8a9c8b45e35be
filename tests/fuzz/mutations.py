"""Mutations of bytes: the same number gives the same mutation, so that any execution can be repeated alone."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

MAX_BYTES: Final = 4096
_INTERESTING: Final = (0, 1, 2, 8, 0x7F, 0x80, 0xFE, 0xFF)
_NUMBERS: Final = tuple(
    value.to_bytes(size, "little")
    for size in (2, 4, 8)
    for value in (0, 1, 4, 255, (1 << (8 * size - 1)) - 1, 1 << (8 * size - 1), (1 << (8 * size)) - 1)
)


def mutate(data: bytes, others: Sequence[bytes], words: Sequence[bytes], random: Random) -> bytes:
    """Returns ``data`` after one to eight small changes; ``others`` are spliced in, ``words`` inserted."""
    found = bytearray(data[: 4 * MAX_BYTES])
    for _ in range(1 + int(random.random() ** 2 * 8)):
        _change(found, others, words, random)
    return bytes(found[: 4 * MAX_BYTES])


def _change(found: bytearray, others: Sequence[bytes], words: Sequence[bytes], random: Random) -> None:
    at = random.randrange(len(found) + 1)
    size = min(1 + int(random.random() ** 4 * 64), len(found) - at)
    kind = random.randrange(8)
    if kind == 0 and at < len(found):
        found[at] ^= 1 << random.randrange(8)
    elif kind == 1 and at < len(found):
        found[at] = random.choice(_INTERESTING)
    elif kind == 2:
        del found[at : at + size]
    elif kind == 3:
        found[at:at] = found[at : at + size] * random.choice((1, 1, 2, 16))
    elif kind == 4:
        found[at:at] = random.choice(words)
    elif kind == 5:
        word = random.choice(words)
        found[at : at + len(word)] = word
    elif kind == 6:
        number = random.choice(_NUMBERS)
        found[at : at + len(number)] = number
    else:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        found[at : at + size] = other[start : start + random.randrange(1, 256)]
