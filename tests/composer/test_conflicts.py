"""What concepts do to one another, against dense computations in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.composer import Composition, identify_pipeline, make_plan
from conceptry.composer.conflicts import Conflict, collect_layers, find_conflicts
from conceptry.composer.low_rank import LowRank
from conceptry.composer.spectra import iter_layer_tables
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, write_embedding
from conceptry.formats.lora import LoraModule
from conceptry.formats.rank_one import read_rank_one
from tests.fakes.concepts import describe_base, make_embedding, make_lora, make_rank_one, write_concept
from tests.fakes.edits import make_rows

PATH = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
OUT, IN = 60, 80


def make_delta(seed: int, rank: int = 4, outputs: int = OUT, inputs: int = IN) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(outputs, rank, generator=generator), torch.randn(rank, inputs, generator=generator)
    )


def compare(*deltas: LowRank) -> Any:
    concepts = [{"unet.layer": (lambda delta=delta: delta)} for delta in deltas]
    rows = collect_layers(iter_layer_tables(concepts))
    return {pair: found[0][0] for pair, found in rows.items()}


def test_measures_of_every_pair_are_those_of_the_dense_deltas() -> None:
    deltas = [make_delta(seed, rank) for seed, rank in ((1, 4), (2, 6), (3, 4))]
    dense = [delta.to_dense().double().numpy() for delta in deltas]
    for (one, two), found in compare(*deltas).items():
        first, second = dense[one], dense[two]
        norms = np.linalg.norm(first) * np.linalg.norm(second)
        assert found.cosine == pytest.approx((first * second).sum() / norms, abs=1e-5)
        energies = (first**2).sum() + (second**2).sum()
        assert found.energy_ratio == pytest.approx(((first + second) ** 2).sum() / energies, rel=1e-4)
        assert found.balance == pytest.approx((first**2).sum() / (second**2).sum(), rel=1e-4)


def test_overlap_is_that_of_the_spanned_subspaces_in_units_of_chance() -> None:
    first, second = make_delta(1), make_delta(2, 6)
    found = compare(first, second)[0, 1]
    read = [np.linalg.qr(delta.down.double().numpy().T)[0] for delta in (first, second)]
    shared = np.linalg.norm(read[0].T @ read[1]) ** 2 / 4
    assert found.input_overlap == pytest.approx(shared / (6 / IN), rel=0.05)


def test_random_deltas_overlap_as_chance_has_it() -> None:
    overlaps = [compare(make_delta(seed), make_delta(seed + 100))[0, 1].output_overlap for seed in range(60)]
    assert np.mean(overlaps) == pytest.approx(1.0, abs=0.15)


def test_a_shared_subspace_is_seen_and_its_sign_told_apart() -> None:
    first = make_delta(1)
    same, opposite = first.scaled(0.5), first.scaled(-1.0)
    reinforcing, cancelling = compare(first, same)[0, 1], compare(first, opposite)[0, 1]
    assert reinforcing.cosine == pytest.approx(1.0, abs=1e-4)
    assert reinforcing.input_overlap == pytest.approx(IN / 4, rel=0.01)
    assert cancelling.cosine == pytest.approx(-1.0, abs=1e-4)
    assert cancelling.energy_ratio == pytest.approx(0.0, abs=1e-5)


def test_more_concepts_than_a_block_holds_are_compared_alike() -> None:
    deltas = [make_delta(seed) for seed in range(19)]
    together = compare(*deltas)
    assert len(together) == 19 * 18 // 2
    for pair in ((0, 18), (7, 8), (17, 18)):
        alone = compare(deltas[pair[0]], deltas[pair[1]])[0, 1]
        assert together[pair].cosine == pytest.approx(alone.cosine, abs=1e-5)
        assert together[pair].input_overlap == pytest.approx(alone.input_overlap, rel=1e-4)


# --- concepts ------------------------------------------------------------------------------------------------------


def make_module(pipeline: Any, seed: int, factor: float = 1.0) -> dict[str, LoraModule]:
    outputs, inputs = pipeline.unet.get_submodule(PATH).weight.shape
    delta = make_delta(seed, 2, outputs, inputs)
    module = LoraModule.of_factors(down=from_torch(delta.down), up=from_torch(factor * delta.up), alpha=2.0)
    return {f"unet.{PATH}": module}


def check(*weighted: Any, pipeline: Any) -> tuple[Conflict, ...]:
    return find_conflicts(make_plan(Composition(*weighted), identify_pipeline(pipeline)))


def test_concepts_that_reinforce_one_another_are_advised_to_be_weaker(sd1: Any, tmp_path: Path) -> None:
    one, two = (
        make_lora(tmp_path / name, sd1, name=f"test/{name}", placeholder=name, modules=make_module(sd1, 1))
        for name in ("a", "b")
    )
    (found,) = check(one, two * 0.5, pipeline=sd1)
    assert found.severity == "strong"
    assert found.cosine == pytest.approx(1.0, abs=1e-4)
    assert found.balance == pytest.approx(4.0, rel=1e-3)
    # |1.5 D|^2 / (|D|^2 + |0.5 D|^2) = 1.8, and 1 / sqrt(1.8) = 0.745
    assert found.advice[0] == "they reinforce one another: try test/a*0.75 test/b*0.37"


def test_concepts_of_different_directions_are_no_conflict(sd1: Any, tmp_path: Path) -> None:
    one, two = (
        make_lora(tmp_path / name, sd1, name=f"test/{name}", placeholder=name, modules=make_module(sd1, seed))
        for seed, name in enumerate(("a", "b"))
    )
    (found,) = check(one, two, pipeline=sd1)
    assert (found.severity, found.advice) == ("none", ())
    assert check(one, two * 0, pipeline=sd1) == ()


def test_a_concept_that_drowns_another_is_named_with_a_strength(sd1: Any, tmp_path: Path) -> None:
    loud = make_lora(
        tmp_path / "a", sd1, name="test/loud", placeholder="a", modules=make_module(sd1, 1, factor=4.0)
    )
    soft = make_lora(tmp_path / "b", sd1, name="test/soft", placeholder="b", modules=make_module(sd1, 2))
    (found,) = check(loud, soft, pipeline=sd1)
    assert len(found.advice) == 1
    assert found.advice[0].startswith("test/loud is ")
    assert "try test/loud*" in found.advice[0]


def test_a_word_of_one_perfusion_concept_at_the_gate_of_another(sd1: Any, tmp_path: Path) -> None:
    one = make_rank_one(tmp_path / "a", sd1, "<a>", name="test/a", seed=12)
    near = make_rank_one(tmp_path / "b", sd1, "<b>", name="test/b", seed=12)
    far = make_rank_one(tmp_path / "c", sd1, "<c>", name="test/c", seed=99)
    crossing, apart = (check(one, other, pipeline=sd1)[0] for other in (near, far))
    assert crossing.severity == "strong"
    assert [gate.fires for gate in crossing.gates] == [True, True]
    assert crossing.gates[0].similarity == pytest.approx(1.0, abs=1e-5)
    contents = read_rank_one(one.locate(next(one.manifest.iter_files())))
    other = read_rank_one(far.locate(next(far.manifest.iter_files())))
    dual, mine, theirs = (
        raw.to_numpy().astype(np.float64) for raw in (contents.c_inv_i_star, contents.i_star, other.i_star)
    )
    assert apart.gates[0].similarity == pytest.approx(dual @ theirs / (dual @ mine), rel=1e-9)


def test_rows_that_mean_nearly_the_same_are_told(sd1: Any, tmp_path: Path) -> None:
    one = make_embedding(tmp_path / "a", sd1, "<a>", name="test/a", seed=5)
    rows = make_rows(sd1, "<b>", vectors=2, seed=5)
    contents = EmbeddingContents(
        rows={
            (component, rows.placeholder): from_torch(1.5 * values) for component, values in rows.rows.items()
        }
    )
    (tmp_path / "b").mkdir()
    write_embedding(tmp_path / "b" / EMBEDDING_NAME, contents)
    two: Concept = write_concept(
        tmp_path / "b",
        "test/b",
        describe_base(identify_pipeline(sd1)),
        {"kind": "embedding", "components": list(rows.rows)},
        files=[EMBEDDING_NAME],
        tokens=[{"placeholder": "<b>", "vectors": 2}],
    )
    other = make_embedding(tmp_path / "c", sd1, "<c>", name="test/c", seed=6)
    (found,) = check(one, two, pipeline=sd1)
    assert [(word.first, word.second, word.relation) for word in found.words] == [("<a>", "<b>", "similar")]
    assert found.words[0].cosine == pytest.approx(1.0, abs=1e-6)
    (apart,) = check(one, other, pipeline=sd1)
    assert (apart.words, apart.severity) == ((), "none")


def test_words_that_both_have_are_shared_or_renamed(sd1: Any, tmp_path: Path) -> None:
    plain = [make_lora(tmp_path / name, sd1, name=f"test/{name}", seed=len(name)) for name in ("a", "bb")]
    (found,) = check(*plain, pipeline=sd1)
    assert [(word.first, word.relation) for word in found.words] == [("zork", "shared")]
    expanded = [
        make_embedding(tmp_path / name, sd1, "<x>", name=f"test/{name}", seed=len(name))
        for name in ("ccc", "dddd")
    ]
    (renamed,) = check(*expanded, pipeline=sd1)
    assert [(word.second, word.relation) for word in renamed.words] == [("<x-2>", "renamed")]
    assert renamed.advice == ()
