"""Signed distances of simple shapes on grids, negative inside; every argument broadcasts over the batch.

``u`` and ``v`` are (n, size, size) grids of local coordinates, in which an object spans about [-1, 1], ``v`` down.
Parameters are numbers or arrays of shape (n, 1, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 throughout: bare numbers do not widen it
Number = float | Array
NOWHERE = np.float32(99.0)


def circle(u: Array, v: Array, x: Number, y: Number, radius: Number) -> Array:
    """Distance to a circle around (x, y)."""
    return np.hypot(u - x, v - y) - radius


def ellipse(u: Array, v: Array, center: tuple[Number, Number], radii: tuple[Number, Number]) -> Array:
    """First-order distance to an axis-parallel ellipse: its implicit value over the length of its gradient."""
    du, dv = (u - center[0]) / radii[0], (v - center[1]) / radii[1]
    value = np.hypot(du, dv)
    gradient = np.hypot(du / radii[0], dv / radii[1])
    return value * (value - 1.0) / np.maximum(gradient, 1e-3)


def box(
    u: Array, v: Array, center: tuple[Number, Number], half: tuple[Number, Number], radius: Number = 0.0
) -> Array:
    """Distance to an axis-parallel rectangle with rounded corners."""
    du = np.abs(u - center[0]) - half[0] + radius
    dv = np.abs(v - center[1]) - half[1] + radius
    outside = np.hypot(np.maximum(du, 0.0), np.maximum(dv, 0.0))
    return outside + np.minimum(np.maximum(du, dv), 0.0) - radius


def capsule(
    u: Array, v: Array, start: tuple[Number, Number], end: tuple[Number, Number], radius: Number
) -> Array:
    """Distance to a thick line from ``start`` to ``end``."""
    du, dv = end[0] - start[0], end[1] - start[1]
    along = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv), 0.0, 1.0)
    return np.hypot(u - start[0] - along * du, v - start[1] - along * dv) - radius


def polygon(u: Array, v: Array, corners: Sequence[tuple[Number, Number]]) -> Array:
    """Distance to a convex polygon, its corners named clockwise as seen on the picture; mitred outside corners."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = np.asarray(np.hypot(x1 - x0, y1 - y0), np.float32)
        sides.append(((u - x0) * (y1 - y0) - (v - y0) * (x1 - x0)) / length)
    return reduce(np.maximum, sides)


def ring(distance: Array, half_width: Number) -> Array:
    """Distance to the band of ``half_width`` on both sides of a shape's edge."""
    return np.abs(distance) - half_width


def fold(u: Array, v: Array, count: Number) -> tuple[Array, Array]:
    """Coordinates along and across the nearest of ``count`` equal spokes, the first pointing up."""
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    sector = 2.0 * np.pi / count
    angle = angle - sector * np.round(angle / sector)
    return radius * np.cos(angle), radius * np.sin(angle)


def star(u: Array, v: Array, count: Number, outer: Number, inner: Number) -> Array:
    """Distance to a star of ``count`` points with the given outer and inner radius."""
    along, across = fold(u, v, count)
    half = np.pi / count
    x1, y1 = inner * np.cos(half), inner * np.sin(half)
    length = np.hypot(x1 - outer, y1)
    return ((along - outer) * y1 - np.abs(across) * (x1 - outer)) / length


def only(distance: Array, chosen: NDArray[np.bool_]) -> Array:
    """``distance`` where ``chosen`` (shape (n, 1, 1)) holds, nowhere else."""
    return np.where(chosen, distance, NOWHERE)


def union(first: Array, *others: Array) -> Array:
    """Distance to whatever is nearest."""
    for other in others:
        first = np.minimum(first, other)
    return first
