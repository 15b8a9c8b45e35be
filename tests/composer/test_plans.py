"""A plan is known by a digest, and comes back from ``composition.toml`` as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conceptry.composer import Composition, Plan, identify_pipeline, make_plan
from conceptry.composition import Region, Schedule, Use, format_composition, parse_composition
from conceptry.concepts import Concept
from conceptry.errors import IntegrityError
from tests.fakes.concepts import make_embedding, make_lora
from tests.fakes.pipelines import make_pipeline

USE = Use(parts={"text_encoder": 0.5}, schedule=Schedule(stop=0.6), region=Region(box=(0, 0, 0.5, 1)))


@pytest.fixture
def concepts(sd1: Any, tmp_path: Path) -> list[Concept]:
    """Give three concepts, two of which have one word."""
    return [
        make_embedding(tmp_path / "a", sd1, "<x>", name="test/a", seed=1),
        make_embedding(tmp_path / "b", sd1, "<x>", name="test/b", seed=2),
        make_lora(tmp_path / "c", sd1, name="test/c"),
    ]


def plan(pipeline: Any, *concepts: Any, **settings: Any) -> Plan:
    return make_plan(Composition(*concepts, **settings), identify_pipeline(pipeline))


def test_a_plan_that_is_written_and_read_back_is_the_same_plan(sd1: Any, concepts: list[Concept]) -> None:
    first, second, third = concepts
    made = plan(sd1, first, second * 0.7, third * 0.5, use={"test/c": USE}, way="switch", period=3)
    text = format_composition(made.to_document())
    document = parse_composition(text.encode(), "composition.toml")
    again = make_plan(Composition.of_document(document, concepts), identify_pipeline(sd1))
    assert again.digest == made.digest
    assert again.to_json() == made.to_json()
    assert again.members[1].words == {"<x>": "<x-2>"}
    with pytest.raises(IntegrityError, match=r"test/a@1\.0\.0 is .* here, and the composition names"):
        Composition.of_document(document, [second, first, third])


def test_whatever_changes_what_is_computed_changes_the_digest(
    sd1: Any, concepts: list[Concept], tmp_path: Path
) -> None:
    first, second, third = concepts
    other = make_lora(tmp_path / "other", sd1, name="test/c", seed=99)
    plans = [
        plan(sd1, first, third),
        plan(sd1, first, third * 0.5),
        plan(sd1, first, third, use={"test/c": USE}),
        plan(sd1, first, third, way="composite"),
        plan(sd1, first, third, rename={"test/a": {"<x>": "<y>"}}),
        plan(sd1, first, other),
        plan(sd1, first, second),
        plan(make_pipeline("sd1", seed=5), third),
        plan(sd1, third),
    ]
    assert len({one.digest for one in plans}) == len(plans)
    assert plan(sd1, first, third).digest == plans[0].digest
