"""Each way of merging against an independent dense computation in float64; the package that comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.composer import Composition, make_plan
from conceptry.composer.low_rank import LowRank
from conceptry.composer.low_rank_modules import from_low_rank, to_low_rank
from conceptry.composer.merge_inputs import gather_inputs
from conceptry.composer.merge_layers import Layer, MergeSettings
from conceptry.composer.merge_methods import METHODS, find_merge_method
from conceptry.composer.merging import EXTENSION, Merged, MergeRequest, merge_layers, write_merge
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, UsageError
from conceptry.formats.deltas import dense_delta
from conceptry.formats.lora import LoraModule, read_lora
from conceptry.names import ConceptName, parse_version
from tests.fakes.concepts import make_embedding, make_full, make_lora, make_rank_one
from tests.fakes.modules import FORMS, make_module

SHAPE = (24, 20)
Array = np.ndarray[Any, np.dtype[np.float64]]


def make_deltas(count: int = 2, rank: int = 3, *, seed: int = 0) -> tuple[LowRank, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        LowRank(
            torch.randn(SHAPE[0], rank + place, generator=generator),
            torch.randn(rank + place, SHAPE[1], generator=generator),
        )
        for place in range(count)
    )


def merge(method: str, deltas: Sequence[LowRank], density: float = 1.0, **settings: Any) -> Any:
    layer = Layer(
        name="unet.mid.to_k",
        deltas=tuple(deltas),
        owners=tuple(range(len(deltas))),
        settings=MergeSettings(**settings),
        density=density,
    )
    return find_merge_method(method).merge(layer)


def dense(delta: LowRank) -> Array:
    product: Array = delta.up.double().numpy() @ delta.down.double().numpy()
    return product


def best(matrix: Array, rank: int) -> Array:
    """The nearest matrix of this rank, by the dense decomposition."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    nearest: Array = (left[:, :rank] * values[:rank]) @ right[:rank]
    return nearest


def close(found: Array, expected: Array, tolerance: float = 2e-6) -> None:
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def ties(deltas: list[Array], density: float) -> Array:
    """Algorithm 1 of arXiv 2306.01708, entry by entry."""
    kept = []
    for delta in deltas:
        floor = np.sort(np.abs(delta), axis=None)[-max(1, round(density * delta.size))]
        kept.append(np.where(np.abs(delta) >= floor, delta, 0.0))
    merged = np.zeros_like(kept[0])
    for place in np.ndindex(merged.shape):
        entries = [delta[place] for delta in kept]
        sign = np.sign(sum(entries))
        agreeing = [entry for entry in entries if entry and np.sign(entry) == sign]
        merged[place] = np.mean(agreeing) if agreeing else 0.0
    return merged


# --- against dense truths ------------------------------------------------------------------------------------------


def test_the_sum_is_exact_whatever_the_ranks() -> None:
    deltas = make_deltas(3)
    merged = merge("sum", deltas)
    close(dense(merged.delta), sum(map(dense, deltas), np.zeros(SHAPE)))
    assert merged.retained == 1.0
    assert merged.delta.rank == 3 + 4 + 5


def test_a_cut_sum_is_the_nearest_matrix_of_that_rank_and_says_what_it_retains() -> None:
    deltas = make_deltas(3)
    total = sum(map(dense, deltas), np.zeros(SHAPE))
    merged = merge("sum", deltas, rank=4)
    close(dense(merged.delta), best(total, 4), 5e-6)
    values = np.linalg.svd(total, compute_uv=False)
    assert merged.retained == pytest.approx((values[:4] ** 2).sum() / (values**2).sum(), rel=1e-5)
    assert merged.delta.rank == 4


def test_a_cut_of_more_columns_than_the_layer_has_is_the_nearest_matrix_too() -> None:
    deltas = make_deltas(3, rank=12)
    merged = merge("sum", deltas, rank=5)
    close(dense(merged.delta), best(sum(map(dense, deltas), np.zeros(SHAPE)), 5), 5e-6)


def test_opposite_deltas_cancel() -> None:
    (delta,) = make_deltas(1)
    merged = merge("sum", [delta, delta.scaled(-1.0)], rank=2)
    assert np.abs(dense(merged.delta)).max() < 1e-5
    assert merged.retained <= 1.0


def test_ties_is_algorithm_1_of_its_paper() -> None:
    deltas = make_deltas(3)
    expected = ties([dense(one) for one in deltas], 0.3)
    close(dense(merge("ties", deltas, 0.3, rank=20).delta), expected, 1e-5)
    cut = merge("ties", deltas, 0.3)
    assert cut.delta.rank == 12
    close(dense(cut.delta), best(expected, 12), 1e-5)
    assert cut.retained < 1.0


