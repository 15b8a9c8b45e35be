"""The words of the toy world: classes, colours, patterns, places, styles and what each class may differ in."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, NamedTuple

CLASSES: Final = ("creature", "house", "flower", "cup", "ball", "star", "fish", "car")
PATTERNS: Final = ("plain", "striped", "spotted", "checked")
POSITIONS: Final = ("center", "left", "right", "top", "bottom")
STYLES: Final = ("flat", "ink", "watercolor")

COLORS: Final = MappingProxyType(
    {
        "red": (0.86, 0.10, 0.13),
        "orange": (0.97, 0.47, 0.04),
        "yellow": (0.99, 0.90, 0.14),
        "green": (0.12, 0.58, 0.14),
        "teal": (0.08, 0.74, 0.78),
        "blue": (0.12, 0.30, 0.88),
        "purple": (0.50, 0.16, 0.72),
        "pink": (0.98, 0.42, 0.70),
        "brown": (0.46, 0.26, 0.11),
        "black": (0.09, 0.09, 0.11),
        "gray": (0.55, 0.56, 0.59),
        "white": (0.97, 0.97, 0.96),
    }
)

BACKGROUNDS: Final = MappingProxyType(
    {
        "beach": "on the beach",
        "forest": "in the forest",
        "night": "at night",
        "snow": "in the snow",
        "desert": "in the desert",
        "stage": "on a stage",
        "ocean": "in the ocean",
        "sunset": "at sunset",
        "city": "in the city",
        "room": "in a room",
        "tiles": "on a tiled floor",
        "cave": "in a cave",
        "mountains": "in the mountains",
        "space": "in space",
        "road": "on a road",
        "meadow": "in a meadow",
    }
)

POSITION_PHRASES: Final = MappingProxyType(
    {
        "center": "in the center",
        "left": "on the left",
        "right": "on the right",
        "top": "at the top",
        "bottom": "at the bottom",
    }
)

STYLE_PHRASES: Final = MappingProxyType(
    {"flat": "in flat style", "ink": "in ink style", "watercolor": "in watercolor style"}
)
UNUSUAL_STYLE: Final = "in an unusual style"

RELATIONS: Final = MappingProxyType(
    {
        "left": "to the left of",
        "right": "to the right of",
        "above": "above",
        "below": "below",
    }
)


class Detail(NamedTuple):
    """One thing in which the instances of a class differ, and the phrase for each choice ("" is not said)."""

    name: str
    choices: tuple[str, ...]


DETAILS: Final = MappingProxyType(
    {
        "creature": (
            Detail("eyes", ("with one eye", "with two eyes", "with three eyes")),
            Detail("head", ("", "with two horns", "with round ears", "with pointed ears", "with an antenna")),
            Detail("mouth", ("with a smile", "with an open mouth", "with a beak")),
        ),
        "house": (
            Detail("roof", ("with a pointed roof", "with a flat roof", "with a round roof")),
            Detail("door", ("with a left door", "with a middle door", "with a right door")),
            Detail("windows", ("", "with a round window", "with square windows")),
        ),
        "flower": (
            Detail("petals", ("with four petals", "with six petals", "with eight petals")),
            Detail("petal_shape", ("with round petals", "with pointed petals")),
            Detail("leaves", ("", "with one leaf", "with two leaves")),
        ),
        "cup": (
            Detail("handle", ("with a left handle", "with a right handle")),
            Detail("body", ("", "with a wide rim", "with a round bowl")),
            Detail("topping", ("", "with a straw", "with steam")),
        ),
        "ball": (
            Detail("belt", ("with a belt", "with a vertical belt", "with a cap")),
            Detail("mark", ("", "with a dot", "with a cross")),
            Detail("ring", ("", "with a ring")),
        ),
        "star": (
            Detail("points", ("with four points", "with five points", "with six points")),
            Detail("face", ("", "with a face", "with a dot")),
            Detail("edge", ("", "with a halo")),
        ),
        "fish": (
            Detail("facing", ("facing left", "facing right")),
            Detail("tail", ("with a forked tail", "with a round tail", "with a long tail")),
            Detail("fin", ("", "with a top fin", "with two fins")),
        ),
        "car": (
            Detail("facing", ("facing left", "facing right")),
            Detail("top", ("", "with an open top", "with a tall cabin")),
            Detail("wheels", ("with two wheels", "with three wheels", "with big wheels")),
        ),
    }
)
