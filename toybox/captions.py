"""Captions of scenes from a small grammar: several templates, and a random choice of what is mentioned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from conceptry.toybox.scene import Instance, Scene
from conceptry.toybox.vocabulary import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    DETAILS,
    PATTERNS,
    POSITION_PHRASES,
    RELATIONS,
    STYLE_PHRASES,
    UNUSUAL_STYLE,
)

OPENINGS: Final = (
    "a photo of {}", "a picture of {}", "{}", "a rendering of {}", "a good photo of {}", "a depiction of {}",
    "an image of {}", "there is {}", "a close photo of {}", "a drawing of {}",
)  # fmt: skip
_OPENING_SHARES: Final = (0.34, 0.22, 0.20, 0.05, 0.03, 0.03, 0.04, 0.04, 0.02, 0.03)
UNMENTIONED: Final = "-"
MAX_WORDS: Final = 28


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and what it says, slot by slot ("class0", "color0", "background", ...); the rest is unmentioned."""

    text: str
    says: dict[str, str]


def slots() -> dict[str, tuple[str, ...]]:
    """Every slot that a caption can fill, with its values; ``UNMENTIONED`` comes first."""
    table: dict[str, tuple[str, ...]] = {}
    phrases = tuple(dict.fromkeys(p for rows in DETAILS.values() for row in rows for p in row.choices if p))
    for index in range(3):
        table[f"class{index}"] = CLASSES
        table[f"color{index}"] = tuple(COLORS)
        table[f"second{index}"] = tuple(COLORS)
        table[f"pattern{index}"] = PATTERNS
        table[f"detail{index}"] = phrases
    table |= {"background": tuple(BACKGROUNDS), "position": tuple(POSITION_PHRASES)}
    table |= {"style": (*STYLE_PHRASES, "unusual"), "relation": tuple(RELATIONS)}
    return {slot: (UNMENTIONED, *values) for slot, values in table.items()}


def with_article(words: str, article: str = "a") -> str:
    """``words`` after its indefinite article, or after another one that is named."""
    return f"{'an' if article == 'a' and words[0] in 'aeio' else article} {words}"


class _Speaker:
    """Puts one scene into words; ``full`` mentions everything that is measured."""

    def __init__(self, scene: Scene, rng: np.random.Generator, *, full: bool) -> None:
        self.scene, self.rng, self.full = scene, rng, full
        self.says: dict[str, str] = {}

    def _wants(self, share: float, *, always: bool = False) -> bool:
        return bool(self.rng.uniform() < share) or (always and self.full)

    def _say(self, slot: str, value: str) -> str:
        self.says[slot] = value
        return value

    def thing(self, index: int, instance: Instance, article: str) -> str:
        """The noun phrase of one object."""
        many, words = len(self.scene.objects) > 1, list[str]()
        self._say(f"class{index}", instance.kind)
        if self._wants(0.75, always=True):
            words.append(self._say(f"color{index}", instance.color))
            if self._wants(0.15 if many else 0.30) and instance.pattern != "plain":
                words += ["and", self._say(f"second{index}", instance.second)]
        if instance.pattern != "plain" and (f"second{index}" in self.says or self._wants(0.5)):
            words.append(self._say(f"pattern{index}", instance.pattern))
        elif instance.pattern == "plain" and self._wants(0.12):
            words.append(self._say(f"pattern{index}", "plain"))
        phrase = with_article(" ".join([*words, instance.kind]), article)
        return phrase + self._detail(index, instance) if self._wants(0.15 if many else 0.4) else phrase

    def _detail(self, index: int, instance: Instance) -> str:
        row = int(self.rng.integers(3))
        words = DETAILS[instance.kind][row].choices[instance.details[row]]
        return f" {self._say(f'detail{index}', words)}" if words else ""

    def things(self) -> str:
        """The noun phrases of all objects, with the relation of two."""
        objects, article = self.scene.objects, "the" if self._wants(0.06) else "a"
        if len(objects) == 2 and self._wants(0.75, always=True):
            relation = self.scene.relation or "left"
            self._say("relation", relation)
            first, second = (self.thing(i, objects[i].instance, article) for i in range(2))
            return f"{first} {RELATIONS[relation]} {second}"
        order = self.rng.permutation(len(objects))
        phrases = [self.thing(i, objects[int(row)].instance, article) for i, row in enumerate(order)]
        return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"

    def tail(self) -> list[str]:
        """Place, background and style, each where it is mentioned."""
        scene, parts = self.scene, list[str]()
        if scene.position and self._wants(0.3 if scene.position == "center" else 0.8, always=True):
            parts.append(POSITION_PHRASES[self._say("position", scene.position)])
        if self._wants(0.78, always=True):
            parts.append(BACKGROUNDS[self._say("background", scene.background)])
        if len(parts) == 2 and self._wants(0.5):
            parts.reverse()
        name = scene.style.name
        if self._wants(0.35 if name == "flat" else 0.92, always=True):
            self._say("style", name or "unusual")
            words = STYLE_PHRASES[name] if name else UNUSUAL_STYLE
            parts.append(f"in the style of {name}" if name and not self.full and self._wants(0.15) else words)
        return parts

    def caption(self) -> Caption:
        """The whole caption."""
        opening = OPENINGS[int(self.rng.choice(len(OPENINGS), p=_OPENING_SHARES))]
        subject, tail = opening.format(self.things()), self.tail()
        if len(tail) > 1 and self._wants(0.25):
            return Caption(", ".join([subject, *tail]), self.says)
        return Caption(" ".join([subject, *tail]), self.says)


def count_words(text: str) -> int:
    """Words and commas of a caption: its length in tokens."""
    return len(text.replace(",", " ,").split())


def describe(scene: Scene, rng: np.random.Generator, *, full: bool = False) -> Caption:
    """A true caption of ``scene``; ``full`` names colours, relation, position, background and style for sure."""
    if not full and len(scene.objects) == 1 and rng.uniform() < 0.06:
        kind = scene.objects[0].instance.kind
        return Caption(OPENINGS[int(rng.integers(2))].format(with_article(kind)), {"class0": kind})
    caption = _Speaker(scene, rng, full=full).caption()
    while count_words(caption.text) > MAX_WORDS:
        caption = _Speaker(scene, rng, full=full).caption()
    return caption


def grammar_words() -> Iterator[str]:
    """Every word that the grammar can say, and common words of training templates."""
    texts = [
        *OPENINGS,
        *BACKGROUNDS.values(),
        *POSITION_PHRASES.values(),
        *STYLE_PHRASES.values(),
        UNUSUAL_STYLE,
    ]
    texts += [*RELATIONS.values(), *CLASSES, *COLORS, *PATTERNS, "in the style of", ",", "and"]
    texts += [phrase for rows in DETAILS.values() for row in rows for phrase in row.choices]
    texts += ["a cropped bright dark small large cool nice weird my one this clean dirty painting photo", "."]
    for text in texts:
        yield from text.replace("{}", "").split()
