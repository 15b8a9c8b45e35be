"""A second scorer without learned weights: it guards against scoring the taste of the first.

It sees an object as colours and edges: a histogram of colours in a coarse grid, and one of gradient orientations (as in
Dalal and Triggs, CVPR 2005). Only where the objects are comes from the first scorer. Features are compared after the
mean over objects of all classes is taken off, so that what all crops have in common counts for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from conceptry.toybox.networks import crop_objects
from conceptry.toybox.scorer import Pictures, Reading, Scorer, as_pixels

_CELLS: Final = 4
_LEVELS: Final = 4
_ANGLES: Final = 8
_BACKDROP: Final = 24
Values = NDArray[np.float64]


class SecondScorer:
    """Compares objects by colours and edges."""

    def __init__(self, finder: Scorer) -> None:
        self._finder = finder
        self._mean = _mean_features(finder)

    def read(self, pictures: Pictures, found: Sequence[Reading] | None = None) -> list[Values]:
        """Returns for each picture the unit features (objects, d) of what the finder found in it, or found before."""
        pixels, readings = as_pixels(pictures), self._finder.read(pictures) if found is None else found
        rows = [row for row, reading in enumerate(readings) for _ in reading.objects]
        boxes = [(one.x, one.y, one.half) for reading in readings for one in reading.objects]
        crops = crop_objects(pixels[rows], torch.tensor(boxes, dtype=torch.float32)).numpy()
        features = _centre([describe_crop(crop) for crop in crops], self._mean)
        return [
            features[[place for place, row in enumerate(rows) if row == one]] for one in range(len(readings))
        ]

    def prototype(self, pictures: Pictures) -> Values:
        """Returns the unit mean of the surest object's features."""
        mean = np.mean([rows[0] for rows in self.read(pictures)], axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def identity(
        self, pictures: Pictures, prototype: Values, found: Sequence[Reading] | None = None
    ) -> Values:
        """Returns for each picture the best object's cosine with ``prototype``."""
        return np.asarray([float((rows @ prototype).max()) for rows in self.read(pictures, found)])


def describe_crop(crop: NDArray[np.float32]) -> Values:
    """Returns features of a crop (3, h, w) in [-1, 1]: colours of each cell, and orientations of its edges."""
    side = crop.shape[-1] // _CELLS
    parts: list[Values] = []
    gray = crop.mean(axis=0)
    down, across = np.gradient(gray)
    strength, angle = np.hypot(down, across), np.mod(np.arctan2(down, across), np.pi)
    bins = np.minimum((angle / np.pi * _ANGLES).astype(int), _ANGLES - 1)
    levels = np.clip(((crop + 1) / 2 * _LEVELS).astype(int), 0, _LEVELS - 1)
    colors = (levels[0] * _LEVELS + levels[1]) * _LEVELS + levels[2]
    for line in range(_CELLS):
        for column in range(_CELLS):
            cell = (slice(line * side, (line + 1) * side), slice(column * side, (column + 1) * side))
            edges = np.bincount(bins[cell].ravel(), strength[cell].ravel(), _ANGLES)
            shades = np.bincount(colors[cell].ravel(), minlength=_LEVELS**3).astype(np.float64)
            parts += [edges / (np.linalg.norm(edges) + 1e-3), np.sqrt(shades / shades.sum())]
    return np.concatenate(parts)


def _centre(rows: Sequence[Values], mean: Values) -> Values:
    moved = np.asarray(rows) - mean
    return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9))


@cache
def _mean_features(finder: Scorer) -> Values:
    """The mean over objects of all classes, from renders that no subject of the benchmark is among."""
    from conceptry.toybox.examples import instance_scenes
    from conceptry.toybox.render import render
    from conceptry.toybox.sampling import make_instance
    from conceptry.toybox.vocabulary import CLASSES

    scenes = [
        instance_scenes(make_instance(CLASSES[number % len(CLASSES)], 700_000 + number), 1)[0]
        for number in range(_BACKDROP)
    ]
    pictures = render(scenes)
    readings = finder.read(pictures)
    boxes = torch.tensor([(one.objects[0].x, one.objects[0].y, one.objects[0].half) for one in readings])
    crops = crop_objects(as_pixels(pictures), boxes).numpy()
    return np.asarray(np.mean([describe_crop(crop) for crop in crops], axis=0))
