"""One forward of each component, and how far two of them are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.fakes.pipelines import Shape, make_pipeline

TOLERANCE = 1e-5


@torch.no_grad()
def make_calm_pipeline(shape: Shape = "sd1") -> Any:
    """Returns a pipeline whose answers move by less than 1e-6 where all of its sums are rounded once more.

    That of ``make_pipeline`` has attention so sharp that its own rounding in float32 shows at 4e-5.
    """
    pipeline = make_pipeline(shape)
    for part in (pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
        for name, value in part.named_parameters() if part is not None else ():
            if "attn" in name or "embedding" in name:
                value.mul_(0.25)
    return pipeline


def run_components(pipeline: Any, prompt: str) -> dict[str, Tensor]:
    """Returns the encoding of a prompt and the denoiser's answer to noise under it."""
    with torch.no_grad():
        encoded = pipeline.encode_prompt(
            prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        found = {"encoding": encoded[0]}
        unet = pipeline.unet
        size = unet.config.sample_size
        generator = torch.Generator().manual_seed(7)
        noise = torch.randn(1, unet.config.in_channels, size, size, generator=generator).to(encoded[0].dtype)
        added = None
        if len(encoded) > 2:
            found["pooled"] = encoded[2]
            added = {"text_embeds": encoded[2], "time_ids": torch.ones(1, 6, dtype=encoded[2].dtype)}
        answer = unet(noise, 10, encoder_hidden_states=encoded[0], added_cond_kwargs=added).sample
    return {**found, "answer": answer}


def measure_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Returns the largest error of any output over the largest value of that output."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name].double() - value.double()).abs().max() / value.double().abs().max())
        for name, value in expected.items()
    )
