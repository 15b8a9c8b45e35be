"""The weight that the tensors of an adapter's module belong to: how wide it reads, how many dimensions it has."""

from __future__ import annotations

import functools
from typing import Final

from conceptry.errors import InvalidFileError
from conceptry.formats.lora_reading import match_parts
from conceptry.formats.shape_patterns import Shape

Shapes = tuple[tuple[str, Shape], ...]
"""Part -> shape of the tensors of one module."""

_LINEAR: Final = 2
# Parts that have as many dimensions as the weight, and its second size.
_LIKE_WEIGHT: Final = ("down", "diff")


# The modules of one adapter have a few dozen different shapes between them.
@functools.lru_cache(maxsize=4096)
def measure_module(parts: Shapes) -> tuple[int | None, int]:
    """Returns the width of what a module reads, None where its tensors do not tell, and its weight's dimensions."""
    shapes = dict(parts)
    for part in _LIKE_WEIGHT:
        shape = shapes.get(part, ())
        if len(shape) >= _LINEAR:
            return shape[1], len(shape)
    try:
        match, _ = match_parts(shapes)
    except InvalidFileError:
        return None, _LINEAR
    return match.sizes.product(match.form.inputs), _LINEAR + len(match.sizes.kernel or ())
