"""Scenes to pictures: backgrounds, objects class by class, then the style's last touches, all over the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.backgrounds import paint_background
from conceptry.toybox.canvas import Brush, Canvas, colors, column
from conceptry.toybox.objects import PAINTERS
from conceptry.toybox.scene import Scene, Style
from conceptry.toybox.shapes import Array

_LUMA = np.asarray((0.30, 0.59, 0.11), np.float32)


def _paint_backgrounds(scenes: Sequence[Scene], size: int) -> Array:
    images = np.empty((len(scenes), size, size, 3), np.float32)
    for name in sorted({scene.background for scene in scenes}):
        rows = [row for row, scene in enumerate(scenes) if scene.background == name]
        images[rows] = paint_background(name, [scenes[row].background_seed for row in rows], size)
    return images


def _paint_layer(images: Array, scenes: Sequence[Scene], layer: int) -> None:
    size = images.shape[1]
    rows_by_kind: dict[str, list[int]] = {}
    for row, scene in enumerate(scenes):
        if layer < len(scene.objects):
            rows_by_kind.setdefault(scene.objects[layer].instance.kind, []).append(row)
    for kind, rows in rows_by_kind.items():
        brush = Brush.of([scenes[row].style for row in rows], size)
        canvas = Canvas([scenes[row].objects[layer] for row in rows], brush, size)
        PAINTERS[kind](canvas)
        images[rows] = images[rows] * (1.0 - canvas.cover[..., None]) + canvas.color


def _blotches(size: int) -> Array:
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    u, v = grid[None, :], grid[:, None]
    waves = np.sin(7.0 * u + 3.0 * v) + np.sin(-5.0 * u + 9.0 * v + 1.0) + np.sin(12.0 * u - 4.0 * v + 2.0)
    return np.asarray(waves / 3.0, np.float32)


def _apply_styles(images: Array, styles: Sequence[Style]) -> Array:
    size = images.shape[1]
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    u, v = grid[None, None, :], grid[None, :, None]

    def values(name: str) -> Array:
        return column([getattr(style, name) for style in styles])

    luma = images @ _LUMA
    images = luma[..., None] + values("saturation")[..., None] * (images - luma[..., None])
    dark, light = colors([style.dark for style in styles]), colors([style.light for style in styles])
    duotone = dark + luma[..., None] * (light - dark)
    images = images + values("tone")[..., None] * (duotone - images)
    images = images + values("lift")[..., None] * (0.97 - images)
    images = images * (1.0 + 0.10 * values("wash") * _blotches(size))[..., None]
    angle, period = values("hatch_angle"), values("hatch_period") / 64.0
    wave = np.cos(2.0 * np.pi * (u * np.cos(angle) + v * np.sin(angle)) / period)
    images = images * (1.0 - values("hatch") * (0.5 + 0.5 * wave))[..., None]
    radius = (u - 0.5) ** 2 + (v - 0.5) ** 2
    return np.asarray(images * (1.0 - values("vignette") * np.clip(2.0 * radius, 0.0, 1.0))[..., None])


def render(scenes: Sequence[Scene], size: int = 64) -> NDArray[np.uint8]:
    """Pictures of the scenes, (n, size, size, 3) bytes RGB."""
    images = _paint_backgrounds(scenes, size)
    for layer in range(max((len(scene.objects) for scene in scenes), default=0)):
        _paint_layer(images, scenes, layer)
    images = _apply_styles(images, [scene.style for scene in scenes])
    return np.asarray(np.clip(images, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
