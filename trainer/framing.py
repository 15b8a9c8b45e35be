"""Which part of each picture is trained on, and at which size: squares, or up to three shapes of equal area."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from PIL import Image, ImageOps

from conceptry.trainer.randomness import seed_generator
from conceptry.trainer.settings import Settings

Size = tuple[int, int]
"""Width and height in pixels."""

LONGEST_ASPECT: Final = 2.0
SMALLEST_CROP: Final = 0.8
"""Of the edge of the largest crop."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A part of a picture, the size that it is brought to, and whether it is mirrored."""

    box: tuple[int, int, int, int]
    size: Size
    mirrored: bool = False

    def to_facts(self) -> tuple[int, ...]:
        """Returns all that decides what ``apply`` gives, as numbers."""
        return (*self.box, *self.size, int(self.mirrored))

    def apply(self, image: Image.Image) -> Image.Image:
        """Returns the part, resized and mirrored as it says."""
        part = image.crop(self.box)
        if part.size != self.size:
            part = part.resize(self.size, Image.Resampling.LANCZOS)
        return ImageOps.mirror(part) if self.mirrored else part


def frame_pictures(
    sizes: Sequence[Size], settings: Settings, *, side_pixels: int, step_pixels: int, seed: int
) -> dict[Size, dict[int, list[Frame]]]:
    """Returns for each shape the frames of each picture (by its place in ``sizes``) that is trained in this shape."""
    shapes = choose_shapes(sizes, count=settings.buckets, side_pixels=side_pixels, step_pixels=step_pixels)
    framed: dict[Size, dict[int, list[Frame]]] = {}
    for place, size in enumerate(sizes):
        shape = _find_nearest(size, shapes)
        boxes = [crop_centre(size, shape)]
        generator = seed_generator(seed, "crops", place)
        boxes += [crop_anywhere(size, shape, generator) for _ in range(settings.crops - 1)]
        frames = [Frame(box, shape) for box in boxes]
        if settings.flip:
            frames += [Frame(box, shape, mirrored=True) for box in boxes]
        framed.setdefault(shape, {})[place] = frames
    return framed


def choose_shapes(
    sizes: Sequence[Size], *, count: int, side_pixels: int, step_pixels: int
) -> tuple[Size, ...]:
    """Returns at most ``count`` shapes of about ``side_pixels`` squared that lose least of the pictures."""
    square = (side_pixels, side_pixels)
    if count == 1:
        return (square,)
    candidates = _list_shapes(side_pixels, step_pixels)
    wanted = Counter(_find_nearest(size, candidates) for size in sizes)
    ordered = sorted(wanted, key=lambda shape: (-wanted[shape], abs(shape[0] - shape[1]), shape))
    return tuple(ordered[:count])


def _list_shapes(side_pixels: int, step_pixels: int) -> tuple[Size, ...]:
    shapes = {(side_pixels, side_pixels)}
    longest = int(side_pixels * math.sqrt(LONGEST_ASPECT))
    for width in range(side_pixels, longest + 1, step_pixels):
        height = side_pixels * side_pixels // width // step_pixels * step_pixels
        if height and width / height <= LONGEST_ASPECT:
            shapes |= {(width, height), (height, width)}
    return tuple(sorted(shapes))


def _find_nearest(size: Size, shapes: Sequence[Size]) -> Size:
    def lose(shape: Size) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(shape[0] / shape[1]))

    return min(shapes, key=lambda shape: (lose(shape), shape))


def crop_centre(size: Size, shape: Size) -> tuple[int, int, int, int]:
    """Returns the largest box of the shape's aspect in the middle of a picture."""
    width, height = _fit(size, shape, 1.0)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def crop_anywhere(size: Size, shape: Size, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Returns a box of the shape's aspect, somewhat smaller than the largest, anywhere in a picture."""
    share, across, down = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    width, height = _fit(size, shape, SMALLEST_CROP + (1 - SMALLEST_CROP) * share)
    left, top = round(across * (size[0] - width)), round(down * (size[1] - height))
    return left, top, left + width, top + height


def _fit(size: Size, shape: Size, share: float) -> Size:
    scale = min(size[0] / shape[0], size[1] / shape[1]) * share
    fitted = (round(shape[0] * scale), round(shape[1] * scale))
    return max(1, min(size[0], fitted[0])), max(1, min(size[1], fitted[1]))
