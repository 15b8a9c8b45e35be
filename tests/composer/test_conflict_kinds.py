"""Of every pair of kinds the report says how they lie to one another, as dense deltas do, or what was not compared."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.cli.conflicts import describe_conflicts
from conceptry.composer import Composition, attach, identify_pipeline, make_plan
from conceptry.composer.conflicts import Conflict, collect_layers, find_conflicts
from conceptry.composer.layer_deltas import open_weights
from conceptry.composer.low_rank import LowRank
from conceptry.composer.spectra import iter_layer_tables
from conceptry.composer.tensors import from_torch
from conceptry.composition import Use
from conceptry.concepts import Concept
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.lora import LoraModule
from tests.composer.test_lora_algorithms import ONE_EACH, pick_layers
from tests.fakes.concepts import MAKERS, make_embedding, make_full, make_layered, make_lora, make_rank_one
from tests.fakes.modules import fits_layer, make_module

CONV = "unet.mid_block.resnets.0.conv1"
BY_BASE = "what it adds depends on the base's weights: --base opens them"


def check(*weighted: Any, pipeline: Any, opened: bool = False) -> tuple[Conflict, ...]:
    weights = open_weights(pipeline) if opened else None
    return find_conflicts(make_plan(Composition(*weighted), identify_pipeline(pipeline)), weights)


Made = tuple[Concept, dict[str, np.ndarray], bool]
"""A concept, what it adds to each layer in float64, and whether that needs the base's weights."""


def make_algorithms(folder: Path, pipeline: Any) -> list[Made]:
    """Returns a concept of every algorithm on the same layers."""
    found = []
    layers = pick_layers(pipeline.unet)
    for number, (_, row, form) in enumerate(ONE_EACH):
        modules, dense = {}, {}
        for place, (path, layer) in enumerate(layers.items()):
            shape, name = tuple(layer.weight.shape), f"unet.{path}"
            if fits_layer(row, form, shape):
                module = modules[name] = make_module(row, form, shape, seed=100 * number + place)
                bias = getattr(layer, "bias", None)
                own = None if bias is None else bias.detach().double().numpy()
                dense[name] = dense_delta(module, shape, layer.weight.detach().double().numpy())
                dense[f"{name}.bias"] = dense_bias_delta(module, own)
        name = f"test/{row.id}".replace("_", "-")
        concept = make_lora(folder / row.id, pipeline, name=name, placeholder=f"w{number}", modules=modules)
        known = {name: delta for name, delta in dense.items() if delta is not None}
        found.append((concept, known, row.needs_base))
    return found


def test_every_algorithm_is_compared_as_its_dense_delta_is(sd1: Any, tmp_path: Path) -> None:
    made = make_algorithms(tmp_path, sd1)
    concepts = [concept for concept, _, _ in made]
    pairs, blind = (check(*concepts, pipeline=sd1, opened=opened) for opened in (True, False))
    for pair, unsure, (one, two) in zip(pairs, blind, itertools.combinations(made, 2), strict=True):
        (first, mine, by_base), (second, theirs, also_by_base) = one, two
        assert (pair.first, pair.second) == (first.label, second.label)
        shared = mine.keys() & theirs.keys()
        assert {layer.module for layer in pair.layers} == shared
        assert pair.not_compared == ()
        # Without the base's weights nothing that both change is left out in silence; only IA3 of peft changes
        # a bias by what it is.
        weights = [name for name in shared if not name.endswith(".bias")]
        said = [text.partition(" in ")[0] for text in unsure.not_compared]
        assert said == [
            one.label
            for one, unknown in ((first, by_base), (second, also_by_base))
            if unknown and (weights or (shared and "ia3-peft" in one.label))
        ]
        if shared:
            both, own, other = (
                sum((a[name] * b[name]).sum() for name in shared)
                for a, b in ((mine, theirs), (mine, mine), (theirs, theirs))
            )
            assert pair.cosine == pytest.approx(both / np.sqrt(own * other), abs=1e-4)
            assert pair.balance == pytest.approx(own / other, rel=2e-3)
        if not (by_base or also_by_base):
            assert unsure.layers == pair.layers


