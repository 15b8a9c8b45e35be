"""Merges that ask what the base reads: against dense truths in float64, and from concepts to a concept on a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conceptry.composer import Composition, attach, fuse, identify_pipeline, make_plan
from conceptry.composer.low_rank import LowRank
from conceptry.composer.merge_bases import merge_concepts
from conceptry.composer.merge_closed import choose_independent
from conceptry.composer.merge_inputs import gather_inputs
from conceptry.composer.merge_layers import Layer, MergeSettings
from conceptry.composer.merge_measures import measure_moments
from conceptry.composer.merge_methods import find_merge_method
from conceptry.composer.merging import Merged, MergeRequest, merge_layers
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError, UsageError
from conceptry.names import ConceptName, parse_version
from tests.fakes.concepts import make_full, make_lora
from tests.fakes.modules import FORMS, fits_layer, make_module

OUT, COLUMNS = 12, 16


def make_delta(seed: int, rank: int = 3) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(OUT, rank, generator=generator), torch.randn(rank, COLUMNS, generator=generator)
    )


def make_rows(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def widen(delta: LowRank) -> Any:
    return delta.up.double().numpy() @ delta.down.double().numpy()


def test_the_closed_form_keeps_every_words_values_and_is_nearest_on_ordinary_captions() -> None:
    deltas, rows, captions = (
        (make_delta(1), make_delta(2)),
        (make_rows(3, 4), make_rows(4, 5)),
        make_rows(5, 80),
    )
    regular = captions.T @ captions
    layer = Layer(name="unet.attn2.to_k", deltas=deltas, owners=(0, 1), inputs=rows, regular=regular)
    merged = find_merge_method("custom_diffusion").merge(layer).delta
    found, K = widen(merged), torch.cat(rows).numpy()
    wanted = np.concatenate(
        [widen(delta) @ one.numpy().T for delta, one in zip(deltas, rows, strict=True)], axis=1
    )
    assert np.abs(found @ K.T - wanted).max() <= 1e-6 * np.abs(wanted).max()
    # The conditions of Karush, Kuhn and Tucker, solved densely: [C K^T; K 0] [x; -mu] = [0; e] for each output.
    zeros = np.zeros((len(K), len(K)))
    system = np.block([[regular.numpy(), K.T], [K, zeros]])
    right = np.concatenate([np.zeros((COLUMNS, OUT)), wanted.T])
    expected = np.linalg.solve(system, right)[:COLUMNS].T
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert merged.rank == 9


def test_rows_that_repeat_others_are_left_out() -> None:
    rows = make_rows(1, 4)
    repeated = torch.cat([rows, rows[1:2], rows[0:1] + 2 * rows[3:4], make_rows(2, 1)])
    assert choose_independent(repeated @ repeated.T) == [0, 1, 2, 3, 6]


def test_ridge_fusion_is_the_least_squares_solution() -> None:
    deltas, inputs = (make_delta(1), make_delta(2)), (make_rows(3, 30), make_rows(4, 30))
    moments = tuple(rows.T @ rows for rows in inputs)
    layer = Layer(
        name="unet.attn1.to_q",
        deltas=deltas,
        owners=(0, 1),
        inputs=moments,
        settings=MergeSettings(ridge=0.01),
    )
    found = widen(find_merge_method("ridge").merge(layer).delta)
    weight = (0.01 * float(sum(moments).diagonal().mean())) ** 0.5  # type: ignore[union-attr]
    seen = np.concatenate([*(rows.numpy() for rows in inputs), weight * np.eye(COLUMNS)])
    wanted = np.concatenate(
        [
            *(rows.numpy() @ widen(delta).T for rows, delta in zip(inputs, deltas, strict=True)),
            np.zeros((COLUMNS, OUT)),
        ]
    )
    expected = np.linalg.lstsq(seen, wanted, rcond=None)[0].T
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_ridge_fusion_leaves_one_concept_as_it_is_where_it_was_seen() -> None:
    rows = make_rows(3, 60)
    layer = Layer(
        name="unet.attn1.to_q",
        deltas=(make_delta(1),),
        owners=(0,),
        inputs=(rows.T @ rows,),
        settings=MergeSettings(ridge=1e-9),
    )
    merged = widen(find_merge_method("ridge").merge(layer).delta)
    assert np.abs(merged - widen(make_delta(1))).max() < 1e-5


# --- on a pipeline ---------------------------------------------------------------------------------------------------


def merge_on(pipeline: Any, folder: Path, method: str, *weighted: Any, **settings: Any) -> Merged:
    composition = Composition(*weighted)
    plan = make_plan(composition, composition.members[0].concept.manifest.builds[0].base.identity)
    request = MergeRequest(
        name=ConceptName.parse("me/both"),
        version=parse_version("1.0.0"),
        method=find_merge_method(method),
        settings=MergeSettings(**settings),
    )
    captions = ("a cat", "a dog on a hill", "an old house by the sea")
    return merge_concepts(plan, request, folder / "merged", pipeline=pipeline, captions=captions)


def read_keys(pipeline: Any, concept: Any, prompt: str) -> list[torch.Tensor]:
    """What every layer that reads text makes of a prompt with a concept attached."""
    found = []

    def keep(layer: Any, args: Any, output: torch.Tensor) -> None:
        found.append(output.detach().clone())

    with attach(Composition(concept), pipeline), torch.no_grad():
        cross = [attention for _, attention in iter_cross_attention(pipeline.unet)]
        handles = [attention.to_k.register_forward_hook(keep) for attention in cross]
        encoded = encode_prompts(pipeline, [prompt])
        pipeline.unet(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=encoded)
        for handle in handles:
            handle.remove()
    return found


def test_custom_diffusion_concepts_become_one_in_which_each_word_keeps_its_keys(
    sd1: Any, tmp_path: Path
) -> None:
    concepts = [
        make_full(
            tmp_path / word,
            sd1,
            name=f"test/{word}",
            seed=seed,
            tokens=[{"placeholder": word, "vectors": 0, "superclass": "cat"}],
        )
        for seed, word in enumerate(("zork", "blib"))
    ]
    merged = merge_on(sd1, tmp_path, "custom_diffusion", *concepts)
    assert merged.concept.manifest.kinds == ("lora",)
    for concept, word in zip(concepts, ("zork", "blib"), strict=True):
        prompt = f"a photo of {word} cat"
        alone, together = (read_keys(sd1, one, prompt) for one in (concept, merged.concept))
        end = len(sd1.tokenizer(prompt)["input_ids"])
        start = end - 1 - len(sd1.tokenizer(f"{word} cat", add_special_tokens=False)["input_ids"])
        for mine, both in zip(alone, together, strict=True):
            error = (mine - both)[:, start:end].abs().max() / mine.abs().max()
            assert error < 1e-4


def test_ridge_fusion_comes_closer_to_each_concept_than_their_sum(sd1: Any, tmp_path: Path) -> None:
    concepts = [
        make_lora(tmp_path / name, sd1, name=f"test/{name}", placeholder=name, seed=seed)
        for seed, name in enumerate(("zork", "blib"))
    ]
    merged = merge_on(sd1, tmp_path, "ridge", *concepts)
    assert {row.rank for row in merged.rows} == {4}
    # Where each concept alone is seen, the merge differs from the plain sum.
    plan = make_plan(Composition(*concepts), identify_pipeline(sd1))
    inputs = gather_inputs(plan)
    name = next(name for name in inputs.factored if name.endswith("to_q"))
    moments = measure_moments(sd1, plan, [name], seed=1, progress=lambda label: None)[name]
    deltas = dict(inputs.factored[name])
    (row,) = [
        layer
        for path, layer in merge_layers(
            inputs,
            MergeRequest(
                name=ConceptName.parse("me/x"),
                version=parse_version("1.0.0"),
                method=find_merge_method("ridge"),
            ),
            {name: moments},
        ).items()
        if path == name
    ]
    total = sum(widen(delta) for delta in deltas.values())
    fused = widen(row.delta)

    def miss(whole: Any) -> float:
        return sum(
            float(
                np.trace(
                    (whole - widen(deltas[place])) @ moments[place].numpy() @ (whole - widen(deltas[place])).T
                )
            )
            for place in deltas
        )

    assert miss(fused) < miss(total)


def test_a_method_that_reads_the_base_asks_for_one(sd1: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs one"):
        merge_on(
            None, tmp_path, "ridge", make_lora(tmp_path / "a", sd1), make_lora(tmp_path / "b", sd1, seed=2)
        )


def test_a_concept_without_a_word_is_refused_where_words_are_kept(sd1: Any, tmp_path: Path) -> None:
    mute = make_full(tmp_path / "a", sd1, name="test/mute", tokens=[])
    other = make_full(tmp_path / "b", sd1, name="test/b")
    with pytest.raises(IncompatibleError, match=r"test/mute@1\.0\.0 has no word"):
        merge_on(sd1, tmp_path, "custom_diffusion", mute, other)


# --- whole differences ----------------------------------------------------------------------------------------------


def make_one(folder: Path, pipeline: Any, algorithm: str, form: int, strength: float, place: int) -> Any:
    """Returns a concept of one algorithm on a convolution and a linear layer, times a strength."""
    row, shapes = [(row, form) for _, row, form in FORMS if row.id == algorithm][form]
    paths = ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.resnets.0.conv1"]
    modules = {
        f"unet.{path}": make_module(row, shapes, size, seed=7 * place + len(path))
        for path in paths
        if fits_layer(row, shapes, size := tuple(pipeline.unet.get_submodule(path).weight.shape))
    }
    assert modules
    return (
        make_lora(folder, pipeline, name=f"test/c{place}", placeholder=f"w{place}", modules=modules)
        * strength
    )


def merge(folder: Path, *weighted: Any, method: str = "sum", pipeline: Any = None) -> Concept:
    """Returns the concept that a merge makes, as ``concepts merge`` does."""
    composition = Composition(*weighted)
    identity = composition.members[0].concept.manifest.builds[0].base.identity
    request = MergeRequest(
        name=ConceptName.parse("me/both"), version=parse_version("1.0.0"), method=find_merge_method(method)
    )
    return merge_concepts(make_plan(composition, identity), request, folder, pipeline=pipeline).concept


def fuse_weights(pipeline: Any, *concepts: Any) -> dict[str, torch.Tensor]:
    """Returns all weights and biases with concepts inside."""
    with fuse(Composition(*concepts), pipeline):
        return {name: value.double() for name, value in pipeline.unet.state_dict().items()}


def test_a_sum_of_several_structures_is_whole_and_with_a_base_takes_what_depends_on_it(
    sd1: Any, tmp_path: Path
) -> None:
    pieces = [
        ("lora", 0, 1.0),
        ("locon", 0, 0.7),
        ("loha", 1, 0.8),
        ("lokr", 0, -0.5),
        ("dora", 0, 0.6),
        ("oft", 0, 0.4),
    ]
    concepts = [make_one(tmp_path / str(place), sd1, *piece, place) for place, piece in enumerate(pieces)]
    concepts.append(make_full(tmp_path / "full", sd1, name="test/full") * 0.3)
    expected = fuse_weights(sd1, *concepts)
    merged = merge(tmp_path / "all", *concepts, pipeline=sd1)
    found = fuse_weights(sd1, merged)
    plain = {name: value.double() for name, value in sd1.unet.state_dict().items()}
    changed = [name for name in plain if not torch.equal(expected[name], plain[name])]
    assert len(changed) >= 4
    for name in plain:
        error = float((found[name] - expected[name]).abs().max())
        assert error <= 1e-6 * float(expected[name].abs().max()), name
    # Without a base, what is known without one: factors and whole differences of one layer.
    known = merge(tmp_path / "known", *concepts[:4])
    close_to = fuse_weights(sd1, *concepts[:4])
    for name, value in fuse_weights(sd1, known).items():
        assert float((value - close_to[name]).abs().max()) <= 1e-6 * float(close_to[name].abs().max()), name
    with pytest.raises(IncompatibleError, match="by factors, another by") as caught:
        merge(tmp_path / "ties", *concepts[:4], method="ties")
    assert "--method sum" in str(caught.value.hint)