def test_ties_does_not_depend_on_how_a_delta_is_factored() -> None:
    first, second = make_deltas(2)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    same = LowRank(first.up @ turn, turn.T @ first.down)
    close(
        dense(merge("ties", [same, second], 0.3).delta),
        dense(merge("ties", [first, second], 0.3).delta),
        1e-4,
    )


def test_dare_drops_its_share_scales_the_rest_and_is_seeded() -> None:
    deltas = make_deltas(1, rank=20)
    merged, again, other = (
        dense(merge("dare", deltas, 0.25, rank=20, seed=seed).delta) for seed in (7, 7, 8)
    )
    assert np.array_equal(merged, again)
    whole = 4 * dense(deltas[0])
    kept = np.abs(merged - whole) < 1e-3
    dropped = np.abs(merged) < 1e-3
    assert np.all(kept | dropped)
    assert 0.15 < kept.mean() < 0.35
    assert not np.allclose(merged, other)


def test_dare_keeps_the_sum_on_average() -> None:
    deltas = make_deltas(2)
    runs = [dense(merge("dare", deltas, 0.5, rank=20, seed=seed).delta) for seed in range(200)]
    total = sum(map(dense, deltas), np.zeros(SHAPE))
    close(np.mean(runs, axis=0), total, 0.12)


def test_dare_ties_elects_among_what_was_left() -> None:
    deltas = make_deltas(2)
    left = [
        dense(merge("dare", [one], 0.5, rank=20, seed=3).delta) if place == 0 else None
        for place, one in enumerate(deltas)
    ]
    assert left[0] is not None
    # The second concept draws from its own generator, so that it is computed through the layer's own owner.
    layer = Layer(
        name="unet.mid.to_k",
        deltas=deltas[1:],
        owners=(1,),
        settings=MergeSettings(seed=3, rank=20),
        density=0.5,
    )
    second = dense(find_merge_method("dare").merge(layer).delta)
    expected = ties([np.where(np.abs(one) < 1e-4, 0.0, one) for one in (left[0], second)], 1.0)
    close(dense(merge("dare_ties", deltas, 0.5, rank=20, seed=3).delta), expected, 1e-4)


def test_knots_is_ties_in_the_singular_basis_of_the_dense_deltas_side_by_side() -> None:
    deltas = make_deltas(2)
    whole = np.concatenate([dense(one) for one in deltas], axis=1)
    left, values, right = np.linalg.svd(whole, full_matrices=False)
    rank = int((values > 1e-9 * values[0]).sum())
    coordinates = values[:rank, None] * right[:rank]
    merged = ties(np.split(coordinates, 2, axis=1), 0.3)
    close(dense(merge("knots", deltas, 0.3).delta), left[:, :rank] @ merged, 1e-4)


def test_an_orthogonal_merge_leaves_the_first_concept_undisturbed() -> None:
    first, second = make_deltas(2)
    merged = dense(merge("orthogonal", [first, second]).delta)
    seen = first.down.double().numpy()
    close(merged @ seen.T, dense(first) @ seen.T, 1e-5)
    others = np.eye(SHAPE[1]) - np.linalg.pinv(seen) @ seen
    close(merged @ others, dense(second) @ others, 1e-5)


def test_slots_are_summed_where_they_are_disjoint_and_refused_where_not() -> None:
    first, second = make_deltas(2)
    basis = torch.linalg.qr(torch.randn(20, 7, generator=torch.Generator().manual_seed(2)))[0].T
    mine, theirs = LowRank(first.up, basis[:3]), LowRank(second.up, basis[3:])
    close(dense(merge("slots", [mine, theirs]).delta), dense(mine) + dense(theirs))
    with pytest.raises(IncompatibleError, match=r"common inputs of unet\.mid\.to_k"):
        merge("slots", [first, second])


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.id)
def test_one_concept_alone_stays_as_it_is_where_nothing_is_dropped(row: Any) -> None:
    (delta,) = make_deltas(1)
    if row.reads == "nothing":
        close(dense(merge(row.id, [delta]).delta), dense(delta), 1e-5)


def test_an_unknown_way_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no way of merging called 'tie'") as caught:
        find_merge_method("tie")
    assert caught.value.hint is not None
    assert "ties" in caught.value.hint


# --- algorithms of the LoRA family -----------------------------------------------------------------------------------


