"""Each concept by itself, where it changes most: against the same sum made by hand, and what prompts call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.composer import Composition, attach
from conceptry.composer.emphasis import emphasized, join_pieces
from conceptry.composer.focus import CallWords, leave_one, locate, share_places
from conceptry.composer.pipelines import encode_prompts
from conceptry.composer.prompts import parse_weights
from conceptry.composition import Region, Use
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, UsageError
from tests.fakes.concepts import make_embedding, make_lora

STEPS = 3
QUIET = {f"test/{name}": Use(parts={"text_encoder": 0.0}) for name in ("zork", "blip")}


@pytest.fixture
def pair(sd1: Any, tmp_path: Path) -> tuple[Concept, Concept]:
    return make_pair(sd1, tmp_path)


def make_pair(pipeline: Any, folder: Path) -> tuple[Concept, Concept]:
    first, second = (
        make_lora(folder / name, pipeline, name=f"test/{name}", placeholder=name, seed=seed)
        for seed, name in enumerate(("zork", "blip"))
    )
    return first, second


def draw(pipeline: Any, prompt: str) -> torch.Tensor:
    found: torch.Tensor = pipeline(
        prompt=[prompt],
        generator=[torch.Generator().manual_seed(3)],
        num_inference_steps=STEPS,
        output_type="latent",
    ).images
    return found


def predict(pipeline: Any, encoded: torch.Tensor) -> torch.Tensor:
    """One prediction of encodings that the pipeline was given, as ``prompt_embeds`` are."""
    with torch.no_grad():
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        found: torch.Tensor = pipeline.unet(latents, 5, encoder_hidden_states=encoded).sample
    return found


def find_by_hand(changes: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What each change counts: its size at a place beside its own mean and the greatest, ^4; 8 rows need no window."""
    found = []
    for change in changes:
        sizes = np.sqrt((change.astype(np.float64) ** 2).sum(axis=0))
        found.append(sizes / sizes.mean())
    shares: np.ndarray[Any, Any] = (np.asarray(found) / np.max(found, axis=0)) ** 4
    return shares


