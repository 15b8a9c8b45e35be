"""How each class of the toy world is drawn: a painter over a `Canvas`, back to front."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.canvas import DARK, WHITE, Canvas
from conceptry.toybox.shapes import (
    Array,
    box,
    capsule,
    circle,
    ellipse,
    fold,
    only,
    polygon,
    ring,
    star,
    union,
)

_GREEN: Final = np.asarray((0.16, 0.50, 0.18), np.float32)
_GLASS: Final = np.asarray((0.72, 0.90, 0.98), np.float32)
_LAMP: Final = np.asarray((1.0, 0.90, 0.45), np.float32)
_BEAK: Final = np.asarray((1.0, 0.62, 0.10), np.float32)


def _either(chosen: NDArray[np.bool_], value: float, other: float) -> Array:
    return np.where(chosen, np.float32(value), np.float32(other))


def _creature_head(canvas: Canvas, top: float) -> None:
    head, u, v = canvas.detail(1), np.abs(canvas.u), canvas.v
    horn = polygon(u, v, [(0.20, top + 0.25), (0.50, top - 0.34), (0.62, top + 0.30)])
    canvas.paint(only(horn, head == 1), canvas.second)
    canvas.paint(only(circle(u, v, 0.48, top + 0.10, 0.26), head == 2), canvas.main)
    canvas.paint(only(circle(u, v, 0.48, top + 0.10, 0.13), head == 2), canvas.second, outline=False)
    ear = polygon(u, v, [(0.12, top + 0.30), (0.40, top - 0.32), (0.66, top + 0.34)])
    canvas.paint(only(ear, head == 3), canvas.main)
    stalk = capsule(canvas.u, v, (0.0, top + 0.2), (0.0, top - 0.16), 0.07)
    canvas.paint(only(stalk, head == 4), canvas.main * 0.7)
    canvas.paint(only(circle(canvas.u, v, 0.0, top - 0.20, 0.17), head == 4), canvas.second)


def _creature_face(canvas: Canvas) -> None:
    eyes, mouth, u, v = canvas.detail(0), canvas.detail(2), canvas.u, canvas.v
    side = np.abs(u)
    white = np.select(
        [eyes == 0, eyes == 1],
        [circle(u, v, 0.0, -0.22, 0.27), circle(side, v, 0.25, -0.20, 0.21)],
        union(circle(side, v, 0.38, -0.16, 0.175), circle(u, v, 0.0, -0.30, 0.175)),
    )
    pupil = np.select(
        [eyes == 0, eyes == 1],
        [circle(u, v, 0.0, -0.20, 0.14), circle(side, v, 0.23, -0.18, 0.11)],
        union(circle(side, v, 0.37, -0.15, 0.095), circle(u, v, 0.0, -0.29, 0.095)),
    )
    canvas.paint(white, WHITE, outline=False)
    canvas.paint(pupil, DARK, outline=False)
    smile = np.maximum(ring(circle(u, v, 0.0, 0.08, 0.26), 0.075), 0.17 - v)
    canvas.paint(only(smile, mouth == 0), DARK, outline=False)
    canvas.paint(only(ellipse(u, v, (0.0, 0.27), (0.22, 0.16)), mouth == 1), DARK, outline=False)
    beak = polygon(u, v, [(-0.22, 0.10), (0.22, 0.10), (0.0, 0.46)])
    canvas.paint(only(beak, mouth == 2), _BEAK)


def draw_creature(canvas: Canvas) -> None:
    """A round or boxy being with eyes, mouth, belly, feet and something on its head."""
    u, v = canvas.u, canvas.v
    half = 0.54 + 0.28 * canvas.width
    top = -0.62
    canvas.paint(ellipse(np.abs(u), v, (0.36, 0.84), (0.28, 0.16)), canvas.main * 0.6)
    canvas.paint(ellipse(np.abs(u), v, (half + 0.04, 0.22), (0.15, 0.24)), canvas.main * 0.8)
    _creature_head(canvas, top)
    radius = np.minimum(half, 0.72) * (0.35 + 0.63 * canvas.build)
    canvas.paint(box(u, v, (0.0, 0.10), (half, 0.74), radius), canvas.surface())
    belly = ellipse(u, v, (0.0, 0.62), (half * 0.52, 0.15))
    canvas.paint(only(belly, canvas.plain()), canvas.second, outline=False)
    _creature_face(canvas)


def draw_house(canvas: Canvas) -> None:
    """A house: patterned wall, roof in the second colour, door and windows."""
    u, v = canvas.u, canvas.v
    roof, door, windows = canvas.detail(0), canvas.detail(1), canvas.detail(2)
    half, eaves = 0.54 + 0.28 * canvas.width, -0.25 + 0.3 * (canvas.build - 0.5)
    canvas.paint(box(u, v, (0.0, 0.5 * (eaves + 0.9)), (half, 0.5 * (0.9 - eaves)), 0.03), canvas.surface())
    pointed = polygon(u, v, [(0.0, -0.98), (half + 0.2, eaves + 0.06), (-half - 0.2, eaves + 0.06)])
    flat = box(u, v, (0.0, eaves - 0.16), (half + 0.14, 0.2), 0.04)
    dome = np.maximum(ellipse(u, v, (0.0, eaves + 0.04), (half + 0.08, 0.66)), v - eaves - 0.04)
    canvas.paint(np.select([roof == 0, roof == 1], [pointed, flat], dome), canvas.second)
    middle = 0.42 * (door - 1.0)
    canvas.paint(box(u, v, (middle, 0.60), (0.19, 0.32), 0.06), canvas.second * 0.55)
    pane_x = _either(door == 2, -0.32, 0.32)
    single = circle(u, v, pane_x, 0.22, 0.19)
    spread = box(np.abs(u), v, (0.37, 0.08), (0.15, 0.15), 0.03)
    canvas.paint(only(single, windows == 1), _LAMP)
    canvas.paint(only(spread, windows == 2), _LAMP)


def draw_flower(canvas: Canvas) -> None:
    """A flower: petals with the pattern, a heart in the second colour, stem and leaves."""
    u, v = canvas.u, canvas.v
    count = np.select([canvas.detail(0) == 0, canvas.detail(0) == 1], [4.0, 6.0], 8.0).astype(np.float32)
    leaves, y = canvas.detail(2), -0.27
    canvas.paint(capsule(u, v, (0.0, 0.1), (0.0, 0.92), 0.085), _GREEN)
    leaf_right = ellipse(u + 0.5 * (v - 0.62), v, (0.28, 0.62), (0.26, 0.13))
    leaf_left = ellipse(-u + 0.5 * (v - 0.72), v, (0.28, 0.72), (0.26, 0.13))
    canvas.paint(only(leaf_right, leaves >= 1), _GREEN * 1.3)
    canvas.paint(only(leaf_left, leaves == 2), _GREEN * 1.3)
    along, across = fold(u, v - y, count)
    breadth = (0.33 - 0.028 * (count - 4.0)) * (0.72 + 0.56 * canvas.width)
    tip = 0.60 + 0.18 * canvas.build
    rounded = ellipse(along, across, (tip * 0.58, 0.0), (tip * 0.46, breadth))
    pointed = np.maximum(
        (np.abs(across) - breadth * np.minimum(1.2, 1.6 * (1.0 - along / (tip + 0.06)))) * 0.8, along - tip
    )
    canvas.paint(np.where(canvas.detail(1) == 0, rounded, pointed), canvas.surface())
    canvas.paint(circle(u, v, 0.0, y, 0.17 + 0.15 * canvas.build), canvas.second)


def draw_cup(canvas: Canvas) -> None:
    """A cup: patterned body, handle and rim in the second colour, perhaps a straw or steam."""
    side = 2.0 * canvas.detail(0) - 1.0
    u, v = canvas.u * side, canvas.v
    body, topping = canvas.detail(1), canvas.detail(2)
    half, top = 0.38 + 0.24 * canvas.width, -0.16 - 0.36 * canvas.build
    straw = capsule(u, v, (0.0, top), (-0.30, -0.95), 0.085)
    canvas.paint(only(straw, topping == 1), canvas.second)
    wave = np.abs(np.abs(u + 0.10 * np.sin(9.0 * v)) - 0.22) - 0.085
    steam = np.maximum(np.maximum(wave, v - top + 0.06), -0.95 - v) * 0.85
    canvas.paint(only(steam, topping == 2), WHITE, outline=False)
    handle = ring(ellipse(u, v, (half + 0.02, 0.22), (0.32, 0.32)), 0.085)
    canvas.paint(handle, canvas.second)
    straight = box(u, v, (0.0, 0.5 * (top + 0.88)), (half, 0.5 * (0.88 - top)), 0.10)
    wide = polygon(u, v, [(-half - 0.12, top), (half + 0.12, top), (half - 0.16, 0.88), (-half + 0.16, 0.88)])
    bowl = np.maximum(ellipse(u, v, (0.0, top), (half + 0.1, 0.88 - top)), top - v)
    canvas.paint(np.select([body == 0, body == 1], [straight, wide], bowl), canvas.surface())
    rim = half + _either(body == 0, 0.02, 0.13)
    canvas.paint(ellipse(u, v, (0.0, top), (rim, 0.17)), canvas.second)


def draw_ball(canvas: Canvas) -> None:
    """A ball with a belt or cap, perhaps a mark and a ring around it."""
    u, v = canvas.u, canvas.v
    belt, mark, halo = canvas.detail(0), canvas.detail(1), canvas.detail(2)
    breadth = 0.07 + 0.18 * canvas.build
    disc = ellipse(u, v, (0.0, 0.0), (0.64 + 0.24 * canvas.width, 0.78))
    canvas.paint(disc, canvas.surface())
    inside = disc + 0.04
    band = np.select(
        [belt == 0, belt == 1],
        [np.maximum(inside, np.abs(v) - breadth), np.maximum(inside, np.abs(u) - breadth)],
        np.maximum(inside, v + 0.46 - breadth),
    )
    canvas.paint(band, canvas.second)
    canvas.paint(only(circle(u, v, 0.0, 0.0, 0.25), mark == 1), WHITE)
    cross = union(box(u, v, (0.0, 0.0), (0.30, 0.10)), box(u, v, (0.0, 0.0), (0.10, 0.30)))
    canvas.paint(only(cross, mark == 2), WHITE)
    slanted = v - 0.22 * u
    orbit = ring(ellipse(u, slanted, (0.0, 0.05), (0.98, 0.34)), 0.11)
    hidden = (disc < 0) & (slanted < 0.05)
    canvas.paint(only(np.where(hidden, 0.2, orbit), halo == 1), canvas.second * 0.8)


def draw_star(canvas: Canvas) -> None:
    """A star with a core in the second colour, perhaps a face and a halo."""
    u, v = canvas.u, canvas.v
    points, face, halo = canvas.detail(0), canvas.detail(1), canvas.detail(2)
    count = np.select([points == 0, points == 1], [4.0, 5.0], 6.0).astype(np.float32)
    inner = 0.38 + 0.22 * canvas.width + 0.03 * (count - 5.0)
    canvas.paint(only(ring(circle(u, v, 0.0, 0.0, 0.88), 0.12), halo == 1), canvas.second)
    outer = _either(halo == 1, 0.92, 0.98)
    canvas.paint(star(u, v, count, outer, inner), canvas.surface())
    reach = 0.22 + 0.24 * canvas.build
    core = star(u, v, count, outer * reach, inner * reach)
    canvas.paint(core, canvas.second, outline=False)
    eye = ellipse(np.abs(u), v, (0.16, -0.06), (0.085, 0.12))
    smile = np.maximum(ring(circle(u, v, 0.0, 0.05, 0.18), 0.07), 0.12 - v)
    canvas.paint(only(union(eye, smile), face == 1), DARK, outline=False)
    canvas.paint(only(circle(u, v, 0.0, 0.0, 0.17), face == 2), WHITE)


def draw_fish(canvas: Canvas) -> None:
    """A fish that faces left or right: patterned body, tail and fins in the second colour."""
    u, v = canvas.u * (1.0 - 2.0 * canvas.detail(0)), canvas.v
    tail, fin = canvas.detail(1), canvas.detail(2)
    tall = 0.38 + 0.30 * canvas.width
    upper = polygon(u, np.abs(v), [(0.34, -0.10), (0.98, 0.14), (0.94, 0.58)])
    forked = np.maximum(upper, -1.0)
    rounded = union(ellipse(u, v, (0.74, 0.0), (0.26, 0.40)), capsule(u, v, (0.4, 0.0), (0.7, 0.0), 0.16))
    long = polygon(u, v, [(0.30, -0.02), (0.98, -0.34), (0.98, 0.34), (0.30, 0.02)])
    canvas.paint(np.select([tail == 0, tail == 1], [forked, rounded], long), canvas.second)
    crest = polygon(u, v, [(-0.30, -0.30 * tall), (0.12, -tall - 0.30), (0.36, -0.2 * tall)])
    keel = polygon(u, -v, [(-0.24, -0.30 * tall), (0.14, -tall - 0.26), (0.32, -0.2 * tall)])
    canvas.paint(only(crest, fin >= 1), canvas.second)
    canvas.paint(only(keel, fin == 2), canvas.second)
    canvas.paint(ellipse(u, v, (-0.15, 0.0), (0.50 + 0.30 * canvas.build, tall)), canvas.surface())
    canvas.paint(circle(u, v, -0.50, -0.10, 0.16), WHITE, outline=False)
    canvas.paint(circle(u, v, -0.53, -0.09, 0.09), DARK, outline=False)


def draw_car(canvas: Canvas) -> None:
    """A car that faces left or right: patterned body, cabin in the second colour, wheels."""
    u, v = canvas.u * (1.0 - 2.0 * canvas.detail(0)), canvas.v
    top, wheels = canvas.detail(1), canvas.detail(2)
    long, deck = 0.70 + 0.24 * canvas.width, -0.02 - 0.24 * canvas.build
    cabin = polygon(u, v, [(-0.20, -0.48), (0.46, -0.48), (0.64, 0.15), (-0.44, 0.15)])
    tall = box(u, v, (0.22, -0.28), (0.48, 0.46), 0.10)
    shield = capsule(u, v, (-0.28, 0.08), (-0.06, -0.34), 0.085)
    seat = capsule(u, v, (0.40, 0.08), (0.46, -0.20), 0.13)
    canvas.paint(np.select([top == 0, top == 2], [cabin, tall], union(shield, seat)), canvas.second)
    pane = np.where(top == 0, polygon(u, v, [(-0.13, -0.34), (0.16, -0.34), (0.16, -0.06), (-0.26, -0.06)]),
                    box(u, v, (0.10, -0.40), (0.24, 0.18), 0.03))  # fmt: skip
    canvas.paint(only(pane, top != 1), _GLASS, outline=False)
    canvas.paint(box(u, v, (0.0, 0.5 * (deck + 0.52)), (long, 0.5 * (0.52 - deck)), 0.14), canvas.surface())
    canvas.paint(circle(u, v, -long + 0.13, deck + 0.20, 0.11), _LAMP, outline=False)
    radius = _either(wheels == 2, 0.33, 0.23)
    wheel_y = 0.80 - radius
    spots = union(
        circle(np.abs(u), v, 0.52, wheel_y, radius), only(circle(u, v, 0.0, wheel_y, radius), wheels == 1)
    )
    canvas.paint(spots, DARK, outline=False)
    canvas.paint(spots + radius - 0.10, np.float32(0.75) * WHITE, outline=False)


Painter = Callable[[Canvas], None]
PAINTERS: Final = MappingProxyType(
    {
        "creature": draw_creature,
        "house": draw_house,
        "flower": draw_flower,
        "cup": draw_cup,
        "ball": draw_ball,
        "star": draw_star,
        "fish": draw_fish,
        "car": draw_car,
    }
)
