"""Adapters against independent code: PEFT's layers, and formulas in float64."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from conceptry.bases import ComponentName
from conceptry.trainer.adapters import ADAPTERS, Adapter, Lightweight, Place

RANK, ALPHA = 3, 1.5


def make_layer(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Linear(7, 5).requires_grad_(False)
    return nn.Conv2d(4, 6, 3, stride=2, padding=1).requires_grad_(False)


def make_input(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 9, 7) if kind == "linear" else (2, 4, 8, 8), generator=generator)


def make_adapter(algorithm: str, layer: Any, rank: int = RANK) -> Adapter:
    place = Place(
        component=ComponentName("unet"),
        path="layer",
        layer=layer,
        rank=rank,
        alpha=ALPHA,
        frozen_outputs=4,
        frozen_inputs=3,
        generator=torch.Generator().manual_seed(2),
    )
    adapter = ADAPTERS[algorithm].make(place)
    with torch.no_grad():
        for index, parameter in enumerate(adapter.parameters.values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(noise, alpha=0.3)
    return adapter


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_outputs_and_gradients_are_those_of_peft(algorithm: str, kind: str) -> None:
    layer, x = make_layer(kind), make_input(kind)
    adapter = make_adapter(algorithm, layer)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_dora=algorithm == "dora")
    other = peft.get_peft_model(nn.Sequential(make_layer(kind)), config).base_model.model[0]
    with torch.no_grad():
        other.lora_A["default"].weight.copy_(adapter.parameters["down"])
        other.lora_B["default"].weight.copy_(adapter.parameters["up"])
        if algorithm == "dora":
            magnitude = other.lora_magnitude_vector["default"].weight
            magnitude.copy_(adapter.parameters["magnitude"].reshape(magnitude.shape))
    ours, theirs = adapter.change(x, layer(x)), other(x)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(ours.square().sum())
    torch.autograd.backward(theirs.square().sum())
    expected = {"down": other.lora_A["default"].weight.grad, "up": other.lora_B["default"].weight.grad}
    for name, gradient in expected.items():
        found = adapter.parameters[name].grad
        assert gradient is not None
        assert found is not None
        assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-3), name


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("algorithm", ["lora", "dora", "lidb"])
def test_the_output_is_that_of_the_weight_in_the_formula(algorithm: str, kind: str) -> None:
    layer = make_layer(kind).double()
    adapter = make_adapter(algorithm, layer)
    down, up = (factor.detach().double() for factor in adapter.factors)
    delta = ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
    weight = layer.weight + delta
    if algorithm == "dora":
        norm = weight.flatten(1).square().sum(dim=1).sqrt()
        magnitude = adapter.parameters["magnitude"].detach().double()
        weight = weight * (magnitude / norm).reshape(-1, *[1] * (weight.ndim - 1))
    x = make_input(kind).double()
    plain = layer(x)
    found = adapter.change(x, plain)
    layer.weight.copy_(weight)
    assert torch.allclose(found, layer(x), rtol=1e-5, atol=1e-5)


def test_at_the_start_no_algorithm_changes_anything() -> None:
    for algorithm in ADAPTERS:
        layer, x = make_layer("linear"), make_input("linear")
        place = Place(
            component=ComponentName("unet"),
            path="layer",
            layer=layer,
            rank=2,
            alpha=2.0,
            frozen_outputs=4,
            frozen_inputs=3,
            generator=torch.Generator().manual_seed(0),
        )
        adapter = ADAPTERS[algorithm].make(place)
        assert torch.allclose(adapter.change(x, layer(x)), layer(x), atol=1e-6), algorithm


def test_the_frozen_factors_of_lidb_are_orthonormal_and_far_fewer_numbers_are_trained() -> None:
    layer = nn.Linear(64, 32).requires_grad_(False)
    adapter = make_adapter("lidb", layer, rank=1)
    assert isinstance(adapter, Lightweight)
    assert torch.allclose(adapter.basis_up.T @ adapter.basis_up, torch.eye(4), atol=1e-5)
    assert torch.allclose(adapter.basis_down @ adapter.basis_down.T, torch.eye(3), atol=1e-5)
    assert sum(parameter.numel() for parameter in adapter.parameters.values()) == 4 + 3
    stored = adapter.to_module()
    assert (stored.down.shape, stored.up.shape) == ((1, 64), (32, 1))