def test_the_sum_is_of_what_each_alone_changes_where_it_changes_most(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    encoded = encode_prompts(sd1, ["a photo of a cat"])
    plain = predict(sd1, encoded)
    changes = []
    for concept in pair:
        name = str(concept.manifest.name)
        with attach(Composition(concept, use={name: QUIET[name]}), sd1):
            changes.append((predict(sd1, encoded) - plain)[0].numpy())
    shares = find_by_hand(changes)
    expected = plain[0].numpy() + sum(share * change for share, change in zip(shares, changes, strict=True))
    with attach(Composition(*pair, use=QUIET, way="focus"), sd1):
        assert np.abs(predict(sd1, encoded)[0].numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
    assert 0.0 < shares.min() < 0.9  # the test would see plain addition


def test_two_changes_in_two_halves_have_a_half_each() -> None:
    changes = torch.full((2, 1, 4, 16, 16), 1e-3)
    changes[0, ..., :8] = 1.0
    changes[1, ..., 8:] = 0.2  # quieter, and still at home in its half
    shares = share_places(locate(changes, None))
    assert float(shares[0, ..., :6].min()) == 1.0
    assert float(shares[1, ..., 10:].min()) == 1.0
    assert float(shares[0, ..., 10:].max()) < 1e-3
    assert float(shares[1, ..., :6].max()) < 1e-3
    silent = locate(torch.zeros(2, 1, 4, 16, 16), None)
    assert torch.isfinite(share_places(silent)).all()


def call_by(word: str, superclass: str) -> CallWords:
    return CallWords(words=((word, superclass),), needed=True)


@pytest.mark.parametrize(
    ("text", "first", "nobody"),
    [
        ("a <imp> and a <cup>", "a <imp> and a cup", "a creature and a cup"),
        ("a <imp> creature on a <cup> cup", "a <imp> creature on a cup", "a creature on a cup"),
        ("<IMP>s, <cup-2> and a <Cup>.", "<IMP>s, <cup-2> and a cup.", "<IMP>s, <cup-2> and a cup."),
    ],
)
def test_a_prompt_is_left_with_the_words_of_one_concept(text: str, first: str, nobody: str) -> None:
    members = [call_by("<imp>", "creature"), call_by("<cup>", "cup")]
    assert leave_one(text, members, 0) == first
    assert leave_one(text, members, -1) == nobody


def test_concepts_of_one_plain_word_are_told_apart_by_their_superclasses() -> None:
    members = [call_by("sks", "creature"), call_by("sks", "cup")]
    said = "a sks creature beside a sks cup"
    assert leave_one(said, members, 0) == "a sks creature beside a cup"
    assert leave_one(said, members, 1) == "a creature beside a sks cup"
    assert members[0].call(said)
    assert not members[0].call("a cup")
    assert CallWords(words=(("sks", "cup"),), needed=False).call("a cup")


def test_a_concept_that_the_prompt_does_not_call_changes_nothing(
    sd1: Any, pair: tuple[Concept, Concept]
) -> None:
    plain = draw(sd1, "a photo of a cat")
    with attach(Composition(*pair, use=QUIET, way="focus"), sd1):
        assert torch.allclose(draw(sd1, "a photo of a cat"), plain, atol=1e-4)
        called = draw(sd1, "a photo of a zork")
        assert not torch.allclose(called, draw(sd1, "a photo of a blip"), atol=1e-2)


def test_words_weigh_as_much_as_they_are_asked_to(sd1: Any, tmp_path: Path) -> None:
    words = [
        make_embedding(tmp_path / name, sd1, f"<{name}>", name=f"test/{name}", seed=seed)
        for seed, name in enumerate(("e", "f"))
    ]
    prompt = "a (<e>:1.6) and <f>"
    pieces = parse_weights(prompt)
    with attach(Composition(*words, way="focus"), sd1):
        even = draw(sd1, join_pieces(pieces))
        with emphasized(sd1, pieces):
            weighed = draw(sd1, join_pieces(pieces))
        assert not torch.allclose(even, weighed, atol=1e-3)
        assert torch.equal(draw(sd1, join_pieces(pieces)), even)


def test_pooled_outputs_are_those_of_each_pass_too(sdxl: Any, tmp_path: Path) -> None:
    with attach(Composition(*make_pair(sdxl, tmp_path), way="focus"), sdxl):
        both = draw(sdxl, "a zork and a blip")
        assert not torch.allclose(both, draw(sdxl, "a zork and a cat"), atol=1e-3)


def test_regions_are_refused_and_one_concept_is_used_as_ever(sd1: Any, pair: tuple[Concept, Concept]) -> None:
    use = {"test/zork": Use(region=Region(box=(0.0, 0.0, 0.5, 1.0)))}
    with pytest.raises(UsageError, match="'focus' both take passes"):
        attach(Composition(*pair, use=use, way="focus"), sd1)
    # One concept has nobody to be told apart from.
    encoded = encode_prompts(sd1, ["a photo of a zork"])
    with attach(Composition(pair[0], way="focus"), sd1):
        alone = predict(sd1, encoded)
    with attach(Composition(pair[0]), sd1):
        assert torch.equal(predict(sd1, encoded), alone)


def test_words_are_asked_for_in_encodings_also_after_the_concepts_changed(sd1: Any, tmp_path: Path) -> None:
    words = [
        make_embedding(tmp_path / name, sd1, f"<{name}>", name=f"test/{name}", seed=seed)
        for seed, name in enumerate(("e", "f"))
    ]
    elsewhere = encode_prompts(sd1, ["a cat", ""])
    composition = Composition(*words, way="focus")
    attachment = attach(composition, sd1)
    attachment.change(composition.with_members(composition.members[::-1]))
    with pytest.raises(IncompatibleError, match="prompt_embeds"):
        sd1(
            prompt_embeds=elsewhere[:1],
            negative_prompt_embeds=elsewhere[1:],
            num_inference_steps=1,
            output_type="latent",
        )
    attachment.detach()
    assert "encode_prompt" not in vars(sd1)


def test_what_comes_in_later_leaves_each_by_itself(
    sd1: Any, pair: tuple[Concept, Concept], tmp_path: Path
) -> None:
    later = make_embedding(tmp_path / "e", sd1, "<e>", name="test/e")
    plain = draw(sd1, "a zork on grass")
    with attach(Composition(*pair, way="focus"), sd1):
        before, other = draw(sd1, "a zork and a blip"), draw(sd1, "a zork on grass")
        inner = attach(Composition(later), sd1)
        assert torch.equal(draw(sd1, "a zork and a blip"), before)
        inner.detach()
        assert torch.equal(draw(sd1, "a zork on grass"), other)
        inner = attach(Composition(later), sd1)
    assert torch.equal(draw(sd1, "a zork on grass"), plain)
    inner.detach()
    assert "encode_prompt" not in vars(sd1)
