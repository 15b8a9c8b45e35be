"""Denoisers of flows: asked as their own pipelines ask them, trained, and the file read by diffusers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.errors import IncompatibleError, InterruptedByUserError
from conceptry.formats.export_files import write_export
from conceptry.formats.exporting import ExportSettings, plan_export
from conceptry.trainer.conditioning import denoise, encode_prompts
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.objectives import read_schedule
from conceptry.trainer.training import TrainResult, train
from tests.fakes.flows import FAMILIES, make_flow_pipeline
from tests.trainer.runs import write_job

PROMPTS = ["a photo of a <imp> creature", "a cat"]
SETTINGS: dict[str, Any] = {
    "resolution_pixels": 16,
    "rank": 2,
    "batch_size": 2,
    "learning_rates": {"lora": 2e-2},
}


@torch.no_grad()
def ask(pipeline: Any) -> Tensor:
    """Returns what the denoiser answers to fixed noise at three sigmas."""
    noisy = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    return denoise(pipeline, noisy, torch.tensor([0.3, 0.8]), encode_prompts(pipeline, PROMPTS))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_denoiser_is_asked_as_its_own_pipeline_asks_it(family: str) -> None:
    pipeline = make_flow_pipeline(family)
    seen: list[Tensor] = []
    sigmas: list[float] = []
    step = pipeline.scheduler.step

    def note(velocity: Tensor, time: Tensor, sample: Tensor, **options: Any) -> Any:
        seen.extend((velocity.clone(), sample.clone()))
        sigmas.append(float(time) / 1000)
        return step(velocity, time, sample, **options)

    pipeline.scheduler.step = note
    prompt = "a photo of a creature"
    options = (
        {}
        if family == "qwen_image"
        else {"guidance_scale": {"flux": 3.5, "sd3": 1.0, "z_image": 0.0}[family]}
    )
    pipeline(
        prompt,
        height=16,
        width=16,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    )
    velocity, sample = seen[2], seen[3]  # of the second step: at the first one sigma is 1
    noisy = unpack(sample)
    with torch.no_grad():
        found = denoise(pipeline, noisy, torch.tensor([sigmas[1]]), encode_prompts(pipeline, [prompt]))
    assert 0 < sigmas[1] < 1
    assert torch.allclose(found, unpack(velocity), rtol=1e-4, atol=1e-4 * float(velocity.abs().max()))


def unpack(latents: Tensor) -> Tensor:
    """Returns [1, 16, 8, 8], also of what a pipeline has packed."""
    if latents.ndim == 4:
        return latents
    return latents.reshape(1, 4, 4, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 8, 8)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "sd3" else pytest.mark.slow) for name in FAMILIES]
)
def test_lora_learns_resumes_and_is_read_by_diffusers(family: str, tmp_path: Path) -> None:
    pipeline = make_flow_pipeline(family)
    before = ask(pipeline)

    def go(work: str, **options: Any) -> TrainResult:
        job = write_job("lora", tmp_path, steps=8, settings=SETTINGS)
        return train(job, base=pipeline, workdir=tmp_path / work, cache_folder=tmp_path / "cache", **options)

    def stop_after_three(event: TrainEvent) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    whole = go("whole")
    assert whole.fixed_loss_after < whole.fixed_loss_before
    assert torch.equal(ask(pipeline), before)
    with pytest.raises(InterruptedByUserError):
        go("stopped", on_event=stop_after_three)
    assert go("stopped", resume=True).concept.digest == whole.concept.digest

    (build,) = whole.concept.manifest.builds
    assert (build.base.family, build.base.prediction_type) == (family, "flow")
    with attach(Composition(whole.concept), pipeline):
        expected = ask(pipeline)
    assert not torch.allclose(expected, before, rtol=1e-2)
    write_export(plan_export(whole.concept, ExportSettings(target="diffusers", path=tmp_path / "out")))
    theirs = make_flow_pipeline(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.load_lora_weights(str(tmp_path / "out"))
    assert torch.allclose(ask(theirs), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_method_for_unets_names_those_that_a_transformer_can_be_trained_with(tmp_path: Path) -> None:
    job = write_job("dreambooth", tmp_path, settings={"resolution_pixels": 16})
    with pytest.raises(IncompatibleError, match="for bases with a UNet, sd3 has a transformer") as caught:
        train(job, base=make_flow_pipeline("sd3"), workdir=tmp_path / "work", cache_folder=tmp_path / "cache")
    assert caught.value.hint == "methods for it: lora, dreambooth_lora, lidb"
    assert not (tmp_path / "work").exists()


def test_the_sigmas_of_a_flow_are_logit_normal_and_shifted_as_the_scheduler_says() -> None:
    plain = read_schedule(make_flow_pipeline("flux"), torch.device("cpu"))
    shifted = read_schedule(make_flow_pipeline("sd3"), torch.device("cpu"))
    normal = torch.logit(plain.noise.double())
    assert abs(float(normal.mean())) < 1e-3
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    assert torch.allclose(shifted.noise, 3 * plain.noise / (1 + 2 * plain.noise), atol=1e-6)
    assert torch.allclose(plain.signal + plain.noise, torch.ones(1000))
    clean, noise = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    times = torch.tensor([10, 900])
    noisy = plain.add_noise(clean, noise, times)
    sigma = plain.tell(times).view(-1, 1, 1, 1)
    assert torch.allclose(noisy - sigma * plain.make_target(clean, noise, times), clean, atol=1e-5)
