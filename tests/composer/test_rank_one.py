"""Perfusion's edit against independent formulas, and the samples that it must not touch."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer.lora import LoraFactors, LoraPatch
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention, list_text_encoders
from conceptry.composer.rank_one import RankOneEdit, RankOnePatch, encode_superclass
from conceptry.composer.tokens import TokenPatch
from conceptry.errors import IncompatibleError, InvalidPlaceholderError
from tests.fakes.edits import context_width, make_covariance, make_edit, make_factors, make_rows
from tests.fakes.pipelines import render

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def get_layer(pipeline: Any) -> Any:
    return dict(iter_cross_attention(pipeline.unet))[LAYER]


def project_apart(context: Tensor, inputs: Tensor, covariance: Tensor) -> Tensor:
    """Returns e_perp by appendix B of arXiv 2305.01644: a Cholesky factor of C^-1, then QR, all in float64."""
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    basis, _ = torch.linalg.qr(root.T @ inputs.T)
    directions = torch.linalg.solve(root.T, basis)
    projected: Tensor = context - (context @ torch.linalg.inv(covariance) @ directions) @ directions.T
    return projected


def expect_output(
    context: Tensor, weight: Tensor, edits: list[RankOneEdit], targets: list[Tensor], covariance: Tensor
) -> Tensor:
    inputs = torch.stack([edit.i_star.double() for edit in edits])
    output = project_apart(context.double(), inputs, covariance) @ weight.double().T
    for edit, target in zip(edits, targets, strict=True):
        dual = torch.linalg.solve(covariance, edit.i_star.double())
        similar = context.double() @ dual / (edit.i_star.double() @ dual)
        gate = torch.sigmoid((similar - edit.bias) / edit.temperature)
        output = output + gate[..., None] * target.double()
    return output


def make_correlated(pipeline: Any, count: int) -> list[RankOneEdit]:
    """Returns edits whose target inputs have cosines of about 0.8: independent projections would be far off."""
    covariance = make_covariance(context_width(pipeline))
    shared = torch.randn(context_width(pipeline), generator=torch.Generator().manual_seed(7))
    edits = []
    for number in range(count):
        edit = make_edit(pipeline, None, seed=20 + number)
        i_star = 2 * shared + edit.i_star
        dual = torch.linalg.solve(covariance, i_star.double()).float()
        edits.append(replace(edit, i_star=i_star, c_inv_i_star=dual, bias=0.5 + 0.1 * number))
    return edits


@pytest.mark.parametrize("count", [1, 2, 3])
def test_values_are_those_of_the_joint_projection_in_float64(pipeline: Any, count: int) -> None:
    edits = make_correlated(pipeline, count)
    layer = get_layer(pipeline)
    context = torch.randn(2, 5, context_width(pipeline), generator=torch.Generator().manual_seed(5))
    context[0, 0] = edits[0].i_star
    expected = expect_output(
        context,
        layer.to_v.weight.detach(),
        edits,
        [edit.o_v[LAYER] for edit in edits],
        make_covariance(context_width(pipeline)),
    )
    with RankOnePatch(pipeline, edits):
        found = layer.to_v(context)
    difference = (found.detach().double() - expected).abs().max()
    assert float(difference) <= 1e-6 * float(expected.abs().max())


def test_keys_are_locked_to_the_superclass(pipeline: Any) -> None:
    edits = make_correlated(pipeline, 2)
    layer = get_layer(pipeline)
    weight = layer.to_k.weight.detach()
    locked = weight @ encode_superclass(pipeline, "cat")
    context = torch.randn(2, 5, context_width(pipeline), generator=torch.Generator().manual_seed(5))
    expected = expect_output(
        context, weight, edits, [locked, locked], make_covariance(context_width(pipeline))
    )
    with RankOnePatch(pipeline, edits):
        found = layer.to_k(context)
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_locked_keys_follow_the_strength_of_what_is_in_the_text_encoder(sd1: Any) -> None:
    encoder, layer = list_text_encoders(sd1)[0], get_layer(sd1)
    path = next(name for name, one in encoder.module.named_modules() if name.endswith("q_proj"))
    context = torch.randn(1, 5, context_width(sd1), generator=torch.Generator().manual_seed(5))
    delta = LoraPatch(encoder.module, make_factors(encoder.module, [path], scale=4.0))
    delta.component = encoder.component
    found = []
    with torch.no_grad(), delta, RankOnePatch(sd1, [make_edit(sd1, None)]):
        for delta.strength in (1.0, 0.0):
            found.append(layer.to_k(context).clone())
    with torch.no_grad(), RankOnePatch(sd1, [make_edit(sd1, None)]):
        expected = layer.to_k(context)
    assert not torch.allclose(found[0], expected)
    assert torch.equal(found[1], expected)


def test_one_concept_gives_the_numbers_of_the_public_implementation(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in: Any = types.ModuleType(
        "open_clip"
    )  # the real one would bring another torch; only arithmetic is used
    stand_in.tokenizer = types.SimpleNamespace(tokenize=None)
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    from perfusion_pytorch.perfusion import Rank1EditModule

    edit = make_edit(sd1, None, bias=0.70, temperature=0.15)
    layer = get_layer(sd1)
    reference = Rank1EditModule(
        torch.nn.Linear(context_width(sd1), layer.to_v.weight.shape[0], bias=False),
        C=make_covariance(context_width(sd1)).float(),
        text_seq_len=5,
    ).eval()
    reference.weight = layer.to_v.weight
    reference.initted.fill_(True)
    reference.ema_concept_text_encs.copy_(edit.i_star[None])
    reference.concept_outputs.data.copy_(edit.o_v[LAYER][None])
    context = torch.randn(2, 5, context_width(sd1), generator=torch.Generator().manual_seed(6))
    with torch.no_grad(), RankOnePatch(sd1, [edit]):
        assert torch.allclose(layer.to_v(context), reference(context), rtol=1e-3, atol=1e-3)


def test_two_attachments_are_solved_together(sd1: Any) -> None:
    edits = make_correlated(sd1, 2)
    context = torch.randn(1, 5, context_width(sd1), generator=torch.Generator().manual_seed(5))
    layer = get_layer(sd1)
    with RankOnePatch(sd1, edits):
        together = layer.to_v(context)
    first, second = RankOnePatch(sd1, edits[:1]).attach(), RankOnePatch(sd1, edits[1:]).attach()
    assert torch.allclose(layer.to_v(context), together, atol=1e-5)
    first.detach()
    with RankOnePatch(sd1, []):
        alone = layer.to_v(context)
    second.detach()
    with RankOnePatch(sd1, edits[1:]):
        assert torch.allclose(layer.to_v(context), alone, atol=1e-6)


def test_strength_multiplies_the_whole_change(sd1: Any) -> None:
    edit = make_edit(sd1, None)
    context = torch.randn(1, 5, context_width(sd1), generator=torch.Generator().manual_seed(5))
    layer = get_layer(sd1)
    plain = layer.to_v(context)
    with RankOnePatch(sd1, [edit]):
        full = layer.to_v(context) - plain
    with RankOnePatch(sd1, [replace(edit, strength=0.4)]):
        assert torch.allclose(layer.to_v(context) - plain, 0.4 * full, atol=1e-5)
    with RankOnePatch(sd1, [replace(edit, strength=0.0)]):
        assert torch.equal(layer.to_v(context), plain)


def test_prompts_without_a_placeholder_keep_every_bit(pipeline: Any) -> None:
    prompts = ["a photo of a cat", "a dog, on grass", ""]
    plain = [render(pipeline, prompt) for prompt in prompts]
    tokens = TokenPatch(pipeline, [make_rows(pipeline, "<x>")])
    with tokens, RankOnePatch(pipeline, [make_edit(pipeline, "<x>")], presence=tokens.log):
        for prompt, expected in zip(prompts, plain, strict=True):
            assert torch.equal(render(pipeline, prompt), expected)
        assert not torch.equal(render(pipeline, "a photo of a <x>"), plain[0])


def test_a_concept_that_is_not_in_the_prompt_does_not_change_it(sd1: Any) -> None:
    tokens = [make_rows(sd1, "<x>"), make_rows(sd1, "<y>", seed=5)]
    first, second = make_edit(sd1, "<x>"), make_edit(sd1, "<y>", seed=6)
    alone = TokenPatch(sd1, tokens)
    with alone, RankOnePatch(sd1, [first], presence=alone.log):
        expected = render(sd1, "a <x> on grass")
    both = TokenPatch(sd1, tokens)
    with both, RankOnePatch(sd1, [first, second], presence=both.log):
        assert torch.equal(render(sd1, "a <x> on grass"), expected)
        assert not torch.equal(render(sd1, "a <x> and a <y>"), expected)


def capture_values(pipeline: Any, prompt: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Returns the context and the values [2, positions, out] of the first step of a guided picture."""
    seen: list[tuple[Tensor, Tensor]] = []
    layer = get_layer(pipeline)
    handle = layer.to_v.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    pipeline(
        prompt,
        height=16,
        width=16,
        num_inference_steps=1,
        guidance_scale=3.0,
        output_type="latent",
        **options,
    )
    handle.remove()
    return next(row for row in seen if len(row[0]) == 2)