def test_new_values_are_compared_with_the_base_and_said_not_to_be_without(sd1: Any, tmp_path: Path) -> None:
    lora, full = make_lora(tmp_path / "a", sd1), make_full(tmp_path / "b", sd1)
    (apart,) = check(lora, full, pipeline=sd1)
    assert apart.layers == ()
    (said,) = apart.not_compared
    assert said.startswith("test/full@1.0.0 in 4 layers, such as unet.")
    assert said.endswith(BY_BASE)
    (found,) = check(lora, full, pipeline=sd1, opened=True)
    assert (len(found.layers), found.not_compared) == (4, ())
    with attach(Composition(lora), sd1):  # its own weights, whatever stands in for them
        (inside,) = check(lora, full, pipeline=sd1, opened=True)
    assert inside.cosine == pytest.approx(found.cosine, abs=1e-6)


@pytest.mark.parametrize("kinds", [*itertools.combinations_with_replacement([*MAKERS, "layered"], 2)])
def test_every_pair_of_kinds_is_compared_or_says_why_not(
    kinds: tuple[str, str], sd1: Any, tmp_path: Path
) -> None:
    makers: dict[str, Any] = {**MAKERS, "layered": make_layered}

    def make(number: int, kind: str) -> Concept:
        # Hypernetworks have no word, the others one of their own.
        fields = {} if kind in ("hypernetwork", "full") else {"placeholder": f"<w{number}>"}
        made: Concept = makers[kind](
            tmp_path / str(number), sd1, name=f"test/{number}", seed=20 + number, **fields
        )
        return made

    (pair,) = check(*(make(number, kind) for number, kind in enumerate(kinds)), pipeline=sd1)
    layered = {"lora", "full", "rank_one"}
    if "hypernetwork" in kinds:
        assert any("a hypernetwork works between" in text for text in pair.not_compared)
    elif kinds == ("rank_one", "rank_one"):
        assert len(pair.gates) == 2
        assert pair.not_compared == ()
    elif kinds == ("lora", "lora"):
        assert pair.layers
        assert pair.not_compared == ()
    elif set(kinds) <= layered:
        assert pair.layers == ()
        assert pair.not_compared
        assert all(BY_BASE in text or "a gate decides" in text for text in pair.not_compared)
    else:
        assert (pair.layers, pair.not_compared) == ((), ())  # rows of words change no layer


def test_people_read_of_every_pair_what_was_compared(sd1: Any, tmp_path: Path) -> None:
    concepts = [
        make_rank_one(tmp_path / "a", sd1, "<a>", name="test/a"),
        make_rank_one(tmp_path / "b", sd1, "<b>", name="test/b", seed=77),
        make_full(tmp_path / "c", sd1, name="test/c"),
        make_embedding(tmp_path / "d", sd1, "<d>", name="test/d"),
    ]
    plan = make_plan(Composition(*concepts), identify_pipeline(sd1))
    lines = [*describe_conflicts(plan, find_conflicts(plan))]
    said = dict(line.split("@1.0.0: ") for line in lines if " with " in line and not line.startswith(" "))
    gated, apart, none = "strong conflict, by their gates", "not compared", "no layer in common"
    assert said == {
        "test/a@1.0.0 with test/b": gated,
        "test/a@1.0.0 with test/c": apart,
        "test/a@1.0.0 with test/d": none,
        "test/b@1.0.0 with test/c": apart,
        "test/b@1.0.0 with test/d": none,
        "test/c@1.0.0 with test/d": none,
    }
    assert sum(line.startswith("  not compared: test/c@1.0.0 in 2 layers, such as") for line in lines) == 2


