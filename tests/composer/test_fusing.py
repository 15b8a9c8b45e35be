"""Concepts inside the weights: the numbers of the same concepts beside the layers, and the base's own bytes after."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from conceptry.composer import Composition, attach, fuse
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, UsageError
from tests.composer.test_lora_algorithms import ONE_EACH, pick_layers
from tests.fakes.concepts import make_embedding, make_full, make_lora, make_rank_one
from tests.fakes.forwards import TOLERANCE, make_calm_pipeline, measure_difference, run_components
from tests.fakes.modules import fits_layer, make_module
from tests.fakes.pipelines import assert_same, make_pipeline, snapshot

PROMPT: Final = "a photo of a <e>, zork cat on grass"
STRENGTHS: Final = {"test/embedding": 0.8, "test/lora": 0.7, "test/full": 0.5, "test/dora": 1.2}


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def calm(request: pytest.FixtureRequest) -> Any:
    return make_calm_pipeline(request.param)


@pytest.fixture(scope="module")
def calm_sd1() -> Any:
    return make_calm_pipeline("sd1")


def make_algorithm(folder: Path, pipeline: Any, algorithm: str, **fields: Any) -> Concept:
    """Returns a concept whose modules all have one algorithm of the LoRA family."""
    row, form = next((row, form) for _, row, form in ONE_EACH if row.id == algorithm)
    modules = {
        f"unet.{path}": make_module(row, form, shape, seed=number)
        for number, (path, layer) in enumerate(pick_layers(pipeline.unet).items())
        if fits_layer(row, form, shape := tuple(layer.weight.shape))
    }
    return make_lora(folder, pipeline, modules=modules, **fields)


def make_dora(folder: Path, pipeline: Any) -> Concept:
    return make_algorithm(folder, pipeline, "dora", name="test/dora", placeholder="dork")


FUSABLE: Final[dict[str, Callable[[Path, Any], Concept]]] = {
    "embedding": make_embedding,
    "lora": make_lora,
    "full": make_full,
    "dora": make_dora,
}


def compose(concepts: list[Concept]) -> Composition:
    return Composition(*(one * STRENGTHS.get(str(one.manifest.name), 1.0) for one in concepts))


def test_every_combination_fused_gives_the_numbers_of_the_same_attached(calm: Any, tmp_path: Path) -> None:
    pipeline = calm
    made = {kind: make(tmp_path / kind, pipeline) for kind, make in FUSABLE.items()}
    plain = run_components(pipeline, PROMPT)
    counts = range(1, len(made) + 1) if pipeline.unet.config.cross_attention_dim == 24 else (len(made),)
    for count in counts:  # every combination on SD1; the others differ in shape alone
        for kinds in itertools.combinations(made, count):
            composition = compose([made[kind] for kind in kinds])
            with attach(composition, pipeline):
                expected = run_components(pipeline, PROMPT)
            before = snapshot(pipeline, with_settings=False)
            with fuse(composition, pipeline):
                found = run_components(pipeline, PROMPT)
            assert_same(before, snapshot(pipeline, with_settings=False))
            assert measure_difference(found, expected) <= TOLERANCE, kinds
            assert measure_difference(found, plain) > 1e-3, kinds


def test_every_algorithm_fused_gives_the_numbers_of_the_same_attached(calm_sd1: Any, tmp_path: Path) -> None:
    sd1 = calm_sd1
    for _, row, _ in ONE_EACH:
        concept = make_algorithm(tmp_path / row.id, sd1, row.id)
        with attach(Composition(concept * 0.6), sd1):
            expected = run_components(sd1, PROMPT)
        with fuse(Composition(concept * 0.6), sd1):
            assert measure_difference(run_components(sd1, PROMPT), expected) <= TOLERANCE, row.id


def test_every_algorithm_means_the_same_in_the_memory_layout_that_processors_like(tmp_path: Path) -> None:
    rows, turned = make_calm_pipeline("sd1"), make_calm_pipeline("sd1")
    turned.unet.to(memory_format=torch.channels_last)
    before = snapshot(turned, with_settings=False)
    for _, row, _ in ONE_EACH:
        composition = Composition(make_algorithm(tmp_path / row.id, rows, row.id) * 0.6)
        with attach(composition, rows):
            expected = run_components(rows, PROMPT)
        for put in (attach, fuse):
            with put(composition, turned):
                assert measure_difference(run_components(turned, PROMPT), expected) <= TOLERANCE, row.id
    assert_same(before, snapshot(turned, with_settings=False))
    assert turned.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strengths_change_while_fused_and_every_bit_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    """diffusers subtracts a delta at the strength of that moment: composition.md, checked.md."""
    pipeline = make_pipeline("sd1").to(dtype)
    composition = compose([make_lora(tmp_path / "l", pipeline), make_full(tmp_path / "f", pipeline)])
    before = snapshot(pipeline, with_settings=False)
    attachment = fuse(composition, pipeline)
    first = pipeline.unet.mid_block.resnets[0].conv1.weight.clone()
    for strength in (0.3, 2.0, 0.0, -1.0):
        attachment.set_strengths({"test/lora": strength, "test/full": strength / 2})
    attachment.set_strengths({"test/lora": 0.7, "test/full": 0.5})
    assert torch.equal(pipeline.unet.mid_block.resnets[0].conv1.weight, first)
    attachment.detach()
    assert_same(before, snapshot(pipeline, with_settings=False))


def test_what_is_fused_costs_no_hook(sd1: Any, tmp_path: Path) -> None:
    with fuse(Composition(make_lora(tmp_path / "l", sd1)), sd1):
        assert not any(module._forward_hooks for module in sd1.unet.modules())


def test_gates_are_refused_with_what_to_do_instead(calm_sd1: Any, tmp_path: Path) -> None:
    sd1 = calm_sd1
    rank_one, lora = make_rank_one(tmp_path / "r", sd1), make_lora(tmp_path / "l", sd1)
    before = snapshot(sd1, with_settings=False)
    with pytest.raises(
        IncompatibleError, match=r"test/rank-one@1\.0\.0 cannot be put into weights"
    ) as caught:
        fuse(Composition(lora, rank_one), sd1)
    assert "attach" in str(caught.value.hint)
    assert_same(before, snapshot(sd1, with_settings=False))
    with attach(Composition(lora, rank_one), sd1):
        expected = run_components(sd1, "a <r> cat")
    with fuse(Composition(lora), sd1), attach(Composition(rank_one), sd1):
        assert measure_difference(run_components(sd1, "a <r> cat"), expected) <= TOLERANCE


def test_fused_and_attached_concepts_leave_in_any_order(sd1: Any, tmp_path: Path) -> None:
    lora, full, dora = (make(tmp_path / make.__name__, sd1) for make in (make_lora, make_full, make_dora))
    before = snapshot(sd1, with_settings=False)
    for order in itertools.permutations(range(3)):
        ways = (fuse(Composition(lora), sd1), attach(Composition(full), sd1), fuse(Composition(dora), sd1))
        for number in order:
            ways[number].detach()
        assert_same(before, snapshot(sd1, with_settings=False))


def test_a_strength_that_is_no_number_or_of_nobody_is_refused_and_nothing_changes(
    sd1: Any, tmp_path: Path
) -> None:
    with fuse(Composition(make_lora(tmp_path / "l", sd1)), sd1):
        pass
    attachment = fuse(Composition(make_lora(tmp_path / "m", sd1)), sd1)
    expected = run_components(sd1, PROMPT)
    with pytest.raises(UsageError, match="nan"):
        attachment.set_strengths({"test/lora": float("nan")})
    with pytest.raises(UsageError, match="test/other"):
        attachment.set_strengths({"test/lora": 0.1, "test/other": 0.5})
    assert measure_difference(run_components(sd1, PROMPT), expected) == 0
    attachment.detach()
    with pytest.raises(UsageError, match="taken out"):
        attachment.set_strengths({"test/lora": 0.1})
