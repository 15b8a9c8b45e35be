"""The sixteen backgrounds: pictures that differ in coarse colour layout, with small differences by seed."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import numpy as np

from conceptry.toybox.shapes import Array, box, circle, ellipse, polygon

_Rows = tuple[Array, Array, Array]


def _color(*values: float) -> Array:
    return np.asarray(values, np.float32)


def _cover(distance: Array, size: int) -> Array:
    return np.clip(0.5 - distance * size, 0.0, 1.0)[..., None]


def _over(image: Array, distance: Array, color: Array) -> Array:
    return np.asarray(image + _cover(distance, image.shape[1]) * (color - image))


def _fade(v: Array, top: Array, bottom: Array) -> Array:
    return np.asarray(top + np.clip(v, 0.0, 1.0)[..., None] * (bottom - top))


def _beach(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v * 2.5, _color(0.45, 0.78, 0.98), _color(0.75, 0.92, 1.0))
    image = _over(image, 0.38 + 0.04 * k[0] - v, _color(0.10, 0.50, 0.80))
    shore = 0.62 + 0.05 * k[1] + 0.025 * np.sin(6.3 * (u + k[2]))
    image = _over(image, shore - 0.045 - v, _color(0.92, 0.97, 0.98))
    return _over(image, shore - v, _color(0.95, 0.84, 0.58))


def _forest(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v, _color(0.05, 0.26, 0.12), _color(0.12, 0.38, 0.16))
    shifted = u + 0.25 * k[0]
    trunk = np.abs(shifted - 0.25 * np.round(shifted / 0.25)) - 0.045
    image = _over(image, trunk, _color(0.30, 0.19, 0.10))
    leaves = v - 0.16 - 0.04 * np.sin(19.0 * (u + k[1]))
    image = _over(image, leaves, _color(0.10, 0.42, 0.15))
    return _over(image, 0.80 + 0.03 * k[2] - v, _color(0.20, 0.33, 0.10))


def _night(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v, _color(0.04, 0.06, 0.24), _color(0.10, 0.16, 0.42))
    x, y = 0.80 + 0.06 * k[0], 0.18 + 0.04 * k[1]
    image = _over(image, circle(u, v, x, y, 0.12), _color(0.98, 0.95, 0.72))
    for star_x, star_y in ((0.12, 0.12), (0.33, 0.24), (0.52, 0.08), (0.10, 0.45), (0.92, 0.50)):
        image = _over(image, circle(u, v, star_x + 0.03 * k[2], star_y, 0.028), _color(0.95, 0.95, 0.85))
    return _over(image, 0.82 + 0.05 * np.sin(5.0 * u + 6.0 * k[2]) - v, _color(0.03, 0.08, 0.12))


def _snow(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v * 1.6, _color(0.62, 0.74, 0.86), _color(0.82, 0.88, 0.94))
    image = _over(image, 0.60 + 0.06 * np.sin(5.0 * u + 6.0 * k[0]) - v, _color(0.88, 0.93, 0.98))
    image = _over(image, 0.76 + 0.05 * np.sin(-4.0 * u + 6.0 * k[1]) - v, _color(0.98, 0.99, 1.0))
    cell_u, cell_v = u + k[2], v + k[0]
    row = np.round(cell_v / 0.2)
    cell_u = cell_u + 0.11 * (row % 2)
    flake = circle(cell_u - 0.22 * np.round(cell_u / 0.22), cell_v - 0.2 * row, 0.0, 0.0, 0.03)
    return _over(image, flake, _color(1.0, 1.0, 1.0))


def _desert(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v * 1.8, _color(0.98, 0.88, 0.62), _color(1.0, 0.95, 0.80))
    image = _over(image, circle(u, v, 0.18 + 0.05 * k[0], 0.17, 0.11), _color(1.0, 0.70, 0.20))
    image = _over(image, 0.50 + 0.09 * np.sin(5.5 * u + 6.0 * k[1]) - v, _color(0.90, 0.62, 0.30))
    return _over(image, 0.72 + 0.08 * np.sin(-4.5 * u + 6.0 * k[2]) - v, _color(0.80, 0.48, 0.20))


def _stage(u: Array, v: Array, k: Array) -> Array:
    folds = 0.5 + 0.5 * np.cos(2.0 * np.pi * (u + 0.16 * k[0]) / 0.16)
    image = _color(0.42, 0.02, 0.08) + folds[..., None] * _color(0.30, 0.04, 0.06)
    image = _over(image, 0.78 + 0.03 * k[1] - v, _color(0.72, 0.50, 0.28))
    light = ellipse(u, v, (0.5, 0.90), (0.46, 0.10))
    return _over(image, light, _color(0.90, 0.70, 0.42))


def _ocean(u: Array, v: Array, k: Array) -> Array:
    wave = np.sin(2.0 * np.pi * ((v + 0.03 * np.sin(9.0 * u + 6.0 * k[0])) / 0.17 + k[1]))
    image = _fade(v, _color(0.10, 0.60, 0.85), _color(0.02, 0.22, 0.55))
    return np.asarray(image + (0.08 * wave)[..., None] * _color(0.7, 1.0, 1.0))


def _sunset(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v * 1.5, _color(0.42, 0.16, 0.50), _color(1.0, 0.55, 0.20))
    image = _over(image, circle(u, v, 0.5 + 0.25 * (k[0] - 0.5), 0.60, 0.22), _color(1.0, 0.88, 0.35))
    return _over(image, 0.68 + 0.04 * k[1] - v, _color(0.35, 0.10, 0.25))


def _city(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v, _color(0.70, 0.80, 0.88), _color(0.86, 0.88, 0.88))
    heights = (0.20, 0.38, 0.12, 0.30, 0.18)
    for index, height in enumerate(heights):
        x, shade = 0.1 + 0.2 * index, 0.34 + 0.06 * (index % 2)
        top = height + 0.12 * (k[index % 3] - 0.5)
        image = _over(
            image, box(u, v, (x, 0.5 * (top + 1.2)), (0.09, 0.5 * (1.2 - top))), _color(shade, shade, 0.5)
        )
        image = _over(image, box(u, v, (x, top + 0.13), (0.035, 0.04)), _color(0.95, 0.88, 0.50))
    return _over(image, 0.88 - v, _color(0.26, 0.26, 0.28))


def _room(u: Array, v: Array, k: Array) -> Array:
    image = np.broadcast_to(_color(0.96, 0.88, 0.74), (*v.shape, 3)).astype(np.float32)
    x = 0.22 + 0.05 * k[0]
    image = _over(image, box(u, v, (x, 0.24), (0.17, 0.18)), _color(0.98, 0.98, 0.96))
    image = _over(image, box(u, v, (x, 0.24), (0.12, 0.13)), _color(0.50, 0.76, 0.95))
    image = _over(image, box(u, v, (0.84, 0.30), (0.10, 0.12 + 0.03 * k[1])), _color(0.35, 0.55, 0.45))
    image = _over(image, 0.68 + 0.04 * k[2] - v, _color(0.98, 0.97, 0.94))
    return _over(image, 0.73 + 0.04 * k[2] - v, _color(0.58, 0.36, 0.20))


def _tiles(u: Array, v: Array, k: Array) -> Array:
    period = 0.19
    wave_u = np.abs(((u + k[0]) / period) % 2.0 - 1.0) - 0.5
    wave_v = np.abs(((v + k[1]) / period) % 2.0 - 1.0) - 0.5
    sign = np.clip(wave_u * period * 64, -0.5, 0.5) * np.clip(wave_v * period * 64, -0.5, 0.5) * 4.0
    mask = (0.5 + 0.5 * sign)[..., None]
    return np.asarray(_color(0.90, 0.91, 0.94) + mask * (_color(0.40, 0.52, 0.62) - _color(0.90, 0.91, 0.94)))


def _cave(u: Array, v: Array, k: Array) -> Array:
    image = np.broadcast_to(_color(0.15, 0.11, 0.10), (*v.shape, 3)).astype(np.float32)
    x = 0.5 + 0.1 * (k[0] - 0.5)
    image = _over(image, ellipse(u, v, (x, 0.55), (0.44, 0.46)), _color(0.28, 0.20, 0.16))
    image = _over(image, ellipse(u, v, (x, 0.58), (0.33, 0.36)), _color(0.46, 0.34, 0.26))
    for tooth in (0.2, 0.5, 0.8):
        tip = 0.22 + 0.06 * k[1]
        shape = polygon(u, v, [(tooth - 0.09, -0.02), (tooth + 0.09, -0.02), (tooth, tip)])
        image = _over(image, shape, _color(0.10, 0.07, 0.07))
    return _over(image, 0.86 + 0.03 * k[2] - v, _color(0.12, 0.09, 0.08))


def _mountains(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v, _color(0.55, 0.76, 0.95), _color(0.85, 0.92, 0.98))
    for middle, height, half, gray in ((0.24, 0.22, 0.50, 0.48), (0.80, 0.12, 0.56, 0.40)):
        x, top = middle + 0.06 * k[0], height + 0.08 * k[1]
        peak = polygon(u, v, [(x, top), (x + half, 0.95), (x - half, 0.95)])
        image = _over(image, peak, _color(gray, gray + 0.04, gray + 0.12))
        image = _over(image, np.maximum(peak, v - top - 0.15), _color(0.97, 0.98, 1.0))
    return _over(image, 0.84 + 0.03 * k[2] - v, _color(0.22, 0.40, 0.30))


def _space(u: Array, v: Array, k: Array) -> Array:
    haze = np.exp(-((u + v - 0.8 - 0.4 * k[0]) ** 2) / 0.08)
    image = _color(0.03, 0.02, 0.07) + haze[..., None] * _color(0.34, 0.06, 0.36)
    x, y = 0.16 + 0.06 * k[1], 0.80 + 0.04 * k[2]
    image = _over(image, circle(u, v, x, y, 0.13), _color(0.85, 0.45, 0.25))
    for star_x, star_y in (
        (0.88, 0.14),
        (0.62, 0.10),
        (0.12, 0.20),
        (0.90, 0.62),
        (0.70, 0.92),
        (0.36, 0.06),
    ):
        image = _over(image, circle(u, v, star_x, star_y + 0.03 * k[0], 0.026), _color(0.9, 0.9, 1.0))
    return image


def _road(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v * 2.5, _color(0.60, 0.84, 0.98), _color(0.82, 0.93, 0.99))
    image = _over(image, 0.34 + 0.03 * k[0] - v, _color(0.36, 0.62, 0.22))
    x = 0.5 + 0.12 * (k[1] - 0.5)
    lane = polygon(u, v, [(x - 0.07, 0.34), (x + 0.07, 0.34), (0.98, 1.02), (0.02, 1.02)])
    image = _over(image, np.maximum(lane, 0.35 + 0.03 * k[0] - v), _color(0.33, 0.33, 0.36))
    phase = (v + 0.3 * k[2]) / 0.26
    dash = np.maximum(np.abs(u - 0.5) - 0.03, (np.abs(phase - np.round(phase)) - 0.26) * 0.26)
    return _over(image, np.maximum(dash, 0.45 - v), _color(0.98, 0.95, 0.75))


def _meadow(u: Array, v: Array, k: Array) -> Array:
    image = _fade(v * 2.0, _color(0.45, 0.75, 1.0), _color(0.80, 0.93, 1.0))
    for x, y in ((0.22, 0.14), (0.74, 0.20)):
        image = _over(image, ellipse(u, v, (x + 0.1 * k[0], y), (0.15, 0.06)), _color(1.0, 1.0, 1.0))
    hill = 0.50 + 0.05 * np.sin(4.0 * u + 6.0 * k[1])
    image = _over(image, hill - v, _color(0.45, 0.80, 0.28))
    cell_u, cell_v = u + k[2], v - 0.62
    row = np.round(cell_v / 0.16)
    cell_u = cell_u + 0.12 * (row % 2)
    bloom = circle(cell_u - 0.24 * np.round(cell_u / 0.24), cell_v - 0.16 * row, 0.0, 0.0, 0.034)
    return _over(image, np.maximum(bloom, 0.57 - v), _color(1.0, 0.92, 0.40))


_Painter = Callable[[Array, Array, Array], Array]
PAINTERS: Final = MappingProxyType[str, _Painter](
    {
        "beach": _beach, "forest": _forest, "night": _night, "snow": _snow,
        "desert": _desert, "stage": _stage, "ocean": _ocean, "sunset": _sunset,
        "city": _city, "room": _room, "tiles": _tiles, "cave": _cave,
        "mountains": _mountains, "space": _space, "road": _road, "meadow": _meadow,
    }
)  # fmt: skip


def paint_background(name: str, seeds: list[int], size: int) -> Array:
    """Pictures of one background, (n, size, size, 3) in [0, 1], one for each seed."""
    jitter = np.stack([np.random.default_rng((4, seed)).uniform(size=4) for seed in seeds]).astype(np.float32)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    shape = (len(seeds), size, size)
    u, v = np.broadcast_to(grid[None, None, :], shape), np.broadcast_to(grid[None, :, None], shape)
    image = PAINTERS[name](u, v, jitter.T[:, :, None, None])
    light = 0.94 + 0.10 * jitter[:, 3].reshape(-1, 1, 1, 1)
    return np.asarray(np.clip(image * light, 0.0, 1.0).astype(np.float32))
