"""What must not go into a pipeline is refused before anything changes, and the concept is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from conceptry.composer import Composition, attach, fuse, identify_pipeline
from conceptry.composer.attach import Attachment
from conceptry.composition import MAX_STRENGTH, Use
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, UsageError
from tests.fakes.concepts import (
    MAKERS,
    describe_base,
    make_embedding,
    make_full,
    make_layered,
    make_lora,
    make_rank_one,
)
from tests.fakes.pipelines import assert_same, make_pipeline, snapshot

BEYOND: Final = (math.nan, math.inf, -math.inf, 1e300, MAX_STRENGTH * 1.01)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_strength_that_no_number_can_be_is_refused_for_every_kind(
    kind: str, sd1: Any, tmp_path: Path
) -> None:
    concept = MAKERS[kind](tmp_path / "c", sd1)
    label = rf"{concept.label} is"
    for strength in BEYOND:
        with pytest.raises(UsageError, match=label):
            Composition(concept * strength)
    with pytest.raises(ValueError, match="finite"):
        Use(parts={"unet": math.nan})
    unchecked = Use.model_construct(parts={"unet.mid_block": math.nan})
    with pytest.raises(UsageError, match=rf"{concept.label} in unet\.mid_block is nan"):
        Composition(concept, use={str(concept.manifest.name): unchecked})


@pytest.mark.parametrize("put", [attach, fuse])
def test_a_strength_that_no_number_can_be_is_refused_while_a_concept_is_in(
    put: Callable[..., Attachment], sd1: Any, tmp_path: Path
) -> None:
    lora, other = (
        make_lora(tmp_path / name, sd1, name=f"test/{name}", seed=seed)
        for seed, name in enumerate(("lora", "other"))
    )
    attachment = put(Composition(lora), sd1)
    before = snapshot(sd1, with_settings=False)
    for strength in BEYOND:
        with pytest.raises(UsageError, match="test/lora"):
            attachment.set_strengths({"test/lora": strength})
        with pytest.raises(UsageError, match="test/other"):
            attachment.replace("test/lora", other * strength)
    assert_same(before, snapshot(sd1, with_settings=False))
    attachment.set_strengths({"test/lora": MAX_STRENGTH})
    attachment.detach()


@pytest.mark.parametrize("make", [make_embedding, make_layered, make_rank_one, make_lora, make_full])
def test_a_concept_of_another_width_is_named(make: Callable[..., Concept], sd1: Any, tmp_path: Path) -> None:
    wider = make_pipeline("sd2")
    concept = make(tmp_path / "c", wider, base=describe_base(identify_pipeline(sd1)))
    before = snapshot(sd1, with_settings=False)
    with pytest.raises(IncompatibleError) as caught:
        attach(Composition(concept), sd1)
    assert concept.label in str(caught.value)
    assert caught.value.hint is not None
    assert_same(before, snapshot(sd1, with_settings=False))


@pytest.mark.parametrize("make", [make_embedding, make_rank_one, make_lora, make_full])
def test_a_concept_that_is_in_already_is_refused(
    make: Callable[..., Concept], sd1: Any, tmp_path: Path
) -> None:
    concept = make(tmp_path / "c", sd1)
    other = make_lora(tmp_path / "o", sd1, name="test/o", placeholder="bork")
    with attach(Composition(concept), sd1):
        for put in (attach, fuse):
            with pytest.raises(IncompatibleError, match=rf"{concept.label} is in this pipeline already"):
                put(Composition(other, concept), sd1)
        with attach(Composition(other), sd1) as report:
            assert len(report.concepts) == 1
        second = attach(Composition(other), sd1)
        with pytest.raises(IncompatibleError, match=rf"{concept.label} is in this pipeline already"):
            second.replace("test/o", concept)
        second.detach()


def test_two_versions_of_one_concept_are_refused_by_name(sd1: Any, tmp_path: Path) -> None:
    first, second = (make_lora(tmp_path / str(seed), sd1, seed=seed) for seed in (1, 2))
    other = make_lora(tmp_path / "o", sd1, name="test/o", placeholder="bork")
    with pytest.raises(UsageError, match="one concept in two versions") as caught:
        attach(Composition(first, second), sd1)
    assert first.digest.short in caught.value.message
    assert second.digest.short in caught.value.message
    with attach(Composition(first), sd1), attach(Composition(other), sd1):
        pass
    attachment = attach(Composition(first, other), sd1)
    with pytest.raises(UsageError, match="one concept in two versions"):
        attachment.replace("test/o", second)
    attachment.replace("test/lora", second)
    attachment.detach()


def test_a_licence_that_forbids_adaptations_is_reported_before_anything_is_drawn(
    sd1: Any, tmp_path: Path
) -> None:
    terms = {"name": "terms", "permissions": {"derivatives": "no", "redistribution": "no"}}
    bound = make_lora(tmp_path / "b", sd1, name="test/bound", license=terms)
    named = make_lora(
        tmp_path / "n", sd1, name="test/named", placeholder="bork", license={"spdx": "CC-BY-ND-4.0"}
    )
    free = make_lora(tmp_path / "f", sd1, name="test/free", placeholder="gork")
    for concept in (bound, named):
        with attach(Composition(concept, free), sd1) as report:
            (warning,) = (text for text in report.warnings if "derivatives" in text)
            assert concept.label in warning
            assert report.plan.permissions.derivatives == "no"
