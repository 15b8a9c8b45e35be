"""Factors of several learners beside one layer, multiplied at once, against one learner after the other in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conceptry.composer.lora import DeltaHook, LoraFactors, LoraPatch
from conceptry.trainer import sharing, stacking
from conceptry.trainer.stacking import add_products
from conceptry.trainer.training import train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.test_many import measure_difference, run_many, write_jobs

KINDS = ("rows", "tokens", "convolution")


def make_layer(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "convolution":
        return nn.Conv2d(4, 6, 3, stride=2, padding=1).double().requires_grad_(False)
    return nn.Linear(7, 5).double().requires_grad_(False)


def make_input(kind: str, rows: int) -> torch.Tensor:
    shape = {"rows": (rows, 7), "tokens": (rows, 9, 7), "convolution": (rows, 4, 8, 8)}[kind]
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return made.requires_grad_(True)


def make_hooks(layer: Any, scales: list[float], *, rank: int = 3, dtype: Any = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(2)
    hooks = []
    for scale in scales:
        down = torch.randn((rank, *layer.weight.shape[1:]), generator=generator, dtype=dtype)
        up = torch.randn(
            (layer.weight.shape[0], rank, *[1] * (layer.weight.ndim - 2)), generator=generator, dtype=dtype
        )
        factors = LoraFactors(down.requires_grad_(True), up.requires_grad_(True), scale)
        hooks.append(DeltaHook(factors, LoraPatch(layer, {})))
    return hooks


@pytest.mark.parametrize(
    ("kind", "sizes"), [*((kind, [2, 2, 2]) for kind in KINDS), ("convolution", [1, 3, 2])]
)
def test_outputs_and_all_gradients_are_those_of_one_learner_after_the_other(
    kind: str, sizes: list[int]
) -> None:
    layer, hooks = make_layer(kind), make_hooks(make_layer(kind), [1.0, 0.5, 2.0])
    x = make_input(kind, sum(sizes))
    leaves = [x, *(factor for hook in hooks for factor in (hook.down, hook.up))]

    found = add_products(layer, hooks, sizes, x, layer(x))
    assert found is not None
    together = torch.autograd.grad(found.square().sum(), leaves)

    parts = zip(hooks, torch.split(x, sizes), torch.split(layer(x), sizes), strict=True)
    expected = torch.cat([hook(layer, (mine,), plain) for hook, mine, plain in parts])
    apart = torch.autograd.grad(expected.square().sum(), leaves)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(together, apart, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_one_product_is_left_to_each_learner() -> None:
    layer = make_layer("tokens")
    x = make_input("tokens", 4)
    mixed = [*make_hooks(layer, [1.0]), *make_hooks(layer, [1.0], rank=2)]
    single = [*make_hooks(layer, [1.0]), *make_hooks(layer, [1.0], dtype=torch.float32)]
    silent = make_hooks(layer, [1.0, 0.0])
    for hooks in (mixed, single, silent):
        assert add_products(layer, hooks, [2, 2], x, layer(x)) is None
    assert add_products(layer, make_hooks(layer, [1.0, 1.0]), [1, 3], x, layer(x)) is None


def test_loras_of_one_batch_are_multiplied_at_once_and_end_as_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []
    real = stacking.add_products

    def note(*args: Any) -> Any:
        found = real(*args)
        done.append(found is not None)
        return found

    monkeypatch.setattr(sharing, "add_products", note)
    base = make_pipeline()
    settings = {"batch_size": 2, "targets": ["attention", "feed_forward"]}
    jobs = write_jobs(tmp_path, ["lora"] * 2, steps=3, settings=settings)
    outcomes = run_many(tmp_path, jobs, base=base)
    assert done
    assert all(done)
    result = outcomes[1].result
    assert result is not None
    apart = train(jobs[1], base=base, workdir=tmp_path / "apart", cache_folder=tmp_path / "cache")
    assert measure_difference(result.folder, apart.folder) < 1e-5