@pytest.mark.parametrize("negative", [None, "a dog"])
def test_the_unconditional_half_of_guidance_is_not_edited(pipeline: Any, negative: str | None) -> None:
    weight = get_layer(pipeline).to_v
    tokens = TokenPatch(pipeline, [make_rows(pipeline, "<x>")])
    with tokens, RankOnePatch(pipeline, [make_edit(pipeline, "<x>")], presence=tokens.log):
        context, values = capture_values(pipeline, "a <x>", negative_prompt=negative)
    plain = weight(context)
    assert torch.equal(values[0], plain[0])
    assert not torch.allclose(values[1], plain[1], atol=1e-3)


def test_a_placeholder_in_the_negative_prompt_is_edited_there(sd1: Any) -> None:
    tokens = TokenPatch(sd1, [make_rows(sd1, "<x>")])
    with tokens, RankOnePatch(sd1, [make_edit(sd1, "<x>")], presence=tokens.log):
        context, values = capture_values(sd1, "a cat", negative_prompt="a <x>")
    plain = get_layer(sd1).to_v(context)
    assert not torch.allclose(values[0], plain[0], atol=1e-3)
    assert torch.equal(values[1], plain[1])


def test_an_encoding_from_elsewhere_counts_as_having_every_placeholder(sd1: Any) -> None:
    context = encode_prompts(sd1, ["a cat"]).detach() * 1.1
    layer = get_layer(sd1)
    plain = layer.to_v(context)
    tokens = TokenPatch(sd1, [make_rows(sd1, "<x>")])
    with tokens, RankOnePatch(sd1, [make_edit(sd1, "<x>")], presence=tokens.log):
        assert not torch.allclose(layer.to_v(context), plain, atol=1e-3)


