"""Training pictures of the scorer: packs of an instance and its one-attribute variant, and scenes that share a style.

A pack is five pictures: two of the instance, two of the variant, one of the instance beside a stranger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.networks import OBJECT_HEADS
from conceptry.toybox.sampling import (
    ATTRIBUTES,
    TRAINING_SEEDS,
    change_attribute,
    make_instance,
    make_style,
    place_three,
    place_two,
    random_style,
    show_instance,
    show_style,
)
from conceptry.toybox.scene import Instance, Scene, Style
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, COLORS, PATTERNS, POSITIONS, RELATIONS, STYLES

PACK: Final = 5
STYLE_PACK: Final = 6
UNKNOWN: Final = -1


@dataclass(frozen=True, slots=True)
class Labels:
    """Per picture: ``heads`` (n, 3) background, position, style; ``style_id`` (n,); ``boxes`` (n, 3, 3).

    Per object slot: ``things`` (n, 3, 7) attributes in the order of ``OBJECT_HEADS`` and ``identity`` (n, 3), where
    -1 is nothing. Style ids are 0 to 2 for named styles, 3 + seed otherwise.
    """

    heads: NDArray[np.int64]
    style_id: NDArray[np.int64]
    boxes: NDArray[np.float32]
    things: NDArray[np.int64]
    identity: NDArray[np.int64]


def _attributes(instance: Instance) -> list[int]:
    return [
        CLASSES.index(instance.kind),
        list(COLORS).index(instance.color),
        list(COLORS).index(instance.second),
        PATTERNS.index(instance.pattern),
        *instance.details,
    ]


def label(scenes: list[Scene]) -> Labels:
    """What is true of the scenes, as arrays."""
    count = len(scenes)
    labels = Labels(
        heads=np.full((count, 3), UNKNOWN, np.int64),
        style_id=np.zeros(count, np.int64),
        boxes=np.zeros((count, 3, 3), np.float32),
        things=np.full((count, 3, len(OBJECT_HEADS)), UNKNOWN, np.int64),
        identity=np.full((count, 3), UNKNOWN, np.int64),
    )
    names = list(BACKGROUNDS)
    identities: dict[Instance, int] = {}
    for row, scene in enumerate(scenes):
        style = STYLES.index(scene.style.name) if scene.style.name else len(STYLES)
        position = POSITIONS.index(scene.position) if scene.position else UNKNOWN
        labels.heads[row] = names.index(scene.background), position, style
        labels.style_id[row] = style if scene.style.seed is None else len(STYLES) + scene.style.seed
        for slot, placed in enumerate(scene.objects):
            labels.boxes[row, slot] = placed.x, placed.y, placed.half
            labels.things[row, slot] = _attributes(placed.instance)
            labels.identity[row, slot] = identities.setdefault(placed.instance, len(identities))
    return labels


def _training_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(TRAINING_SEEDS.start, TRAINING_SEEDS.stop))


def _together(things: list[Instance], style: Style, rng: np.random.Generator) -> Scene:
    background, seed = str(rng.choice(list(BACKGROUNDS))), int(rng.integers(2**31))
    if len(things) == 2:
        relation = str(rng.choice(list(RELATIONS)))
        placed = place_two(things[0], things[1], relation, rng)
        return Scene(placed, background, seed, style, relation=relation)
    return Scene(place_three((things[0], things[1], things[2]), rng), background, seed, style)


def instance_packs(seed: int, per_class: int) -> list[Scene]:
    """Packs of ``PACK`` scenes, ``per_class`` for each class in turn, of training instances."""
    rng = np.random.default_rng((5, seed))
    scenes: list[Scene] = []
    for index in range(per_class * len(CLASSES)):
        instance = make_instance(CLASSES[index % len(CLASSES)], _training_seed(rng))
        variant = change_attribute(instance, str(rng.choice(ATTRIBUTES)), rng)
        for shown in (instance, instance, variant, variant):
            scenes.append(show_instance(shown, rng, style=random_style(rng, TRAINING_SEEDS)))
        strangers = [make_instance(str(rng.choice(CLASSES)), _training_seed(rng)) for _ in range(2)]
        group = [instance, *strangers[: 1 if rng.uniform() < 0.8 else 2]]
        order = [group[int(row)] for row in rng.permutation(len(group))]
        scenes.append(_together(order, random_style(rng, TRAINING_SEEDS), rng))
    return scenes


def style_packs(seed: int, styles: int) -> list[Scene]:
    """Packs of ``STYLE_PACK`` scenes that share an unnamed training style."""
    rng = np.random.default_rng((6, seed))
    drawn = [make_style(_training_seed(rng)) for _ in range(styles)]
    return [show_style(style, rng, seeds=TRAINING_SEEDS) for style in drawn for _ in range(STYLE_PACK)]
