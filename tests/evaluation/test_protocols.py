"""Protocol toybox-1: prompts that the base can be asked too, and references that training never saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conceptry.errors import InvalidManifestError, UsageError
from conceptry.evaluation.demonstration import load_demonstration
from conceptry.evaluation.protocols import Subject, load_prompts
from conceptry.evaluation.references import read_references, render_references
from conceptry.toybox.examples import render_instance
from conceptry.toybox.vocabulary import BACKGROUNDS, CLASSES, POSITIONS


@pytest.mark.parametrize("subject", ["instance", "style"])
def test_every_prompt_asks_for_something_the_scorer_knows(subject: Subject) -> None:
    for prompt in load_prompts(subject):
        assert prompt.text.count("{}") == 1
        assert prompt.background in BACKGROUNDS
        assert prompt.position in (None, *POSITIONS)
        assert prompt.kind in (None, *CLASSES)


def test_the_base_is_asked_with_the_superclass_word_and_its_article() -> None:
    prompt = load_prompts("instance")[0]
    assert prompt.with_concept("<imp>") == "a photo of <imp> on the beach"
    assert prompt.with_superclass("creature") == "a photo of a creature on the beach"


def test_the_base_is_asked_for_no_style_where_a_style_is_measured() -> None:
    prompt = load_prompts("style")[0]
    assert prompt.with_concept("<look>").endswith("in the style of <look>")
    assert prompt.with_superclass("flat") == "a photo of a red ball on the beach"


def test_references_are_the_same_instance_in_other_scenes_than_the_training_pictures(tmp_path: Path) -> None:
    training = render_instance("creature", 3, 6, tmp_path)
    truth = render_references(json.loads((tmp_path / "instance.json").read_text()))
    seen = {np.asarray(Image.open(path)).tobytes() for path in training}
    held_out = {picture.tobytes() for picture in (*truth.reference, *truth.ceiling)}
    assert len(held_out) == len(truth.reference) + len(truth.ceiling)
    assert not seen & held_out


def test_an_extension_that_names_no_instance_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidManifestError) as caught:
        render_references({"kind": "weather"})
    assert caught.value.where == "extensions.conceptry.toybox"


def test_one_reference_picture_is_too_few(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="1 reference pictures"):
        read_references(tmp_path)


def test_the_demonstration_composes_only_what_it_teaches() -> None:
    plan = load_demonstration()
    names = {concept.name for concept in plan.concepts}
    assert {concept.method for concept in plan.concepts} == {
        "textual_inversion",
        "perfusion",
        "lora",
        "dreambooth",
    }
    assert all(plan.find_subject(concept) for concept in plan.concepts)
    for composition in plan.compositions:
        mentioned = {composition.subject, composition.style, composition.second} - {None}
        assert mentioned <= set(composition.concepts) <= names
