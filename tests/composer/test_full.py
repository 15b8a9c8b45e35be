"""Whole weights exchanged and given back bit for bit."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from conceptry.composer.full import FullPatch, read_original
from conceptry.errors import IncompatibleError
from tests.fakes.pipelines import render

NAME = "mid_block.resnets.0.conv1.weight"


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def test_the_picture_is_that_of_the_new_weights(sd1: Any) -> None:
    plain = render(sd1, "a cat")
    weight = sd1.unet.get_parameter(NAME)
    new = weight.detach() + 0.3
    with FullPatch(sd1.unet, {NAME: new}):
        assert torch.equal(weight, new)
        assert not torch.equal(render(sd1, "a cat"), plain)
    assert torch.equal(render(sd1, "a cat"), plain)


def test_strength_is_the_way_from_the_base_to_the_new_values(layer: nn.Linear) -> None:
    old = layer.weight.detach().clone()
    new = torch.randn_like(old)
    for strength in (0.0, 0.5, 1.5):
        with FullPatch(layer, {"weight": new}, strength=strength):
            assert torch.allclose(layer.weight, old + strength * (new - old), atol=1e-6)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_patches_add_up_and_leave_in_any_order(layer: nn.Linear, order: tuple[int, ...]) -> None:
    old, memory = layer.weight.detach().clone(), layer.weight.data_ptr()
    news = [torch.randn_like(old) for _ in range(3)]
    patches = [FullPatch(layer, {"weight": new}).attach() for new in news]
    assert torch.allclose(layer.weight, old + sum(new - old for new in news), atol=1e-5)
    for number in order[:2]:
        patches[number].detach()
    assert torch.equal(layer.weight, news[order[2]])
    assert torch.equal(read_original(layer.weight), old)
    patches[order[2]].detach()
    assert torch.equal(layer.weight, old)
    assert layer.weight.data_ptr() == memory


def test_a_pipeline_that_changed_precision_meanwhile_keeps_it(layer: nn.Linear) -> None:
    old = layer.weight.detach().clone()
    patch = FullPatch(layer, {"weight": torch.randn_like(old)}).attach()
    layer.to(torch.bfloat16)
    patch.detach()
    assert torch.equal(layer.weight, old.bfloat16())


def test_the_optimiser_s_parameter_stays_the_same_object(layer: nn.Linear) -> None:
    weight = layer.weight
    with FullPatch(layer, {"weight": torch.zeros(3, 4), "bias": torch.ones(3)}):
        assert layer.weight is weight
        assert weight.requires_grad


@pytest.mark.parametrize(("name", "shape"), [("weight", (4, 4)), ("other", (3, 4)), ("deep.weight", (3, 4))])
def test_a_tensor_of_another_base_is_refused_and_nothing_is_changed(
    layer: nn.Linear, name: str, shape: tuple[int, ...]
) -> None:
    old = layer.bias.detach().clone()
    with pytest.raises(IncompatibleError, match=repr(name)):
        FullPatch(layer, {"bias": torch.ones(3), name: torch.zeros(shape)}).attach()
    assert torch.equal(layer.bias, old)