def list_factored() -> list[Any]:
    """The forms whose delta is a product of factors, with the shapes of weights that they are for."""
    found = []
    for name, row, form in FORMS:
        cored = any(part.endswith(("_t1", "_t2", "lokr_w2")) for part in form.required)
        if row.id in ("lora", "locon", "loha", "lokr") and not cored:
            wide = row.id == "locon" or (row.id in ("loha", "lokr") and "*k" in str(form.required))
            shapes = [(16, 8, 3, 3)] if wide else [(16, 8)]
            found += [pytest.param(row, form, shape, id=f"{name} {len(shape)}") for shape in shapes]
    return found


@pytest.mark.parametrize(("row", "form", "shape"), list_factored())
def test_factors_of_every_algorithm_that_has_them_give_its_dense_delta(
    row: Any, form: Any, shape: tuple[int, ...]
) -> None:
    module = make_module(row, form, shape, seed=5)
    found = to_low_rank(module, torch.float64)
    expected = dense_delta(module, shape)
    assert found is not None
    assert expected is not None
    close(dense(found), expected.reshape(shape[0], -1), 1e-6)
    again = dense_delta(from_low_rank(found, torch.float64), shape)
    assert again is not None
    close(again.reshape(shape[0], -1), expected.reshape(shape[0], -1), 1e-6)


# --- packages --------------------------------------------------------------------------------------------------------


def merge_concepts(
    folder: Path, *weighted: Any, method: str = "sum", precision: str = "fp32", **settings: Any
) -> Merged:
    composition = Composition(*weighted)
    plan = make_plan(composition, composition.members[0].concept.manifest.builds[0].base.identity)
    request = MergeRequest(
        name=ConceptName.parse("me/both"),
        version=parse_version("1.0.0"),
        method=find_merge_method(method),
        settings=MergeSettings(**settings),
        precision=precision,
    )
    inputs = gather_inputs(plan)
    return write_merge(plan, inputs, merge_layers(inputs, request), request, folder / "merged")


def dense_modules(concept: Concept, shapes: Callable[[str], tuple[int, ...]]) -> dict[str, Array]:
    (part,) = [part for part in concept.manifest.builds[0].parts if part.kind == "lora"]
    modules = read_lora(concept.locate(part.files[0])).modules
    found = {name: dense_delta(module, shapes(name)) for name, module in modules.items()}
    return {name: delta for name, delta in found.items() if delta is not None}


def shape_in(pipeline: Any) -> Callable[[str], tuple[int, ...]]:
    def find(name: str) -> tuple[int, ...]:
        component, _, path = name.partition(".")
        root = getattr(pipeline, component)
        if not hasattr(root, "text_model"):
            path = path.removeprefix("text_model.")
        return tuple(root.get_submodule(path).weight.shape)

    return find


def test_a_merge_is_a_concept_that_attaches_as_both_did(sd1: Any, tmp_path: Path) -> None:
    first = make_lora(tmp_path / "a", sd1, name="test/a", seed=1, authors=["ann"], license={"spdx": "MIT"})
    second = make_lora(tmp_path / "b", sd1, name="test/b", seed=2, authors=["bob"], license={"spdx": "MIT"})
    merged = merge_concepts(tmp_path, first, second * 0.5)
    expected = [dense_modules(one, shape_in(sd1)) for one in (first, second)]
    for name, delta in dense_modules(merged.concept, shape_in(sd1)).items():
        close(delta, expected[0][name] + 0.5 * expected[1][name], 1e-6)
    manifest = merged.concept.manifest
    assert manifest.builds[0].provenance.source == "merged"
    assert manifest.builds[0].provenance.derived_from == (first.digest, second.digest)
    assert manifest.authors == ("ann", "bob")
    assert (manifest.license.spdx, manifest.license.permissions.commercial) == ("MIT", "yes")
    recipe: Any = manifest.extensions[EXTENSION]
    assert [row["strength"] for row in recipe["made_from"]] == [1.0, 0.5]
    assert recipe["method"] == "sum"


def test_the_same_merge_is_the_same_digest(sd1: Any, tmp_path: Path) -> None:
    concepts = [make_lora(tmp_path / name, sd1, name=f"test/{name}", seed=len(name)) for name in ("a", "bb")]
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    one, two = (
        merge_concepts(tmp_path / place, *concepts, method="dare", seed=5).concept.digest
        for place in ("one", "two")
    )
    assert one == two


