from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.errors import TrainingError
from conceptry.trainer import doctor
from conceptry.trainer.preparation import plain_attention, prepared
from conceptry.trainer.staging import Stage
from conceptry.trainer.training import train
from tests.fakes.pipelines import assert_same, make_pipeline, snapshot
from tests.trainer.runs import stage_job, write_job


def stage(method: str, folder: Path, base: Any, **changes: Any) -> Stage:
    return stage_job(write_job(method, folder, **changes), folder, base)


def count_saved_bytes(ready: Stage, samples: int) -> int:
    """What a real forward pass keeps for the backward pass, counted at the tensors themselves."""
    saved: dict[int, Any] = {}
    own = {value.untyped_storage()._cdata for value in ready.context.pipeline.unet.parameters()}

    def note(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage()._cdata not in own:
            saved[value.untyped_storage()._cdata] = value.untyped_storage()
        return value

    batch = ready.context.draw_fixed_batch(samples)
    conditioning = ready.learner.condition([pair.concept for pair in batch.prompts])
    conditioning = type(conditioning)(conditioning.states.detach().requires_grad_(), conditioning.pooled)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        ready.context.denoise(batch.noisy, batch.timesteps, conditioning).square().mean()
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize(
    "method",
    ["textual_inversion", *(pytest.param(one, marks=pytest.mark.slow) for one in ("lora", "perfusion"))],
)
def test_the_predicted_bytes_of_a_sample_are_those_that_a_real_one_keeps(method: str, tmp_path: Path) -> None:
    base = make_pipeline()
    with prepared(base):
        ready = stage(method, tmp_path, base)
        predicted = doctor.measure_sample(ready.context, ready.learner)
        with ready.learner.attached(), plain_attention(base, positions=64):
            kept = count_saved_bytes(ready, 3) - count_saved_bytes(ready, 2)
    assert predicted == pytest.approx(kept, rel=0.02)


def test_a_plan_counts_what_will_be_done_and_changes_nothing(tmp_path: Path) -> None:
    base = make_pipeline()
    before = snapshot(base)
    with prepared(base):
        ready = stage("lora", tmp_path, base, steps=7, settings={"batch_size": 6, "accumulation_steps": 2})
        values = {name: value.clone() for name, value in ready.learner.parameters.items()}
        plan = doctor.plan_run(ready.context, ready.learner)
        for name, value in ready.learner.parameters.items():
            assert torch.equal(value, values[name])
            assert value.grad is None
    assert_same(before, snapshot(base))
    assert (plan.pictures, plan.steps, plan.image_steps, plan.samples_at_once) == (3, 7, 42, 3)
    trained = sum(value.numel() for value in values.values())
    assert plan.resident.trained_bytes == 4 * trained
    assert plan.resident.optimizer_bytes == 4 * trained * 3  # two moments, and the best values
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert plan.fits


def test_a_run_that_cannot_fit_is_refused_with_what_to_change_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "find_free_bytes", lambda device, pipeline: 1_000_000)
    with pytest.raises(TrainingError, match="for each of 4 samples at once") as caught:
        train(write_job("lora", tmp_path), base=make_pipeline(), workdir=tmp_path / "work")
    assert caught.value.hint is not None
    assert "--set accumulation_steps=2" in caught.value.hint
    assert "gradient_checkpointing=true" in caught.value.hint
    assert not (tmp_path / "work").exists()