def test_encodings_made_ahead_are_recognised(sd1: Any) -> None:
    plain = render(sd1, "a cat")
    tokens = TokenPatch(sd1, [make_rows(sd1, "<x>")])
    with tokens, RankOnePatch(sd1, [make_edit(sd1, "<x>")], presence=tokens.log):
        encoded = encode_prompts(sd1, ["a cat", ""]).detach()
        encode_prompts(sd1, ["a <x>", "a dog"])
        made = sd1(
            prompt_embeds=encoded[:1],
            negative_prompt_embeds=encoded[1:],
            height=16,
            width=16,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images
    assert torch.allclose(made, plain, atol=1e-4)


def test_keys_follow_a_lora_on_the_key_projection_in_either_order(sd1: Any) -> None:
    """Methods that are used with Perfusion move W_K; the locked key is W_K e_super of the merged weight."""
    layer = get_layer(sd1)
    factors: dict[str, LoraFactors] = make_factors(sd1.unet, [f"{LAYER}.to_k", f"{LAYER}.to_v"])
    edit = make_edit(sd1, None)
    context = torch.randn(1, 5, context_width(sd1), generator=torch.Generator().manual_seed(5))
    merged = layer.to_k.weight.detach() + factors[f"{LAYER}.to_k"].to_delta()
    locked = merged @ encode_superclass(sd1, "cat")
    expected = expect_output(context, merged, [edit], [locked], make_covariance(context_width(sd1)))
    for patches in (
        [LoraPatch(sd1.unet, factors), RankOnePatch(sd1, [edit])],
        [RankOnePatch(sd1, [edit]), LoraPatch(sd1.unet, factors)],
    ):
        with patches[0], patches[1]:
            found = layer.to_k(context)
        assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_gradients_reach_value_targets_and_the_encoding_but_not_the_target_input(sd1: Any) -> None:
    edit = make_edit(sd1, None)
    edit.o_v[LAYER].requires_grad_()
    context = torch.randn(1, 5, context_width(sd1), requires_grad=True)
    with RankOnePatch(sd1, [edit]):
        output = get_layer(sd1).to_v(context).square().sum()
    gradients = torch.autograd.grad(output, [edit.o_v[LAYER], context])
    assert all(bool(gradient.any()) for gradient in gradients)


def test_a_target_input_that_moves_in_place_is_seen_at_the_next_call(sd1: Any) -> None:
    edit = make_edit(sd1, None)
    context = torch.randn(1, 5, context_width(sd1))
    context[0, 0] = edit.i_star
    layer = get_layer(sd1)
    with RankOnePatch(sd1, [edit]):
        before = layer.to_v(context)
        edit.i_star.mul_(1.3)
        edit.c_inv_i_star.mul_(0.7)
        assert not torch.allclose(layer.to_v(context), before, atol=1e-3)


def test_half_precision_pipelines_are_edited_in_their_own_precision(sd1: Any) -> None:
    layer = get_layer(sd1)
    context = torch.randn(1, 5, context_width(sd1))
    with torch.no_grad(), RankOnePatch(sd1, [make_edit(sd1, None)]):
        expected = layer.to_v(context)
        weight = layer.to_v.weight.data
        layer.to_v.weight.data = weight.bfloat16()
        found = layer.to_v(context.bfloat16())
        layer.to_v.weight.data = weight
    assert found.dtype is torch.bfloat16
    assert torch.allclose(found.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_a_superclass_of_several_tokens_is_read_at_its_last(sd1: Any) -> None:
    assert encode_superclass(sd1, "red cat").shape == (context_width(sd1),)


def test_a_superclass_beyond_the_end_of_its_sentence_is_named(sd1: Any) -> None:
    with pytest.raises(InvalidPlaceholderError, match="not among the tokens"):
        encode_superclass(sd1, "creature " * 30)


@pytest.mark.parametrize("change", ["missing", "unknown", "width"])
def test_an_edit_of_another_base_is_refused_and_leaves_no_hook(sd1: Any, change: str) -> None:
    edit = make_edit(sd1, None)
    o_v = dict(edit.o_v)
    if change == "missing":
        del o_v[LAYER]
    elif change == "unknown":
        o_v["elsewhere.attn2"] = o_v[LAYER]
    else:
        o_v[LAYER] = o_v[LAYER][:-1]
    with pytest.raises(IncompatibleError):
        RankOnePatch(sd1, [replace(edit, o_v=o_v)]).attach()


def test_mixed_precision_does_not_blur_where_a_gate_opens(sd1: Any) -> None:
    edit = make_edit(sd1, None)
    context = torch.randn(1, 5, context_width(sd1))
    context[0, 0] = edit.i_star
    layer = get_layer(sd1)
    with torch.no_grad(), RankOnePatch(sd1, [edit]):
        expected = layer.to_v(context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = layer.to_v(context.clone())
    assert torch.allclose(found.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