def test_words_with_rows_are_carried_over_and_renamed_where_they_collide(sd1: Any, tmp_path: Path) -> None:
    concepts: list[Concept] = []
    for name in ("a", "b"):
        rows = make_embedding(tmp_path / f"{name}-rows", sd1, "<x>", seed=len(concepts))
        weights = make_lora(tmp_path / name, sd1, name=f"test/{name}", seed=len(concepts))
        concepts.append(_join(tmp_path / f"{name}-both", rows, weights, f"test/{name}"))
    merged = merge_concepts(tmp_path, *concepts)
    assert [token.placeholder for token in merged.concept.manifest.tokens] == ["<x>", "<x-2>"]
    assert merged.concept.manifest.kinds == ("embedding", "lora")


def _join(folder: Path, rows: Concept, weights: Concept, name: str) -> Concept:
    folder.mkdir()
    for concept in (rows, weights):
        for file in concept.manifest.iter_files():
            (folder / file.path).write_bytes(concept.locate(file).read_bytes())
    build = rows.manifest.builds[0].model_dump(mode="json")
    build["parts"] += weights.manifest.builds[0].model_dump(mode="json")["parts"]
    manifest = rows.manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    from conceptry.concepts import open_concept
    from conceptry.manifest import Manifest

    whole = Manifest.model_validate({**manifest, "name": name, "builds": [build]})
    (folder / "concept.json").write_bytes(whole.to_bytes())
    return open_concept(folder)


@pytest.mark.parametrize("make", [make_rank_one, make_full])
def test_what_cannot_be_merged_is_named_with_its_concept(sd1: Any, tmp_path: Path, make: Any) -> None:
    concepts = make_lora(tmp_path / "a", sd1), make(tmp_path / "b", sd1, name="test/other")
    with pytest.raises(IncompatibleError, match="cannot be merged") as caught:
        merge_concepts(tmp_path, *concepts)
    assert "test/other@1.0.0" in str(caught.value.where)
    assert not (tmp_path / "merged").exists()


def test_a_licence_that_allows_no_derivatives_forbids_a_merge(sd1: Any, tmp_path: Path) -> None:
    free = make_lora(tmp_path / "a", sd1, name="test/a", license={"spdx": "MIT"})
    tied = make_lora(tmp_path / "b", sd1, name="test/b", license={"spdx": "CC-BY-ND-4.0"}, seed=3)
    with pytest.raises(IncompatibleError, match=r"test/b@1\.0\.0 allows no derivatives"):
        merge_concepts(tmp_path, free, tied)
    assert not (tmp_path / "merged").exists()


def test_share_alike_is_the_licence_of_the_whole_and_an_unknown_one_stays_unknown(
    sd1: Any, tmp_path: Path
) -> None:
    free = make_lora(tmp_path / "a", sd1, name="test/a", license={"spdx": "MIT"})
    alike = make_lora(tmp_path / "b", sd1, name="test/b", license={"spdx": "CC-BY-SA-4.0"}, seed=3)
    silent = make_lora(tmp_path / "c", sd1, name="test/c", seed=4)
    assert merge_concepts(tmp_path, free, alike).concept.manifest.license.spdx == "CC-BY-SA-4.0"
    license = merge_concepts(tmp_path, free, silent).concept.manifest.license
    assert license.name == "several: MIT (test/a@1.0.0), unknown (test/c@1.0.0)"
    assert license.permissions.commercial == "unknown"


def test_a_delta_that_depends_on_the_base_is_refused_by_layer(sd1: Any, tmp_path: Path) -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    shape = tuple(sd1.unet.get_submodule(path).weight.shape)
    dora = next(make_module(row, form, shape) for _, row, form in FORMS if row.id == "dora")
    concept = make_lora(tmp_path / "a", sd1, modules={f"unet.{path}": dora})
    with pytest.raises(IncompatibleError, match=r"to_k is a dora, whose delta depends on the base's weight"):
        merge_concepts(tmp_path, concept, make_lora(tmp_path / "b", sd1, name="test/b"))


def test_differences_that_have_no_factors_are_summed_whole(sd1: Any, tmp_path: Path) -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    shape = tuple(sd1.unet.get_submodule(path).weight.shape)
    values = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    concepts = [
        make_lora(
            tmp_path / f"c{place}",
            sd1,
            name=f"test/c{place}",
            modules={
                f"unet.{path}": LoraModule(algorithm="full", parts={"diff": from_torch(value)}, rule="none")
            },
        )
        for place, value in enumerate(values)
    ]
    merged = merge_concepts(tmp_path, concepts[0], concepts[1] * -0.5)
    found = dense_modules(merged.concept, shape_in(sd1))[f"unet.{path}"]
    close(found, (values[0].double() - 0.5 * values[1].double()).numpy(), 1e-6)
