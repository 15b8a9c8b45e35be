"""The order of a composition: whatever led to it, the numbers are those of the same concepts attached anew."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from conceptry.composer import Composition, attach, fuse
from conceptry.composer.attach import Attachment
from conceptry.composer.full import FullPatch
from conceptry.composer.pipelines import list_text_encoders
from conceptry.concepts import Concept, WeightedConcept
from tests.composer.test_failures import Strike
from tests.fakes.concepts import make_embedding, make_full, make_hypernetwork
from tests.fakes.forwards import make_calm_pipeline, run_components
from tests.fakes.kinds import KIND_BY_ID, find_word, make_kind

STRENGTHS: Final = (0.8, 0.5, 1.0)


@pytest.fixture(scope="module")
def calm() -> Any:
    return make_calm_pipeline()


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def run_anew(pipeline: Any, *concepts: Concept | WeightedConcept, prompt: str) -> dict[str, Tensor]:
    with attach(Composition(*concepts), pipeline):
        return run_components(pipeline, prompt)


def test_networks_stay_in_their_order_when_one_takes_the_place_of_another(calm: Any, tmp_path: Path) -> None:
    first, second, third = (
        make_hypernetwork(tmp_path / name, calm, name=f"test/{name}", seed=seed)
        for seed, name in enumerate("abc")
    )
    expected, turned = (
        run_anew(calm, *order, prompt="a cat") for order in ((third, second), (second, third))
    )
    assert not torch.equal(expected["answer"], turned["answer"])
    attachment = attach(Composition(first, second), calm)
    attachment.replace("test/a", third)
    assert_same_bits(run_components(calm, "a cat"), expected)
    attachment.change(Composition(second, third))
    assert_same_bits(run_components(calm, "a cat"), turned)
    attachment.detach()


def test_what_came_in_after_a_composition_stays_behind_it(calm: Any, tmp_path: Path) -> None:
    first, second, third = (
        make_hypernetwork(tmp_path / name, calm, name=f"test/{name}", seed=seed)
        for seed, name in enumerate("abc")
    )
    before, after = (run_anew(calm, one, second, prompt="a cat") for one in (first, third))
    attachments = [attach(Composition(one), calm) for one in (first, second)]
    attachments[0].replace("test/a", third)
    assert_same_bits(run_components(calm, "a cat"), after)
    with Strike(1), pytest.raises(MemoryError):
        attachments[0].change(Composition(first, make_full(tmp_path / "full", calm)))
    assert_same_bits(run_components(calm, "a cat"), after)
    attachments[0].replace("test/c", first)
    assert_same_bits(run_components(calm, "a cat"), before)
    for attachment in attachments:
        attachment.detach()


# --- any sequence --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twin() -> Any:
    return make_calm_pipeline()


@pytest.fixture(scope="module")
def concepts(calm: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Concept]]:
    """Two of every kind, each with a word of its own."""
    folder, letters = tmp_path_factory.mktemp("concepts"), iter("abcdefghijklmnopqrstuvwxyz")
    return {
        kind: [
            make_kind(folder, calm, kind, label=f"{next(letters)}qj-{kind.replace('_', '-')}", seed=seed)
            for seed in (30, 130)
        ]
        for kind in KIND_BY_ID
    }


def run_changes(pipeline: Any, twin: Any, concepts: list[Concept], *, put: Any, seed: int) -> None:
    """Changes a composition with others around it at random, and compares with the same in a twin, put in anew."""
    generator = random.Random(seed)
    first, last, *pool = generator.sample(concepts, len(concepts))
    held: list[Attachment] = []
    for _ in range(6):
        chosen = generator.sample(pool, generator.randint(1, 4))
        middle = Composition(*(one * generator.choice(STRENGTHS) for one in chosen))
        if held:
            held[1].change(middle)
        else:
            held = [put(one, pipeline) for one in (Composition(first), middle, Composition(last))]
        words = [find_word(one) for one in (first, last, *chosen)]
        expected = [put(one, twin) for one in (Composition(first), middle, Composition(last))]
        found, anew = (run_components(one, " ".join(("a cat", *words))) for one in (pipeline, twin))
        for one in expected:
            one.detach()
        assert_same_bits(found, anew)
    for one in held:
        one.detach()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("put", [attach, fuse])
def test_any_sequence_of_changes_ends_in_the_bits_of_what_is_put_in_anew(
    put: Any, seed: int, calm: Any, twin: Any, concepts: dict[str, list[Concept]]
) -> None:
    made = [one for kind, row in concepts.items() if put is attach or KIND_BY_ID[kind].fusable for one in row]
    run_changes(calm, twin, made, put=put, seed=seed)


def test_half_of_a_word_lies_between_it_and_the_row_of_the_base_whatever_is_attached(
    calm: Any, tmp_path: Path
) -> None:
    word = make_embedding(tmp_path / "e", calm)
    (encoder, *_) = list_text_encoders(calm)
    name = next(name for name, one in calm.text_encoder.named_parameters() if one is encoder.table.weight)
    tuned = FullPatch(calm.text_encoder, {name: encoder.table.weight.detach() + 0.1})
    found = []
    for tuned_first in (True, False):
        with ExitStack() as stack:
            if tuned_first:
                stack.enter_context(tuned)
            stack.enter_context(attach(Composition(word * 0.5), calm))
            if not tuned_first:
                stack.enter_context(tuned)
            found.append(run_components(calm, "a <e>"))
    assert_same_bits(*found)
    assert not torch.equal(found[0]["answer"], run_anew(calm, word * 0.5, prompt="a <e>")["answer"])
