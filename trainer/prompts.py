"""What each training picture is called: its caption with the concept's word put in, or a template."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from conceptry.bases import FamilyId

Subject = Literal["object", "style"]


@dataclass(frozen=True, slots=True)
class Wording:
    """How the concept is written: what stands in the prompts, and what the base would say in its place.

    ``word`` is the placeholder or "placeholder superclass", as the method's row says.
    """

    placeholder: str
    superclass: str
    word: str
    subject: Subject
    family: FamilyId


@dataclass(frozen=True, slots=True)
class PromptPair:
    """A prompt with the concept in it, and the same with the superclass alone."""

    concept: str
    plain: str
    subject: int = 0
    """Which subject of the run the picture shows."""


def write_prompts(captions: Sequence[str | None], wording: Wording) -> tuple[tuple[PromptPair, ...], ...]:
    """Returns for each picture the prompts to train it with: one for a caption, else all templates."""
    return tuple(
        _write_templates(wording) if caption is None else (_write_caption(caption, wording),)
        for caption in captions
    )


def write_prompts_of_several(
    captions: Sequence[str | None], subjects: Sequence[int], wordings: Sequence[Wording]
) -> tuple[tuple[PromptPair, ...], ...]:
    """Returns the prompts of pictures that show one subject of several each, as ``subjects`` says.

    Where a caption names another subject by its placeholder too, that is written in full, and left out of what the base
    is asked.
    """
    found = []
    for caption, number in zip(captions, subjects, strict=True):
        (row,) = write_prompts([caption], wordings[number])
        others = [wording for place, wording in enumerate(wordings) if place != number]
        found.append(tuple(_name_others(pair, number, others) for pair in row))
    return tuple(found)


def _name_others(pair: PromptPair, number: int, others: Sequence[Wording]) -> PromptPair:
    concept, plain = pair.concept, pair.plain
    for other in others:
        # With its superclass after it where it stands so already: the word is not to be doubled.
        after = rf"(?:\s+{re.escape(other.superclass)}(?!\w))?"
        pattern = re.compile(rf"(?<!\w){re.escape(other.placeholder)}(?!\w){after}", re.IGNORECASE)
        concept = other.word.join(pattern.split(concept))
        plain = other.superclass.join(pattern.split(plain))
    return PromptPair(concept, plain, number)


def write_class_prompt(wording: Wording) -> str:
    """Returns the first template with the superclass in it: what class pictures are made with."""
    return _write_templates(wording)[0].plain


def _write_templates(wording: Wording) -> tuple[PromptPair, ...]:
    rows = find_templates(wording.family, wording.subject)["templates"]
    return tuple(PromptPair(row.format(wording.word), row.format(wording.superclass)) for row in rows)


def _write_caption(caption: str, wording: Wording) -> PromptPair:
    # The word wherever it stands: the base is never asked for what it does not know. The superclass once: what else is
    # called by it may be another one.
    for known, times in (((wording.word, wording.placeholder), 0), ((wording.superclass,), 1)):
        either = "|".join(re.escape(one) for one in known)
        around = re.split(rf"(?<!\w)(?:{either})(?!\w)", caption, maxsplit=times, flags=re.IGNORECASE)
        if len(around) > 1:
            return PromptPair(wording.word.join(around), wording.superclass.join(around))
    lead = find_templates(wording.family, wording.subject)["lead"]
    concept, plain = lead.format(wording.word), lead.format(wording.superclass)
    if wording.subject == "style":
        return PromptPair(f"{caption} {concept}", f"{caption} {plain}")
    return PromptPair(f"{concept}, {caption}", f"{plain}, {caption}")


def find_templates(family: FamilyId, subject: Subject) -> Mapping[str, Any]:
    """Returns ``lead`` and ``templates`` for a family, its own where the table has them."""
    table = _load_templates()
    rows: Mapping[str, Any] = table.get(family, table)[subject]
    return rows


@cache
def _load_templates() -> Mapping[str, Any]:
    text = files(__package__).joinpath("templates.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
