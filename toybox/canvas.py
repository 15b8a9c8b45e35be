"""The painter: layers of signed-distance shapes over transparent ground, with outlines as the style wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.scene import Placed, Style
from conceptry.toybox.shapes import Array, box, circle
from conceptry.toybox.vocabulary import PATTERNS

DARK: Final = np.asarray((0.07, 0.07, 0.09), np.float32)
WHITE: Final = np.asarray((0.98, 0.98, 0.98), np.float32)
_STRIPE_PERIOD: Final = 0.80
_STRIPE: Final = 0.27
_SPOT_PERIOD: Final = 0.80
_SPOT_ROW: Final = 0.66
_SPOT: Final = 0.22
_CHECK_PERIOD: Final = 0.80
_CHECK: Final = 0.44


def column(values: list[float] | list[int] | list[bool]) -> Array:
    """The values as a float (n, 1, 1) array, ready to broadcast over pictures."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def _wrap(values: Array, period: float) -> Array:
    """The signed distance to the nearest multiple of ``period``."""
    return np.asarray(values - period * np.round(values / period))


def colors(values: list[tuple[float, float, float]]) -> Array:
    """The colours as an (n, 1, 1, 3) array."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1, 3)


@dataclass(slots=True)
class Brush:
    """The style's part in painting: outline width in pixels, how black it is, its colour, softness, shading."""

    outline: Array
    ink: Array
    outline_color: Array
    softness: Array
    shading: Array

    @classmethod
    def of(cls, styles: list[Style], size: int) -> Brush:
        """The brush of each style, widths scaled to pictures of ``size`` pixels."""
        scale = size / 64.0
        return cls(
            outline=column([style.outline * scale for style in styles]),
            ink=column([style.ink for style in styles])[..., None],
            outline_color=colors([style.outline_color for style in styles]),
            softness=column([style.softness * scale for style in styles]),
            shading=column([style.shading for style in styles]),
        )


class Canvas:
    """Layers for n objects of one class: premultiplied colour (n, size, size, 3) and cover (n, size, size).

    Attributes hold the batch: local coordinates ``u``, ``v``, main and second colours, ``width`` and ``build`` as
    (n, 1, 1) numbers in [0, 1], ``detail(i)`` the chosen details.
    """

    def __init__(self, placed: list[Placed], brush: Brush, size: int) -> None:
        grid = (np.arange(size, dtype=np.float32) + 0.5) / size
        half = column([thing.half for thing in placed])
        self.u: Array = (grid[None, None, :] - column([thing.x for thing in placed])) / half
        self.v: Array = (grid[None, :, None] - column([thing.y for thing in placed])) / half
        shape = np.broadcast_shapes(self.u.shape, self.v.shape)
        self.u, self.v = np.broadcast_to(self.u, shape), np.broadcast_to(self.v, shape)
        self.pixels: Array = half * size
        things = [thing.instance for thing in placed]
        self.main = colors([thing.shade for thing in things])
        self.second = colors([thing.second_shade for thing in things])
        self.width = column([thing.width for thing in things])
        self.build = column([thing.build for thing in things])
        self._details = np.asarray([thing.details for thing in things], np.float32).reshape(-1, 3, 1, 1)
        self._patterns = np.asarray([PATTERNS.index(thing.pattern) for thing in things]).reshape(-1, 1, 1)
        self._brush = brush
        self._shade = (1.0 + brush.shading * np.clip(-0.7 * self.u - 0.7 * self.v, -1.0, 1.0))[..., None]
        self.color: Array = np.zeros((*shape, 3), np.float32)
        self.cover: Array = np.zeros(shape, np.float32)

    def detail(self, slot: int) -> Array:
        """The chosen value of one detail, (n, 1, 1) whole numbers."""
        return self._details[:, slot]

    def plain(self) -> NDArray[np.bool_]:
        """Where the main surface has no pattern, (n, 1, 1) booleans."""
        return np.asarray(self._patterns == 0)

    def _over(self, color: Array, cover: Array) -> None:
        self.color += cover[..., None] * (color - self.color)
        self.cover += cover * (1.0 - self.cover)

    def paint(self, distance: Array, color: Array, *, outline: bool = True) -> None:
        """Lay a shape over what is there, in ``color`` (broadcast to pictures), with the style's outline."""
        pixels = distance * self.pixels
        soft = self._brush.softness
        if outline:
            dark = color * (0.42 * (1.0 - self._brush.ink)) + self._brush.outline_color * self._brush.ink
            self._over(dark, np.clip(0.5 - pixels / soft, 0.0, 1.0) * (self._brush.outline > 0))
            pixels = pixels + self._brush.outline
        self._over(np.clip(color * self._shade, 0.0, 1.0), np.clip(0.5 - pixels / soft, 0.0, 1.0))

    def _mask(self) -> Array:
        """Where the second colour shows, (n, size, size) shares.

        It covers at most a third of a surface, in marks as wide as two cells of the autoencoder at a usual size:
        the main colour stays the one that is seen most, and a base can draw both apart.
        """
        u, v = self.u, self.v
        stripes = np.abs(_wrap(v + 0.08, _STRIPE_PERIOD)) - 0.5 * _STRIPE
        row = np.round(v / _SPOT_ROW)
        spots = circle(
            _wrap(u + 0.5 * _SPOT_PERIOD * (row % 2), _SPOT_PERIOD), v - _SPOT_ROW * row, 0.0, 0.0, _SPOT
        )
        checks = box(
            _wrap(u - 0.5 * _CHECK_PERIOD, _CHECK_PERIOD),
            _wrap(v - 0.5 * _CHECK_PERIOD, _CHECK_PERIOD),
            (0.0, 0.0),
            (0.5 * _CHECK, 0.5 * _CHECK),
        )
        chosen = np.select([self._patterns == 1, self._patterns == 2], [stripes, spots], checks)
        return np.where(self._patterns == 0, 0.0, np.clip(0.5 - chosen * self.pixels / 1.2, 0.0, 1.0))

    def surface(self) -> Array:
        """The main colour with the instance's pattern in the second one, (n, size, size, 3)."""
        mask = self._mask()[..., None]
        return np.asarray(self.main + mask * (self.second - self.main))
