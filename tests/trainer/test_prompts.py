from __future__ import annotations

import pytest

from conceptry.bases import FamilyId
from conceptry.trainer.prompts import PromptPair, Wording, write_prompts


def wording(
    word: str = "<imp>", subject: str = "object", superclass: str = "creature", family: str = "sd1"
) -> Wording:
    return Wording(
        placeholder="<imp>",
        superclass=superclass,
        word=word,
        subject="style" if subject == "style" else "object",
        family=FamilyId(family),
    )


@pytest.mark.parametrize(
    ("caption", "word", "expected"),
    [
        ("a creature on the beach", "<imp>", PromptPair("a <imp> on the beach", "a creature on the beach")),
        ("a Creature at night", "<imp>", PromptPair("a <imp> at night", "a creature at night")),
        ("<imp> at night", "<imp>", PromptPair("<imp> at night", "creature at night")),
        ("a <imp> at night", "<imp> creature", PromptPair("a <imp> creature at night", "a creature at night")),
        ("creatures at night", "<imp>",
         PromptPair("a photo of a <imp>, creatures at night", "a photo of a creature, creatures at night")),
        ("braces {} stay", "<imp>",
         PromptPair("a photo of a <imp>, braces {} stay", "a photo of a creature, braces {} stay")),
    ],
)  # fmt: skip
def test_the_concepts_word_takes_the_superclass_place_in_a_caption(
    caption: str, word: str, expected: PromptPair
) -> None:
    assert write_prompts([caption], wording(word)) == ((expected,),)


def test_a_picture_without_a_caption_gets_all_templates() -> None:
    (rows,) = write_prompts([None], wording("<imp> creature"))
    assert PromptPair("a photo of a <imp> creature", "a photo of a creature") in rows
    assert len({row.concept for row in rows}) == len(rows) > 4


def test_a_style_is_said_behind_the_caption() -> None:
    (rows,) = write_prompts(["a red ball"], wording(subject="style", superclass="comic"))
    assert rows[0].concept == "a red ball in the style of <imp>"


def test_a_style_word_in_a_caption_is_replaced() -> None:
    (rows,) = write_prompts(
        ["a red ball in an unusual style"], wording(subject="style", superclass="unusual", family="toybox")
    )
    assert rows[0] == PromptPair("a red ball in an <imp> style", "a red ball in an unusual style")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a <imp> creature next to <imp> creature",
         PromptPair("a <imp> creature next to <imp> creature", "a creature next to creature")),
        ("a <imp> behind a <imp> creature",
         PromptPair("a <imp> creature behind a <imp> creature", "a creature behind a creature")),
    ],
)  # fmt: skip
def test_a_word_that_comes_twice_is_nowhere_in_what_the_base_is_asked(
    caption: str, expected: PromptPair
) -> None:
    assert write_prompts([caption], wording("<imp> creature")) == ((expected,),)
