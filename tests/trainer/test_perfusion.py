"""What Perfusion computes while it is trained, against the paper's formula in float64 (arXiv 2305.01644, eq. 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer import Composition, attach
from conceptry.composer.pipelines import encode_prompts, iter_cross_attention
from conceptry.manifest import RankOneMethod
from conceptry.trainer.events import ignore
from conceptry.trainer.images import scan_pictures
from conceptry.trainer.perfusion import Perfusion
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import OpenBase, prepare_run
from conceptry.trainer.training import train
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


@pytest.mark.parametrize("shape", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_globally_locked_keys_are_trained_locally_and_used_globally(shape: Shape, tmp_path: Path) -> None:
    """The saved file answers as the learner did in use, or ``train`` would have refused it."""
    pipeline = make_pipeline(shape)
    methods: dict[str, Any] = {}
    for lock in ("local", "global"):
        job = write_job("perfusion", tmp_path, name=f"tests/{lock}", settings={"key_lock": lock})
        done = train(job, workdir=tmp_path / lock, cache_folder=tmp_path / "cache", base=pipeline)
        (part,) = done.concept.manifest.builds[0].parts
        methods[lock] = (part.method, part.files[0].tensor_sha256)
    assert isinstance(methods["global"][0], RankOneMethod)
    assert methods["global"][0].key_lock == "global"
    assert methods["global"][0].gate.bias < methods["local"][0].gate.bias
    assert methods["global"][1] == methods["local"][1]


def test_trained_concepts_with_global_and_local_locks_are_used_together(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    made = {}
    for lock, word in (("local", "<imp>"), ("global", "<elf>")):
        job = write_job(
            "perfusion", tmp_path, name=f"tests/{lock}", placeholder=word, settings={"key_lock": lock}
        )
        made[lock] = train(
            job, workdir=tmp_path / lock, cache_folder=tmp_path / "cache", base=pipeline
        ).concept
    path, layer = next(iter_cross_attention(pipeline.unet))
    with attach(Composition(made["local"]), pipeline):
        states = encode_prompts(pipeline, ["a <imp> and a creature"]).detach()
        alone = layer.to_k(states).detach()
    with attach(Composition(made["local"], made["global"]), pipeline):
        states = encode_prompts(pipeline, ["a <imp> and a <elf>"]).detach()
        assert torch.allclose(layer.to_k(states), alone, atol=1e-4), path
