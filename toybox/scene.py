"""Instances, styles and scenes of the toy world as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Color = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Instance:
    """One particular object: a class and everything that sets it apart from others of its class.

    ``width`` and ``build`` are proportions in [0, 1], ``details`` indexes the class's rows of ``DETAILS``.
    """

    kind: str
    seed: int
    color: str
    shade: Color
    second: str
    second_shade: Color
    pattern: str
    width: float
    build: float
    details: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Style:
    """A point in the continuous family of drawing styles; the named styles are three points of it.

    ``outline`` in 64ths of the picture, ``hatch_period`` likewise, every other number a share in [0, 1].
    """

    name: str | None
    seed: int | None
    outline: float = 1.3
    ink: float = 0.0
    outline_color: Color = (0.05, 0.05, 0.08)
    softness: float = 1.0
    shading: float = 0.12
    saturation: float = 1.0
    lift: float = 0.0
    wash: float = 0.0
    tone: float = 0.0
    dark: Color = (0.0, 0.0, 0.0)
    light: Color = (1.0, 1.0, 1.0)
    hatch: float = 0.0
    hatch_angle: float = 0.0
    hatch_period: float = 8.0
    vignette: float = 0.0


@dataclass(frozen=True, slots=True)
class Placed:
    """An instance at a place: centre and half size as shares of the picture, from its top left corner."""

    instance: Instance
    x: float
    y: float
    half: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture's content: objects (the later in front), background and style.

    ``position`` is known for scenes of one object, ``relation`` (of the first object to the second) for two.
    """

    objects: tuple[Placed, ...]
    background: str
    background_seed: int
    style: Style
    position: str | None = None
    relation: str | None = None


NAMED_STYLES: Final = {
    "flat": Style(name="flat", seed=None),
    "ink": Style(name="ink", seed=None, outline=2.2, ink=1.0, shading=0.0, saturation=0.85, tone=0.25,
                 dark=(0.16, 0.14, 0.12), light=(1.0, 0.97, 0.88), lift=0.08),
    "watercolor": Style(name="watercolor", seed=None, outline=0.0, softness=2.0, shading=0.0, saturation=0.95,
                        lift=0.20, wash=0.9),
}  # fmt: skip
