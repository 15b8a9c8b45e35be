"""What Perfusion computes while it is trained, against the paper's formula in float64 (arXiv 2305.01644, eq. 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer.pipelines import iter_cross_attention
from conceptry.trainer.events import ignore
from conceptry.trainer.images import scan_pictures
from conceptry.trainer.perfusion import Perfusion
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import OpenBase, prepare_run
from tests.fakes.pipelines import Shape, make_pipeline
from tests.trainer.runs import write_job


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_keys_values_and_their_gradients_are_those_of_the_formula(shape: Shape, tmp_path: Path) -> None:
    pipeline = make_pipeline(shape)
    job = write_job("perfusion", tmp_path)
    with prepared(pipeline):
        stage = prepare_run(
            job,
            scan_pictures(job.images),
            OpenBase(pipeline=pipeline),
            folder=tmp_path / "work",
            cache_folder=tmp_path / "cache",
            on_event=ignore,
        )
        learner = stage.learner
        assert isinstance(learner, Perfusion)
        path, attention = next(iter(iter_cross_attention(pipeline.unet)))
        with torch.no_grad():
            learner.o_v[path].add_(
                torch.randn(learner.o_v[path].shape, generator=torch.Generator().manual_seed(1))
            )
        with learner.attached():
            states = learner.condition(["a photo of a <imp>", "a picture of a <imp>"]).states
            states = states.detach().requires_grad_(True)
            keys, values = attention.to_k(states), attention.to_v(states)
            torch.autograd.backward(values.square().sum())

    exact = states.detach().double().requires_grad_(True)
    target = learner.o_v[path].detach().double().requires_grad_(True)
    expected = edit(learner, attention.to_v.weight, exact, target)
    torch.autograd.backward(expected.square().sum())
    locked = attention.to_k.weight.detach().double() @ learner.e_super.double()
    assert close(values, expected)
    assert close(keys, edit(learner, attention.to_k.weight, exact, locked))
    assert close(learner.o_v[path].grad, target.grad)
    assert close(states.grad, exact.grad)


def edit(learner: Perfusion, weight: Tensor, e: Tensor, target: Tensor) -> Tensor:
    """Returns W (e - i* s(e)) + o sigmoid((s(e) - bias) / temperature) with the gate of training."""
    gate = learner.context.job.settings.train_gate
    weight = weight.detach().double()
    i_star = learner.i_star.double()
    dual = learner.covariance.solve(learner.i_star.cpu())
    similar = (e @ dual) / (i_star @ dual)
    opened = torch.sigmoid((similar - gate.bias) / gate.temperature)
    return (e - similar[..., None] * i_star) @ weight.T + opened[..., None] * target


def close(found: Any, expected: Any) -> bool:
    assert found is not None
    assert expected is not None
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max())
    return bool(torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4 * scale))
