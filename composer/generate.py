"""Pictures from a pipeline, each from the noise of its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from conceptry.composer.pipelines import Pipeline
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
) -> list[Image]:
    """Returns one picture for each prompt, drawn together; noise comes from the processor, equal on every device.

    A seed gives the same picture in every company, but for the rounding of sums over a batch (a few of 256 levels).

    Args:
        pipeline: an open pipeline, with whatever is attached to it.
        prompts: what to draw.
        seeds: the seed of each picture's noise.
        steps: denoising steps; None takes the pipeline's own number.
        guidance: classifier-free guidance scale (arXiv 2207.12598, equation 6, as 1 + w); 1 is none, None the
            pipeline's own.
        negative: what guidance leads away from.

    Raises:
        UsageError: if there are not as many seeds as prompts.
    """
    if len(prompts) != len(seeds):
        raise UsageError(f"{len(prompts)} prompts have {len(seeds)} seeds, each needs one")
    if not prompts:
        return []
    settings = {"num_inference_steps": steps, "guidance_scale": guidance}
    drawn = pipeline(
        prompt=list(prompts),
        negative_prompt=[negative] * len(prompts) if negative else None,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **{name: value for name, value in settings.items() if value is not None},
    )
    return list(drawn.images)
