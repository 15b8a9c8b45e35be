"""Perfusion's global key lock: keys of the whole prompt with the superclass, values of the prompt as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer import Composition, attach
from conceptry.composer.emphasis import emphasized, join_pieces
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention
from conceptry.composer.prompts import parse_weights
from conceptry.composer.rank_one import encode_superclass
from conceptry.concepts import Concept
from tests.fakes.concepts import make_embedding, make_layered, make_rank_one
from tests.fakes.edits import context_width, make_covariance, make_edit
from tests.fakes.pipelines import assert_same, render, snapshot

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
PROMPT = "a photo of a <r> on grass"
LOCKED = "a photo of a cat on grass"


@contextmanager
def read_projections(pipeline: Any, path: str = LAYER) -> Iterator[dict[str, Tensor]]:
    """Gives what the key and value projections of a layer last answered."""
    seen: dict[str, Tensor] = {}
    layer = dict(iter_cross_attention(pipeline.unet))[path]
    handles = [
        layer.to_k.register_forward_hook(lambda _, args, output: seen.update(keys=output, read=args[0])),
        layer.to_v.register_forward_hook(lambda _, args, output: seen.update(values=output)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def draw(pipeline: Any, prompt: str | list[str], **options: Any) -> None:
    more = {"height": 16, "width": 16, "num_inference_steps": 1, "guidance_scale": 3.0, **options}
    pipeline(prompt, output_type="latent", **more)


def project(pipeline: Any, states: Tensor, path: str = LAYER) -> Tensor:
    keys: Tensor = dict(iter_cross_attention(pipeline.unet))[path].to_k(states)
    return keys.detach()


def make_pair(folder: Path, pipeline: Any, **fields: Any) -> tuple[Concept, Concept]:
    return (
        make_rank_one(folder / "r", pipeline, key_lock="global"),
        make_rank_one(folder / "q", pipeline, "<q>", seed=19, name="test/other", superclass="dog", **fields),
    )


def test_keys_are_of_the_prompt_with_the_superclass_and_values_of_the_prompt(
    pipeline: Any, tmp_path: Path
) -> None:
    plain = project(pipeline, encode_prompts(pipeline, ["a dog", LOCKED]).detach())
    before = snapshot(pipeline)
    concept = make_rank_one(tmp_path / "local", pipeline)
    with attach(Composition(concept), pipeline), read_projections(pipeline) as local:
        draw(pipeline, PROMPT, negative_prompt="a dog")
    concept = make_rank_one(tmp_path / "global", pipeline, key_lock="global")
    with attach(Composition(concept), pipeline) as report, read_projections(pipeline) as found:
        draw(pipeline, PROMPT, negative_prompt="a dog")
        assert not report.warnings
    assert torch.allclose(found["keys"], plain, atol=1e-5)
    assert torch.equal(found["keys"][0], plain[0])
    assert torch.equal(found["values"], local["values"])
    assert not torch.allclose(local["keys"][1], plain[1], atol=1e-2)
    assert_same(before, snapshot(pipeline))


def test_strength_moves_the_keys_in_proportion(sd1: Any, tmp_path: Path) -> None:
    concept = make_rank_one(tmp_path / "r", sd1, key_lock="global")
    locked = project(sd1, encode_prompts(sd1, [LOCKED]).detach())[0]
    keys = {}
    for strength in (0.5, 0.0):
        with attach(Composition(concept * strength), sd1), read_projections(sd1) as found:
            draw(sd1, PROMPT)
        keys[strength] = found["keys"][-1]
    assert not torch.allclose(keys[0.0], locked, atol=1e-2)
    assert torch.allclose(keys[0.5], (keys[0.0] + locked) / 2, atol=1e-5)


def test_two_words_give_way_together_and_the_stronger_one_first(sd1: Any, tmp_path: Path) -> None:
    first, second = make_pair(tmp_path, sd1, key_lock="global")
    prompt = "a <r> and a <q> on grass"
    both = project(sd1, encode_prompts(sd1, ["a cat and a dog on grass"]).detach())[0]
    with attach(Composition(first, second), sd1), read_projections(sd1) as found:
        draw(sd1, prompt)
        assert torch.allclose(found["keys"][-1], both, atol=1e-5)
    with attach(Composition(first * 0.0, second), sd1), read_projections(sd1) as found:
        draw(sd1, prompt)
        one = found["keys"][-1]
    with attach(Composition(first * 0.25, second), sd1), read_projections(sd1) as found:
        draw(sd1, prompt)
    assert torch.allclose(found["keys"][-1], one + 0.25 * (both - one), atol=1e-5)


def test_beside_it_a_concept_with_local_keys_keeps_its_own_lock(sd1: Any, tmp_path: Path) -> None:
    """Its edit (arXiv 2305.01644, eq. 3) is made of the prompt in which the other's word has given way."""
    first, second = make_pair(tmp_path, sd1)
    with attach(Composition(second), sd1), read_projections(sd1) as alone:
        draw(sd1, "a cat and a <q> on grass")
    with attach(Composition(first, second), sd1), read_projections(sd1) as found:
        draw(sd1, "a <r> and a <q> on grass")
    assert torch.allclose(found["keys"][-1], alone["keys"][-1], atol=1e-5)
    edit = make_edit(sd1, "<q>", seed=19)
    states = alone["read"][-1].double()
    dual = torch.linalg.solve(make_covariance(context_width(sd1)), edit.i_star.double())
    similar = states @ dual / (edit.i_star.double() @ dual)
    weight = dict(iter_cross_attention(sd1.unet))[LAYER].to_k.weight.detach().double()
    target = weight @ encode_superclass(sd1, "dog").double()
    opened = torch.sigmoid((similar - edit.bias) / edit.temperature)
    expected = (states - similar[:, None] * edit.i_star.double()) @ weight.T + opened[:, None] * target
    assert torch.allclose(found["keys"][-1].double(), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("order", [1, -1])
def test_a_word_with_vectors_for_each_layer_keeps_them_in_the_keys(
    sd1: Any, tmp_path: Path, order: int
) -> None:
    layered = make_layered(tmp_path / "p", sd1)
    concept = make_rank_one(tmp_path / "r", sd1, key_lock="global")
    paths = [path for path, _ in iter_cross_attention(sd1.unet)]
    expected, found = {}, {}
    for path in (paths[0], paths[-1]):
        with attach(Composition(layered), sd1), read_projections(sd1, path) as seen:
            draw(sd1, "a cat on a <p>")
            expected[path] = seen["keys"][-1]
        with attach(Composition(*[concept, layered][::order]), sd1), read_projections(sd1, path) as seen:
            draw(sd1, "a <r> on a <p>")
            found[path] = seen["keys"][-1]
    for path, keys in expected.items():
        assert torch.allclose(found[path], keys, atol=1e-5)


def test_words_with_vectors_for_each_layer_keep_them_in_prompts_beside_the_locked_one(
    sd1: Any, tmp_path: Path
) -> None:
    layered = make_layered(tmp_path / "p", sd1)
    concept = make_rank_one(tmp_path / "r", sd1, key_lock="global")
    prompts = ["a cat on a <p>", PROMPT]
    with attach(Composition(layered), sd1), read_projections(sd1) as alone:
        draw(sd1, prompts[:1])
    with attach(Composition(concept), sd1), read_projections(sd1) as locked:
        draw(sd1, prompts[1:])
    with attach(Composition(concept, layered), sd1), read_projections(sd1) as found:
        draw(sd1, prompts)
    assert torch.allclose(found["keys"][-2], alone["keys"][-1], atol=1e-5)
    assert torch.allclose(found["keys"][-1], locked["keys"][-1], atol=1e-5)


def test_prompts_without_the_word_keep_every_bit(sd1: Any, tmp_path: Path) -> None:
    other = make_embedding(tmp_path / "e", sd1, placeholder="<e>")
    with attach(Composition(other), sd1):
        plain = [render(sd1, prompt) for prompt in ("a cat, on grass", "a photo of a <e>")]
    concept = make_rank_one(tmp_path / "r", sd1, key_lock="global")
    with attach(Composition(concept, other), sd1):
        assert torch.equal(render(sd1, "a cat, on grass"), plain[0])
        assert torch.equal(render(sd1, "a photo of a <e>"), plain[1])
        assert not torch.equal(render(sd1, "a photo of a <r>"), plain[1])


def test_a_superclass_of_another_length_than_the_word_locks_keys_locally_and_says_so(
    sd1: Any, tmp_path: Path
) -> None:
    local = make_rank_one(tmp_path / "local", sd1, superclass="red cat")
    with attach(Composition(local), sd1):
        expected = render(sd1, PROMPT)
    concept = make_rank_one(tmp_path / "r", sd1, superclass="red cat", key_lock="global")
    with attach(Composition(concept), sd1) as report:
        (warning,) = report.warnings
        assert "locked locally, since 'red cat'" in warning
        assert torch.equal(render(sd1, PROMPT), expected)


@torch.no_grad()
def test_words_that_were_weighed_weigh_the_same_in_locked_keys_and_whenever_they_are_read_again(
    sd1: Any, tmp_path: Path
) -> None:
    """As prompts of regions, and of concepts each by itself, which are weighed before anything is drawn."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def weigh(prompt: str) -> Tensor:
        pieces = parse_weights(prompt)
        with emphasized(sd1, pieces):
            return encode_prompts(sd1, [join_pieces(pieces)])

    locked, plain = weigh("a photo of a (cat:1.6) on grass"), encode_prompts(sd1, [LOCKED])
    assert not torch.allclose(project(sd1, locked), project(sd1, plain), atol=1e-2)
    with attach(Composition(make_rank_one(tmp_path / "r", sd1, key_lock="global")), sd1):
        context = weigh("a photo of a (<r>:1.6) on grass")
        with read_projections(sd1) as found:
            sd1.unet(noise, 5, encoder_hidden_states=context)
    assert torch.allclose(found["keys"], project(sd1, locked), atol=1e-5)
    with attach(Composition(make_layered(tmp_path / "p", sd1)), sd1):
        pieces = parse_weights("a (<p>:1.6) on grass")
        with emphasized(sd1, pieces):
            context = encode_prompts(sd1, [join_pieces(pieces)])
            expected = sd1.unet(noise, 5, encoder_hidden_states=context).sample
        again = sd1.unet(noise, 5, encoder_hidden_states=context.clone()).sample
    assert torch.allclose(again, expected, atol=1e-4)