def test_layers_of_other_shapes_are_named(sd1: Any, tmp_path: Path) -> None:
    def make(name: str, outputs: int, inputs: int) -> Concept:
        delta = LowRank(torch.ones(outputs, 1), torch.ones(1, inputs))
        module = LoraModule.of_factors(down=from_torch(delta.down), up=from_torch(delta.up), alpha=1.0)
        return make_lora(
            tmp_path / name, sd1, name=f"test/{name}", placeholder=name, modules={"unet.conv_in": module}
        )

    found = check(make("a", 8, 36), make("b", 8, 81), make("c", 8, 36), pipeline=sd1)
    said = "unet.conv_in: other shapes in test/{}@1.0.0 than in test/{}@1.0.0"
    assert [pair.not_compared for pair in found] == [(said.format("a", "b"),), (), (said.format("b", "c"),)]
    assert found[1].cosine == pytest.approx(1.0)


def test_a_share_of_nought_takes_a_part_of_the_network_out_of_the_report(sd1: Any, tmp_path: Path) -> None:
    one, two = (make_lora(tmp_path / name, sd1, name=f"test/{name}", placeholder=name) for name in "ab")
    (whole,) = check(one, two, pipeline=sd1)
    use = Use(parts={"unet": 0.0, "text_encoder": 0.5})
    plan = make_plan(Composition(one, two, use={"test/b": use}), identify_pipeline(sd1))
    (part,) = find_conflicts(plan)
    assert {layer.module.partition(".")[0] for layer in whole.layers} == {"unet", "text_encoder"}
    (layer,) = part.layers
    assert layer.module.startswith("text_encoder.")
    assert layer.balance == pytest.approx(4.0, rel=1e-4)


# --- the arithmetic of hard cases ------------------------------------------------------------------------------------


def compare(*deltas: LowRank) -> Any:
    concepts = [{"unet.layer": partial(LowRank, one.up, one.down)} for one in deltas]
    rows = collect_layers(iter_layer_tables(concepts))
    return {pair: found[0][0] for pair, found in rows.items()}


def test_the_cosine_is_of_the_whole_delta_and_not_of_its_strongest_directions() -> None:
    strong, weak = torch.zeros(20, 2), torch.zeros(20, 2)
    strong[0, 0], strong[1, 1], weak[1, 1] = (
        10.0,
        1.0,
        1.0,
    )  # the second direction holds less than a hundredth
    ones = torch.eye(2, 30)
    found = compare(LowRank(strong, ones), LowRank(weak, ones))[0, 1]
    assert found.cosine == pytest.approx(1 / np.sqrt(101), abs=1e-6)
    assert found.balance == pytest.approx(101.0, rel=1e-6)


def test_factors_that_all_but_depend_on_one_another_are_measured_as_well() -> None:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    common, ranks = draw(60, 1), (4, 4, 4, 7, 60)
    ups = [common + 10.0**-place * draw(60, rank) for place, rank in zip((1, 4, 7, 2, 0), ranks, strict=True)]
    deltas = [LowRank(up, draw(rank, 80)) for up, rank in zip(ups, ranks, strict=True)]
    dense = [delta.to_dense().double().numpy() for delta in deltas]
    for (one, two), found in compare(*deltas).items():
        first, second = dense[one], dense[two]
        expected = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
        assert found.cosine == pytest.approx(expected, abs=1e-5)
        kept = [find_directions(delta) for delta in (first, second)]
        for side, measured, size in ((0, found.output_overlap, 60), (1, found.input_overlap, 80)):
            mine, theirs = kept[0][side], kept[1][side]
            fewest, most = sorted((mine.shape[1], theirs.shape[1]))
            shared = np.linalg.norm(mine.T @ theirs) ** 2 / fewest
            assert measured == pytest.approx(shared / min(1.0, most / size), rel=2e-3)


def find_directions(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fewest singular directions that hold 99 % of the energy, by LAPACK in float64."""
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    energies = np.cumsum(values**2) / (values**2).sum()
    count = int(np.searchsorted(energies, 0.99)) + 1
    return left[:, :count], right[:count].T
