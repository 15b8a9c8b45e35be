"""Words with vectors for each cross-attention layer (P+, XTI): every layer reads the prompt with its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer import Composition, attach
from conceptry.composer.layered import LayeredPatch
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention, list_text_encoders
from conceptry.composer.tensors import to_torch
from conceptry.composer.tokens import TokenPatch, TokenRows
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from conceptry.formats.embedding import read_embedding
from conceptry.names import Placeholder
from tests.fakes.concepts import make_embedding, make_layered, make_lora, make_rank_one
from tests.fakes.edits import make_rows
from tests.fakes.pipelines import assert_same, render, snapshot

PROMPT = "a photo of a <p> on grass"


@contextmanager
def read_layers(pipeline: Any) -> Iterator[dict[str, Tensor]]:
    """Gives what each cross-attention layer was last given to read."""
    seen: dict[str, Tensor] = {}
    handles = []
    for path, attention in iter_cross_attention(pipeline.unet):

        def keep(_: Any, args: Any, __: Any, path: str = path) -> None:
            seen[path] = args[0]

        handles.append(attention.to_v.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def encode_with_layer(pipeline: Any, concept: Concept, number: int, prompt: str) -> Tensor:
    """Returns the encoding of ``prompt`` with the vectors of one layer in the table, as textual inversion has them."""
    (file,) = concept.manifest.builds[0].parts[0].files
    rows = {
        component: to_torch(raw)[number]
        for (component, _), raw in read_embedding(concept.locate(file)).rows.items()
    }
    with TokenPatch(pipeline, [TokenRows(Placeholder("<p>"), rows)]), torch.no_grad():
        return encode_prompts(pipeline, [prompt])


@pytest.mark.parametrize("vectors", [1, 3])
def test_every_layer_reads_the_prompt_with_its_own_vectors(
    pipeline: Any, tmp_path: Path, vectors: int
) -> None:
    concept = make_layered(tmp_path / "p", pipeline, vectors=vectors)
    paths = [path for path, _ in iter_cross_attention(pipeline.unet)]
    expected = {
        path: encode_with_layer(pipeline, concept, number, PROMPT) for number, path in enumerate(paths)
    }
    plain = encode_prompts(pipeline, ["a dog"]).detach()
    with attach(Composition(concept), pipeline), read_layers(pipeline) as seen:
        pipeline(
            PROMPT,
            negative_prompt="a dog",
            height=16,
            width=16,
            num_inference_steps=1,
            guidance_scale=3.0,
            output_type="latent",
        )
    for path in paths:
        assert torch.allclose(seen[path][1], expected[path][0], atol=1e-5)
        assert torch.equal(seen[path][0], plain[0])
    assert not torch.allclose(expected[paths[0]], expected[paths[1]], atol=1e-2)


def test_equal_vectors_in_all_layers_are_a_plain_embedding(sd1: Any, tmp_path: Path) -> None:
    rows = make_rows(sd1, "<p>", vectors=2)
    layers = tuple(path for path, _ in iter_cross_attention(sd1.unet))
    repeated = {name: values.expand(len(layers), *values.shape) for name, values in rows.rows.items()}
    with TokenPatch(sd1, [rows]):
        expected = render(sd1, PROMPT)
    tokens = TokenPatch(sd1, [TokenRows(rows.placeholder, repeated, layers=layers)])
    with tokens, LayeredPatch(sd1, tokens, layers):
        assert torch.allclose(render(sd1, PROMPT), expected, atol=1e-4)


def test_prompts_without_the_word_keep_every_bit(sd1: Any, tmp_path: Path) -> None:
    plain = render(sd1, ["a cat", "a dog"])
    before = snapshot(sd1, with_settings=False)
    with attach(Composition(make_layered(tmp_path / "p", sd1)), sd1):
        assert torch.equal(render(sd1, ["a cat", "a dog"]), plain)
        both = render(sd1, ["a cat", PROMPT])
        assert torch.allclose(both[0], plain[0], atol=1e-4)
        assert not torch.allclose(both[1], plain[1], atol=1e-2)
    assert_same(before, snapshot(sd1, with_settings=False))


def test_concepts_of_several_sorts_share_a_prompt(sd1: Any, tmp_path: Path) -> None:
    first = make_layered(tmp_path / "p", sd1)
    second = make_layered(tmp_path / "q", sd1, "<q>", name="test/second", seed=40)
    others = [
        make_embedding(tmp_path / "e", sd1),
        make_rank_one(tmp_path / "r", sd1),
        make_lora(tmp_path / "l", sd1),
    ]
    prompt = "a <p> and a <q> and a <e> and a <r>"
    before = snapshot(sd1, with_settings=False)
    with attach(Composition(first, second, *others), sd1):
        together = render(sd1, prompt)
    with attach(Composition(second), sd1), attach(Composition(*others), sd1), attach(Composition(first), sd1):
        assert torch.allclose(render(sd1, prompt), together, rtol=1e-3, atol=1e-2)
    with attach(Composition(first, second * 0.2, *others), sd1):
        assert not torch.allclose(render(sd1, prompt), together, rtol=1e-3, atol=1e-2)
    assert_same(before, snapshot(sd1, with_settings=False))


def test_at_strength_nought_it_reads_as_its_superclass(sd1: Any, tmp_path: Path) -> None:
    plain = render(sd1, "a photo of a cat on grass")
    with attach(Composition(make_layered(tmp_path / "p", sd1) * 0.0), sd1):
        assert torch.allclose(render(sd1, PROMPT), plain, atol=1e-4)


def test_an_encoding_from_elsewhere_is_refused_with_what_to_do(sd1: Any, tmp_path: Path) -> None:
    elsewhere = encode_prompts(sd1, ["a cat"]).detach() * 1.1
    latents = torch.randn(1, 4, 8, 8)
    with attach(Composition(make_layered(tmp_path / "p", sd1)), sd1):
        with pytest.raises(IncompatibleError, match="text encoding") as caught:
            sd1.unet(latents, 10, encoder_hidden_states=elsewhere)
        assert "prompt=" in str(caught.value.hint)


def test_layers_that_the_base_lacks_are_named(sd1: Any, tmp_path: Path) -> None:
    concept = make_layered(tmp_path / "p", sd1, layers=("down_blocks.9.attn2", "mid_block.attn2"))
    before = snapshot(sd1, with_settings=False)
    with pytest.raises(IncompatibleError, match=r"down_blocks\.9\.attn2"):
        attach(Composition(concept), sd1)
    assert_same(before, snapshot(sd1, with_settings=False))


def test_gradients_reach_the_vectors_of_every_layer(pipeline: Any) -> None:
    layers = tuple(path for path, _ in iter_cross_attention(pipeline.unet))
    rows = {
        encoder.component: torch.randn(len(layers), 1, encoder.table.embedding_dim).requires_grad_()
        for encoder in list_text_encoders(pipeline)
    }
    tokens = TokenPatch(pipeline, [TokenRows(Placeholder("<p>"), rows, layers=layers)])
    with tokens, LayeredPatch(pipeline, tokens, layers):
        context = encode_prompts(pipeline, [PROMPT])
        outputs = [
            attention.to_k(context).square().mean() for _, attention in iter_cross_attention(pipeline.unet)
        ]
        torch.stack(outputs).sum().backward()  # type: ignore[no-untyped-call]
    for values in rows.values():
        assert values.grad is not None
        assert bool((values.grad.flatten(1).abs().sum(dim=1) > 0).all())
