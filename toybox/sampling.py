"""Instances, styles and scenes from seeds: each follows from its seed and nothing else.

Seeds in ``HELD_OUT_SEEDS`` are never seen in training, neither by the base model nor by the scorer; training draws
its instances and styles from ``TRAINING_SEEDS``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from conceptry.toybox.scene import NAMED_STYLES, Color, Instance, Placed, Scene, Style
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, COLORS, DETAILS, PATTERNS, POSITIONS, RELATIONS

HELD_OUT_SEEDS: Final = range(1_000_000)
TRAINING_SEEDS: Final = range(1_000_000, 2_000_000_000)
_INSTANCE, _STYLE, _SCENE = 1, 2, 3


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _near(rng: np.random.Generator, name: str) -> Color:
    red, green, blue = np.clip(np.asarray(COLORS[name]) + rng.uniform(-0.05, 0.05, 3), 0.0, 1.0)
    return float(red), float(green), float(blue)


def make_instance(kind: str, seed: int) -> Instance:
    """The instance of class ``kind`` that belongs to ``seed``."""
    rng = np.random.default_rng((_INSTANCE, CLASSES.index(kind), seed))
    color = _pick(rng, tuple(COLORS))
    second = _pick(rng, tuple(name for name in COLORS if name != color))
    first_detail, second_detail, third_detail = (int(rng.integers(len(d.choices))) for d in DETAILS[kind])
    return Instance(
        kind=kind,
        seed=seed,
        color=color,
        shade=_near(rng, color),
        second=second,
        second_shade=_near(rng, second),
        pattern=_pick(rng, PATTERNS),
        width=float(rng.uniform()),
        build=float(rng.uniform()),
        details=(first_detail, second_detail, third_detail),
    )


def _random_color(rng: np.random.Generator, low: float, high: float) -> Color:
    red, green, blue = rng.uniform(low, high, 3)
    return float(red), float(green), float(blue)


def make_style(seed: int) -> Style:
    """The style without a name that belongs to ``seed``."""
    rng = np.random.default_rng((_STYLE, seed))
    value = rng.uniform(size=12)
    sharp = value[0] < 0.6
    return Style(
        name=None,
        seed=seed,
        outline=float(1.0 + 3.2 * value[1]) if sharp else 0.0,
        ink=float(value[2]) if sharp else 0.0,
        outline_color=_random_color(rng, 0.0, 0.9),
        softness=1.0 if sharp else float(1.0 + 1.8 * value[3]),
        shading=float(0.5 * value[4]),
        saturation=float(0.3 + 0.9 * value[5]),
        lift=float(0.3 * value[6]) if value[7] < 0.5 else 0.0,
        wash=0.0 if sharp else float(value[2]),
        tone=float(0.25 + 0.4 * value[8]),
        dark=_random_color(rng, 0.0, 0.45),
        light=_random_color(rng, 0.55, 1.0),
        hatch=float(0.06 + 0.12 * value[9]) if value[10] < 0.5 else 0.0,
        hatch_angle=float(np.pi * rng.uniform()),
        hatch_period=float(rng.uniform(8.0, 12.0)),
        vignette=float(0.6 * rng.uniform()) if value[11] < 0.5 else 0.0,
    )


_SHIFT: Final = {
    "center": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
}
_PAIR: Final = {
    "left": ((0.255, 0.52), (0.745, 0.52)),
    "right": ((0.745, 0.52), (0.255, 0.52)),
    "above": ((0.5, 0.255), (0.5, 0.75)),
    "below": ((0.5, 0.75), (0.5, 0.255)),
}
_TRIPLE: Final = ((0.24, 0.30), (0.76, 0.30), (0.5, 0.75))


def place_one(instance: Instance, position: str, rng: np.random.Generator) -> Placed:
    """``instance`` at a named position, with the small random shift and size of an ordinary scene."""
    centered = position == "center"
    half = rng.uniform(0.32, 0.39) if centered else rng.uniform(0.28, 0.32)
    shift_x, shift_y = _SHIFT[position]
    dx, dy = rng.uniform(-0.025, 0.025, 2)
    return Placed(instance, float(0.5 + 0.21 * shift_x + dx), float(0.5 + 0.21 * shift_y + dy), float(half))


def place_two(
    first: Instance, second: Instance, relation: str, rng: np.random.Generator
) -> tuple[Placed, ...]:
    """Two instances, the first ``relation`` the second."""
    shift = rng.uniform(-0.02, 0.02, (2, 2))
    half = rng.uniform(0.205, 0.235, 2)
    return tuple(
        Placed(instance, float(x + shift[i, 0]), float(y + shift[i, 1]), float(half[i]))
        for i, (instance, (x, y)) in enumerate(zip((first, second), _PAIR[relation], strict=True))
    )


def place_three(
    instances: tuple[Instance, Instance, Instance], rng: np.random.Generator
) -> tuple[Placed, ...]:
    """Three instances: two above, one below."""
    shift = rng.uniform(-0.02, 0.02, (3, 2))
    half = rng.uniform(0.165, 0.19, 3)
    return tuple(
        Placed(instance, float(x + shift[i, 0]), float(y + shift[i, 1]), float(half[i]))
        for i, (instance, (x, y)) in enumerate(zip(instances, _TRIPLE, strict=True))
    )


def _draw_style(rng: np.random.Generator, seeds: range) -> Style:
    share = rng.uniform()
    if share < 0.50:
        return NAMED_STYLES["flat"]
    if share < 0.68:
        return NAMED_STYLES["ink"]
    if share < 0.86:
        return NAMED_STYLES["watercolor"]
    return make_style(int(rng.integers(seeds.start, seeds.stop)))


def make_scene(seed: int) -> Scene:
    """The scene that belongs to ``seed``; its instances and styles come from the same side as the seed itself."""
    rng = np.random.default_rng((_SCENE, seed))
    seeds = HELD_OUT_SEEDS if seed in HELD_OUT_SEEDS else TRAINING_SEEDS
    share = rng.uniform()
    count = 1 if share < 0.65 else 2 if share < 0.96 else 3
    things = [
        make_instance(_pick(rng, CLASSES), int(rng.integers(seeds.start, seeds.stop))) for _ in range(count)
    ]
    base = Scene((), _pick(rng, tuple(BACKGROUNDS)), int(rng.integers(2**31)), _draw_style(rng, seeds))
    if count == 1:
        position = "center" if rng.uniform() < 0.45 else _pick(rng, POSITIONS[1:])
        return replace(base, objects=(place_one(things[0], position, rng),), position=position)
    if count == 2:
        relation = _pick(rng, tuple(RELATIONS))
        return replace(base, objects=place_two(things[0], things[1], relation, rng), relation=relation)
    return replace(base, objects=place_three((things[0], things[1], things[2]), rng))


def draw_scenes(seed: int, count: int) -> list[Scene]:
    """``count`` training scenes; equal seeds give equal lists."""
    rng = np.random.default_rng((_SCENE, _SCENE, seed))
    return [
        make_scene(int(value)) for value in rng.integers(TRAINING_SEEDS.start, TRAINING_SEEDS.stop, count)
    ]


ATTRIBUTES: Final = ("color", "second", "pattern", "detail0", "detail1", "detail2", "width", "build")


def change_attribute(instance: Instance, attribute: str, rng: np.random.Generator) -> Instance:
    """``instance`` with exactly one attribute of ``ATTRIBUTES`` changed; proportions move by half their range."""
    if attribute in ("color", "second"):
        name = _pick(rng, tuple(name for name in COLORS if name not in (instance.color, instance.second)))
        if attribute == "color":
            return replace(instance, color=name, shade=_near(rng, name))
        return replace(instance, second=name, second_shade=_near(rng, name))
    if attribute == "pattern":
        return replace(instance, pattern=_pick(rng, tuple(p for p in PATTERNS if p != instance.pattern)))
    if attribute == "width":
        return replace(instance, width=(instance.width + 0.5) % 1.0)
    if attribute == "build":
        return replace(instance, build=(instance.build + 0.5) % 1.0)
    slot, values = int(attribute[-1]), list(instance.details)
    count = len(DETAILS[instance.kind][slot].choices)
    values[slot] = (values[slot] + int(rng.integers(1, count))) % count
    return replace(instance, details=(values[0], values[1], values[2]))


def show_instance(instance: Instance, rng: np.random.Generator, *, style: Style | None = None) -> Scene:
    """A scene of one object: ``instance`` before a random background at a random position, in ``style`` (flat)."""
    position = "center" if rng.uniform() < 0.4 else _pick(rng, POSITIONS[1:])
    placed = place_one(instance, position, rng)
    drawn = style or NAMED_STYLES["flat"]
    return Scene((placed,), _pick(rng, tuple(BACKGROUNDS)), int(rng.integers(2**31)), drawn, position)


def show_style(style: Style, rng: np.random.Generator, *, seeds: range = HELD_OUT_SEEDS) -> Scene:
    """A scene of one random instance drawn in ``style``."""
    instance = make_instance(_pick(rng, CLASSES), int(rng.integers(seeds.start, seeds.stop)))
    return show_instance(instance, rng, style=style)


def random_style(rng: np.random.Generator, seeds: range) -> Style:
    """A style as training scenes have it: half flat, else ink, watercolor or one without a name."""
    return _draw_style(rng, seeds)
