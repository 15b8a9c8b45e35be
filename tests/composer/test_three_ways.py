"""Attached, fused and exported are one: every combination of kinds that weights hold, on every base, and mixed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from torch import Tensor

from conceptry.composer import Composition, Destination, attach, export, fuse
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from tests.composer.test_exports import open_folder
from tests.composer.test_pipelines import SHAPES
from tests.fakes.forwards import TOLERANCE, make_calm_pipeline, measure_difference, run_components
from tests.fakes.kinds import KINDS, find_word, make_kind
from tests.fakes.pipelines import Shape, assert_same, snapshot

FUSABLE: Final = tuple(row.id for row in KINDS if row.fusable)
UNFUSABLE: Final = tuple(row.id for row in KINDS if not row.fusable)
STRENGTHS: Final = {
    "embedding": 0.8,
    "lora": 0.7,
    "locon": -0.5,
    "loha": 0.6,
    "lokr": 0.4,
    "dora": 1.2,
    "full": 0.5,
}
LABELS: Final = {"perfusion_global": "global"}


@functools.cache
def lend_calm(shape: Shape) -> Any:
    """Every test leaves it as it was, to the bit."""
    return make_calm_pipeline(shape)


def make_kinds(
    folder: Path, pipeline: Any, kinds: Iterable[str], *, biased: bool = True
) -> dict[str, Concept]:
    return {
        kind: make_kind(folder, pipeline, kind, label=LABELS.get(kind), seed=100 * number, biased=biased)
        for number, kind in enumerate(kinds)
    }


def compose(made: Mapping[str, Concept], kinds: Iterable[str]) -> Composition:
    return Composition(*(made[kind] * STRENGTHS.get(kind, 1.0) for kind in kinds))


def write_prompt(made: Mapping[str, Concept], kinds: Iterable[str]) -> str:
    words = [find_word(made[kind]) for kind in kinds]
    return "a " + " ".join(word for word in words if word.startswith("<")) + " and cat"


def run_attached(pipeline: Any, composition: Composition, prompt: str) -> dict[str, Tensor]:
    with attach(composition, pipeline):
        return run_components(pipeline, prompt)


def check_fused(pipeline: Any, made: Mapping[str, Concept], kinds: tuple[str, ...]) -> None:
    composition, prompt = compose(made, kinds), write_prompt(made, kinds)
    expected = run_attached(pipeline, composition, prompt)
    assert measure_difference(run_components(pipeline, prompt), expected) > 1e-3, kinds
    with fuse(composition, pipeline):
        assert measure_difference(run_components(pipeline, prompt), expected) <= TOLERANCE, kinds


def check_exported(folder: Path, pipeline: Any, made: Mapping[str, Concept], kinds: tuple[str, ...]) -> None:
    composition, prompt = compose(made, kinds), write_prompt(made, kinds)
    expected = run_attached(pipeline, composition, prompt)
    place = folder / "-".join(("out", *kinds))
    export(composition, pipeline, Destination(path=place, target="pipeline"))
    found = run_components(open_folder(place), prompt)
    assert measure_difference(found, expected) <= TOLERANCE, kinds


def check_mixed(pipeline: Any, made: Mapping[str, Concept], inside: list[str], beside: list[str]) -> None:
    """Some in the weights and some beside the layers, put in and taken out in any order, are all of them attached."""
    prompt = write_prompt(made, [*inside, *beside])
    expected = run_attached(pipeline, compose(made, [*inside, *beside]), prompt)
    for order in (1, -1):
        ways = [(fuse, inside), (attach, beside)][::order]
        attachments = [put(compose(made, kinds), pipeline) for put, kinds in ways]
        found = run_components(pipeline, prompt)
        for one in attachments:
            one.detach()
        assert measure_difference(found, expected) <= TOLERANCE, (inside, beside, order)


# --- a thin diagonal -------------------------------------------------------------------------------------------------


def test_what_is_fused_and_what_is_attached_beside_it_are_all_attached(tmp_path: Path) -> None:
    pipeline = lend_calm("sd2")
    inside, beside = ["lora", "custom_diffusion"], ["xti", "perfusion"]
    before = snapshot(pipeline, with_settings=False)
    check_mixed(pipeline, make_kinds(tmp_path, pipeline, inside + beside), inside, beside)
    assert_same(before, snapshot(pipeline, with_settings=False))


def test_a_folder_of_sd2_holds_all_that_weights_hold(tmp_path: Path) -> None:
    pipeline = lend_calm("sd2")
    check_exported(tmp_path, pipeline, make_kinds(tmp_path, pipeline, FUSABLE, biased=False), FUSABLE)


def test_a_bias_that_the_base_has_no_place_for_is_refused_in_a_folder_and_a_checkpoint(
    tmp_path: Path,
) -> None:
    pipeline = lend_calm("sd1")
    composition = compose(make_kinds(tmp_path, pipeline, ["dora"]), ["dora"])
    before = snapshot(pipeline, with_settings=False)
    for target, name in (("pipeline", "out"), ("checkpoint", "out.safetensors")):
        with pytest.raises(
            IncompatibleError, match=r"adds the bias unet\.[a-z0-9_.]+\.bias, which the base's"
        ) as caught:
            export(composition, pipeline, Destination(path=tmp_path / name, target=target))
        assert "attach" in str(caught.value.hint)
        assert not (tmp_path / name).exists()
    assert_same(before, snapshot(pipeline, with_settings=False))


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_combination_on_every_base_fused_is_the_same_attached(tmp_path: Path, shape: Shape) -> None:
    pipeline = lend_calm(shape)
    made = make_kinds(tmp_path, pipeline, FUSABLE)
    before = snapshot(pipeline, with_settings=False)
    for count in range(1, len(FUSABLE) + 1):
        for kinds in itertools.combinations(FUSABLE, count):
            check_fused(pipeline, made, kinds)
    assert_same(before, snapshot(pipeline, with_settings=False))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pair_on_every_base_exported_as_a_folder_is_the_same_attached(
    tmp_path: Path, shape: Shape
) -> None:
    pipeline = lend_calm(shape)
    made = make_kinds(tmp_path, pipeline, FUSABLE, biased=False)
    before = snapshot(pipeline, with_settings=False)
    for count in (1, 2, len(FUSABLE)):
        for kinds in itertools.combinations(FUSABLE, count):
            check_exported(tmp_path, pipeline, made, kinds)
    assert_same(before, snapshot(pipeline, with_settings=False))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_fused_and_every_kind_beside_it_are_both_attached(tmp_path: Path, shape: Shape) -> None:
    pipeline = lend_calm(shape)
    made = make_kinds(tmp_path, pipeline, (*FUSABLE, *UNFUSABLE))
    before = snapshot(pipeline, with_settings=False)
    for inside, beside in itertools.product(FUSABLE, ("embedding", *UNFUSABLE)):
        if inside != beside:
            check_mixed(pipeline, made, [inside], [beside])
    check_mixed(pipeline, made, list(FUSABLE), list(UNFUSABLE))
    assert_same(before, snapshot(pipeline, with_settings=False))
