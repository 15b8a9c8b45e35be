"""Pictures belong to their seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conceptry.composer.generate import generate
from conceptry.errors import UsageError


def draw(pipeline: Any, prompts: list[str], seeds: list[int]) -> list[np.ndarray[Any, Any]]:
    return [
        np.asarray(image, dtype=int) for image in generate(pipeline, prompts, seeds, steps=2, guidance=2.0)
    ]


def test_a_seed_gives_its_picture_alone_and_in_company(pipeline: Any) -> None:
    (alone,) = draw(pipeline, ["a cat"], [7])
    _, second, other = draw(pipeline, ["a dog", "a cat", "a cat"], [1, 7, 8])
    # Sums over a batch are rounded otherwise; random weights make the most of it. Another seed is far away.
    assert np.abs(second - alone).max() <= 3
    assert np.abs(other - alone).max() > 30


def test_the_pipelines_own_settings_serve_where_none_are_given(sd1: Any) -> None:
    (image,) = generate(sd1, ["a cat"], [1], steps=1)
    assert image.mode == "RGB"


def test_every_prompt_needs_a_seed(sd1: Any) -> None:
    with pytest.raises(UsageError, match="2 prompts have 1 seeds"):
        generate(sd1, ["a", "b"], [1], steps=1)
    assert generate(sd1, [], []) == []
