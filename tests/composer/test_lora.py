"""Low-rank deltas: the same numbers as the reference implementation, and no trace when they leave."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from conceptry.composer.lora import LoraFactors, LoraPatch
from conceptry.errors import IncompatibleError
from tests.fakes.edits import make_factors
from tests.fakes.pipelines import render

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
CONVOLUTION = "down_blocks.0.downsamplers.0.conv"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    return Pair()


@pytest.fixture
def factors(pair: Pair) -> dict[str, LoraFactors]:
    return make_factors(pair, ["linear", "conv"], rank=3, scale=0.7)


def test_the_output_is_that_of_peft(pair: Pair, factors: dict[str, LoraFactors]) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=3 * 0.7, target_modules=["linear", "conv"])
    reference = peft.get_peft_model(Pair(), config).base_model.model
    for name, one in factors.items():
        layer = getattr(reference, name)
        layer.lora_A["default"].weight.data = one.down.clone()
        layer.lora_B["default"].weight.data = one.up.clone()
    x, picture = torch.randn(2, 4, 6), torch.randn(2, 3, 8, 8)
    with LoraPatch(pair, factors):
        assert torch.allclose(pair.linear(x), reference.linear(x), atol=1e-6)
        assert torch.allclose(pair.conv(picture), reference.conv(picture), atol=1e-6)


def test_the_output_is_that_of_the_fused_weight_at_any_strength(
    pair: Pair, factors: dict[str, LoraFactors]
) -> None:
    x, picture = torch.randn(2, 4, 6), torch.randn(2, 3, 8, 8)
    for strength in (0.35, 1.0, -2.0):
        linear = pair.linear.weight + strength * factors["linear"].to_delta()
        conv = pair.conv.weight + strength * factors["conv"].to_delta()
        with LoraPatch(pair, factors, strength=strength):
            expected = nn.functional.linear(x, linear, pair.linear.bias)
            assert torch.allclose(pair.linear(x), expected, atol=1e-6)
            expected = nn.functional.conv2d(picture, conv, stride=2, padding=1)
            assert torch.allclose(pair.conv(picture), expected, atol=1e-6)


def test_several_patches_add_up_and_leave_in_any_order(pair: Pair, factors: dict[str, LoraFactors]) -> None:
    x = torch.randn(2, 6)
    plain = pair.linear(x)
    first, second = LoraPatch(pair, factors), LoraPatch(pair, factors, strength=2.0)
    first.attach()
    one = pair.linear(x) - plain
    second.attach()
    assert torch.allclose(pair.linear(x) - plain, 3 * one, atol=1e-6)
    first.detach()
    assert torch.allclose(pair.linear(x) - plain, 2 * one, atol=1e-6)
    second.detach()
    assert torch.equal(pair.linear(x), plain)


def test_a_patch_that_comes_back_finds_the_layers_that_are_there_now(
    pair: Pair, factors: dict[str, LoraFactors]
) -> None:
    x, outer = torch.randn(2, 6), nn.Sequential(pair)
    patch = LoraPatch(outer, {"0.linear": factors["linear"]})
    with patch:
        changed = pair.linear(x)
    with patch:
        assert torch.equal(pair.linear(x), changed)
    assert not pair.linear._forward_hooks
    other = Pair()
    outer[0] = other
    plain = [module.linear(x) for module in (pair, other)]
    with patch:
        assert torch.equal(pair.linear(x), plain[0])
        assert not torch.equal(other.linear(x), plain[1])
    assert not other.linear._forward_hooks


def test_gradients_reach_the_factors_and_not_the_weight(pair: Pair, factors: dict[str, LoraFactors]) -> None:
    pair.requires_grad_(False)
    factors["linear"].up.requires_grad_()
    with LoraPatch(pair, factors):
        (gradient,) = torch.autograd.grad(pair.linear(torch.randn(2, 6)).sum(), [factors["linear"].up])
    assert bool(gradient.any())
    assert not pair.linear.weight.requires_grad


def test_half_precision_layers_take_factors_in_full_precision(
    pair: Pair, factors: dict[str, LoraFactors]
) -> None:
    pair.to(torch.bfloat16)
    x = torch.randn(2, 6).bfloat16()
    with LoraPatch(pair, factors):
        assert pair.linear(x).dtype is torch.bfloat16


def test_strength_nought_keeps_every_bit_of_the_picture(sd1: Any) -> None:
    plain = render(sd1, "a cat")
    factors = make_factors(sd1.unet, [f"{ATTENTION}.to_q", CONVOLUTION])
    with LoraPatch(sd1.unet, factors, strength=0.0):
        assert torch.equal(render(sd1, "a cat"), plain)
    with LoraPatch(sd1.unet, factors):
        assert not torch.equal(render(sd1, "a cat"), plain)


def test_names_of_text_encoders_are_found_with_and_without_their_outer_level(pipeline: Any) -> None:
    level = "text_model." if hasattr(pipeline.text_encoder, "text_model") else ""
    (one,) = make_factors(pipeline.text_encoder, [f"{level}encoder.layers.0.mlp.fc1"]).values()
    pictures = []
    for path in ("text_model.encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc1"):
        with LoraPatch(pipeline.text_encoder, {path: one}):
            pictures.append(render(pipeline, "a cat"))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], render(pipeline, "a cat"))


@pytest.mark.parametrize("path", ["nothing.here", "linear.weight", ""])
def test_a_place_that_the_base_lacks_is_named(pair: Pair, factors: dict[str, LoraFactors], path: str) -> None:
    with pytest.raises(IncompatibleError, match="no linear or convolution layer"):
        LoraPatch(pair, {path: factors["linear"]}).attach()


def test_a_shape_of_another_base_is_refused_and_nothing_is_left(
    pair: Pair, factors: dict[str, LoraFactors]
) -> None:
    wrong = {"conv": factors["conv"], "linear": factors["conv"]}
    with pytest.raises(IncompatibleError, match="'linear'"):
        LoraPatch(pair, wrong).attach()
    assert not pair.conv._forward_hooks
