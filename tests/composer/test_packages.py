"""Packages of several parts: Custom Diffusion's keys and values with a word, words with the adapter beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer import Composition, attach, fuse
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.pipelines import UNET, iter_cross_attention
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.concepts import Concept
from conceptry.formats.embedding import EMBEDDING_NAME, read_embedding
from conceptry.formats.full import FullContents, write_full
from conceptry.formats.lora import LoraModule
from tests.fakes.concepts import describe_base, make_embedding, make_lora, write_concept
from tests.fakes.edits import make_factors
from tests.fakes.forwards import TOLERANCE, make_calm_pipeline, measure_difference, run_components
from tests.fakes.kinds import join_concepts
from tests.fakes.pipelines import assert_same, snapshot


@pytest.fixture(scope="module")
def calm() -> Any:
    return make_calm_pipeline("sd1")


def draw_new_projections(pipeline: Any) -> dict[str, Tensor]:
    """Returns new weights for the keys and values of all cross-attention, by their names in the UNet."""
    generator = torch.Generator().manual_seed(3)
    return {
        f"{path}.{name}.weight": layer.weight.detach()
        + 0.05 * torch.randn(layer.weight.shape, generator=generator)
        for path, attention in iter_cross_attention(pipeline.unet)
        for name, layer in (("to_k", attention.to_k), ("to_v", attention.to_v))
    }


def find_row(concept: Concept) -> Tensor:
    """Returns the one vector of a package's word."""
    (path,) = (concept.locate(file) for file in concept.manifest.iter_files() if file.path == EMBEDDING_NAME)
    (raw,) = read_embedding(path).rows.values()
    return to_torch(raw)[0]


def test_custom_diffusion_reads_its_word_through_its_own_keys_and_values(calm: Any, tmp_path: Path) -> None:
    """diffusers' own loader of these files returns without an error and changes nothing: checked.md."""
    new = draw_new_projections(calm)
    (tmp_path / "weights").mkdir()
    contents = FullContents(component=UNET, tensors={name: from_torch(one) for name, one in new.items()})
    write_full(tmp_path / "weights" / "unet.safetensors", contents)
    weights = write_concept(
        tmp_path / "weights",
        "test/weights",
        describe_base(identify_pipeline(calm)),
        {"kind": "full", "components": ["unet"], "changed_tensors": len(new), "total_tensors": 100},
        files=["unet.safetensors"],
        tokens=[],
    )
    word = make_embedding(tmp_path / "word", calm, "<new1>", vectors=1)
    concept = join_concepts(tmp_path / "both", word, weights)
    before = snapshot(calm, with_settings=False)
    expected = run_by_hand(calm, "a <new1> cat", find_row(concept), new)
    for put in (attach, fuse):
        with put(Composition(concept), calm) as report:
            assert report.words == ("<new1>",)
            assert measure_difference(run_components(calm, "a <new1> cat"), expected) <= TOLERANCE
        assert_same(before, snapshot(calm, with_settings=False))


@torch.no_grad()
def run_by_hand(pipeline: Any, prompt: str, row: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what the pipeline computes with ``weights`` copied in and ``row`` in the table for another word."""
    table = pipeline.text_encoder.get_input_embeddings().weight
    (number,) = pipeline.tokenizer("beach", add_special_tokens=False)["input_ids"]
    kept = table[number].clone()
    state = {name: value.clone() for name, value in pipeline.unet.state_dict().items() if name in weights}
    table[number] = row
    pipeline.unet.load_state_dict(weights, strict=False)
    found = run_components(pipeline, prompt.replace("<new1>", "beach"))
    table[number] = kept
    pipeline.unet.load_state_dict(state, strict=False)
    return found


def test_a_word_and_the_adapter_trained_beside_it_work_together(calm: Any, tmp_path: Path) -> None:
    path = next(path for path, _ in iter_cross_attention(calm.unet))
    (factors,) = make_factors(calm.unet, [f"{path}.to_v"], scale=1.0).values()
    module = LoraModule.of_factors(down=from_torch(factors.down), up=from_torch(factors.up), alpha=2.0)
    adapter = make_lora(tmp_path / "adapter", calm, modules={f"unet.{path}.to_v": module})
    word = make_embedding(tmp_path / "word", calm, "<new1>", vectors=1)
    concept = join_concepts(tmp_path / "both", word, adapter)
    weights = {f"{path}.to_v.weight": calm.unet.get_submodule(path).to_v.weight.detach() + factors.to_delta()}
    expected = run_by_hand(calm, "a <new1> cat", find_row(concept), weights)
    for put in (attach, fuse):
        with put(Composition(concept), calm):
            assert measure_difference(run_components(calm, "a <new1> cat"), expected) <= TOLERANCE
