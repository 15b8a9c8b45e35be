"""Keys and values are made once a prompt, and made again whenever anything changed that they depend on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer.full import FullPatch
from conceptry.composer.hypernetworks import HypernetworkPatch, Network, Pair
from conceptry.composer.lora import LoraFactors, LoraPatch
from conceptry.composer.pipelines import iter_cross_attention
from conceptry.composer.rank_one import RankOnePatch
from conceptry.composer.tables import Tables
from tests.fakes.edits import context_width, make_edit, make_factors, make_generator

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
KEYS, VALUES = f"{LAYER}.to_k", f"{LAYER}.to_v"


class Setting:
    """A pipeline with an edit, low-rank deltas and new weights on one layer, which reads one encoding."""

    def __init__(self, pipeline: Any) -> None:
        self.attention = dict(iter_cross_attention(pipeline.unet))[LAYER]
        self.edit = RankOnePatch(pipeline, [make_edit(pipeline, None)])
        self.before = LoraPatch(pipeline.unet, make_factors(pipeline.unet, [KEYS, VALUES]))
        self.after = LoraPatch(pipeline.unet, make_factors(pipeline.unet, [KEYS, VALUES], seed=9))
        self.weight = FullPatch(
            pipeline.unet, {f"{KEYS}.weight": torch.randn_like(self.attention.to_k.weight.data)}, strength=0.5
        )
        self.network = HypernetworkPatch(pipeline.unet, {LAYER: _make_pair(context_width(pipeline))})
        self.context = torch.randn(2, 5, context_width(pipeline), generator=make_generator(5))

    @property
    def patches(self) -> list[Any]:
        return [self.network, self.weight, self.before, self.edit, self.after]

    def read(self) -> Tensor:
        """Return keys and values as a denoiser reads them while it draws."""
        with torch.no_grad():
            return torch.stack([self.attention.to_k(self.context), self.attention.to_v(self.context)])

    def read_anew(self) -> Tensor:
        """Return the same where gradients flow, so that nothing is kept."""
        return torch.stack([self.attention.to_k(self.context), self.attention.to_v(self.context)]).detach()


def _make_pair(width: int) -> Pair:
    def make(seed: int) -> Network:
        made = Network([], "linear", activate_output=False)
        layer = {
            "weight": torch.randn(width, width, generator=make_generator(seed)),
            "bias": torch.zeros(width),
        }
        made._layers.append(layer)
        return made

    return Pair(make(31), make(32))


@pytest.fixture
def setting(sd1: Any) -> Any:
    """Give the setting, and take everything out after the test."""
    made = Setting(sd1)
    for patch in made.patches:
        patch.attach()
    yield made
    for patch in reversed(made.patches):
        patch.detach()


def _write(target: Tensor) -> None:
    with torch.no_grad():
        target.mul_(1.5)


CHANGES: dict[str, Callable[[Setting], object]] = {
    "nothing": lambda setting: None,
    "strength of the edit": lambda setting: setattr(setting.edit, "strength", 0.4),
    "strength of a delta before it": lambda setting: setattr(setting.before, "strength", 0.3),
    "strength of a delta behind it": lambda setting: setattr(setting.after, "strength", 0.3),
    "strength of new weights": lambda setting: setattr(setting.weight, "strength", 0.9),
    "strength of a network": lambda setting: setattr(setting.network, "strength", 0.2),
    "a delta that goes": lambda setting: setting.before.detach(),
    "values under training": lambda setting: _write(setting.edit.edits[0].o_v[LAYER]),
    "the target input": lambda setting: _write(setting.edit.edits[0].i_star),
    "the encoding itself": lambda setting: _write(setting.context),
    "somebody's own weights": lambda setting: _write(setting.attention.to_v.weight),
    "who reads them writes into them": lambda setting: _write(setting.read()),
    "another encoding": lambda setting: setattr(setting, "context", setting.context + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_what_they_depend_on_makes_them_anew(setting: Setting, change: str) -> None:
    weight = setting.attention.to_v.weight
    kept = weight.data.clone()
    assert torch.equal(setting.read(), setting.read_anew())
    CHANGES[change](setting)
    for _ in range(2):
        assert torch.equal(setting.read(), setting.read_anew())
    weight.data.copy_(kept)


def test_layers_are_asked_once_a_prompt(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forward = setting.attention.to_k.forward

    def count(x: Tensor) -> Tensor:
        asked.append(len(x))
        return forward(x)  # type: ignore[no-any-return]  # of torch

    monkeypatch.setattr(setting.attention.to_k, "forward", count)
    setting.read()
    first = len(asked)
    for _ in range(3):
        setting.read()
    assert first == 2  # the prompt, and what the edit asks of the layer
    assert len(asked) == first + 3


def test_hooks_and_factors_that_might_change_unseen_are_asked_each_time(setting: Setting) -> None:
    grow = [0.0]
    own = setting.attention.to_k.register_forward_hook(lambda _, __, output: output + grow[0])
    try:
        for grow[0] in (0.0, 1.0, 2.0):
            assert torch.equal(setting.read(), setting.read_anew())
    finally:
        own.remove()
    factors = make_factors(setting.before._root, [VALUES], seed=12)
    trained = {path: _train(one) for path, one in factors.items()}
    with LoraPatch(setting.before._root, trained):
        before = setting.read()
        _write(trained[VALUES].up)
        assert not torch.equal(setting.read(), before)
        assert torch.equal(setting.read(), setting.read_anew())


def _train(factors: LoraFactors) -> LoraFactors:
    return LoraFactors(factors.down.requires_grad_(), factors.up.requires_grad_(), factors.scale)


def test_tables_go_with_the_encoding() -> None:
    tables, encoding = Tables(), torch.zeros(2)
    with torch.no_grad():
        tables.keep("place", encoding, (1,), made := torch.ones(2))
    assert tables.find("place", encoding, (1,)) is made
    assert tables.find("place", encoding, (2,)) is None
    assert tables.find("place", torch.zeros(2), (1,)) is None
    assert tables.find("place", encoding, None) is None
    del encoding
    gc.collect()
    assert len(tables) == 0
