"""What a picture must show, and how a prompt calls a concept."""

from __future__ import annotations

import numpy as np
import pytest

from conceptry.evaluation.concepts import check_reading
from conceptry.evaluation.protocols import Prompt
from conceptry.toybox.scorer import Detection, Reading

EMBEDDING = np.zeros(4, np.float32)


def make_reading(background: str, position: str, *kinds: str) -> Reading:
    objects = tuple(
        Detection(
            x=0.5,
            y=0.5,
            half=0.3,
            confidence=1.0,
            kind=kind,
            color="red",
            second="blue",
            pattern="plain",
            details=(),
            embedding=EMBEDDING,
        )
        for kind in kinds
    )
    return Reading(objects, background, position, "flat", EMBEDDING)


@pytest.mark.parametrize(
    ("reading", "share"),
    [
        (make_reading("beach", "left", "cup"), 1.0),
        (make_reading("beach", "right", "cup"), 2 / 3),
        (make_reading("night", "right", "ball"), 0.0),
        (make_reading("beach", "left", "ball", "cup"), 1.0),
    ],
)
def test_the_prompt_score_is_the_share_of_what_was_asked_for(reading: Reading, share: float) -> None:
    prompt = Prompt(text="a {} on the left on the beach", kind="cup", background="beach", position="left")
    assert check_reading(prompt, reading) == pytest.approx(share)


def test_what_a_prompt_does_not_ask_for_does_not_count() -> None:
    assert check_reading(Prompt(text="{}", background="beach"), make_reading("beach", "top", "car")) == 1.0
