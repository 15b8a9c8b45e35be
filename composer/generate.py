"""Pictures from a pipeline, each from the noise of its own seed: from words alone, over a picture, or inside a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image

from conceptry.composer.pipelines import Pipeline
from conceptry.errors import IncompatibleError, UsageError

# What draws over a picture and inside a mask with the components of a pipeline, by the name of its class.
_SIBLINGS: Final[Mapping[str, tuple[str, str]]] = {
    "StableDiffusionPipeline": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "StableDiffusionXLPipeline": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """How a pipeline is guided, where it is not by what it predicts without a prompt."""

    scale: str
    """What diffusers calls the scale."""

    negative: str | None
    """What stands for no negative prompt; None where there can be none."""


# Flux was taught the scale as a number (the distillation of arXiv 2210.03142); Qwen-Image is guided by a second prompt.
_GUIDANCE: Final[Mapping[str, Guidance]] = {
    "FluxPipeline": Guidance(scale="guidance_scale", negative=None),
    "QwenImagePipeline": Guidance(scale="true_cfg_scale", negative=" "),
}
_USUAL_GUIDANCE: Final = Guidance(scale="guidance_scale", negative="")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """What is drawn on: nothing, a picture, or the white part of a mask over a picture."""

    width: int | None = None
    height: int | None = None
    """In pixels; None takes the base's own."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    """White is drawn, black keeps the picture as it is."""

    strength: float = 1.0
    """How much of the picture is noise at first: the share of the steps that are taken (arXiv 2108.01073)."""


BLANK: Final = Canvas()


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    canvas: Canvas = BLANK,
) -> list[Image.Image]:
    """Returns one picture for each prompt, drawn together; noise comes from the processor, equal on every device.

    A seed gives the same picture in every company, but for the rounding of sums over a batch (a few of 256 levels).

    Args:
        pipeline: an open pipeline, with whatever is attached to it; for a picture or a mask, ``adapt_pipeline``'s.
        prompts: what to draw.
        seeds: the seed of each picture's noise.
        steps: denoising steps; None takes the pipeline's own number.
        guidance: classifier-free guidance scale (arXiv 2207.12598, equation 6, as 1 + w); 1 is none, None the
            pipeline's own.
        negative: what guidance leads away from.
        canvas: what is drawn on.

    Raises:
        UsageError: if there are not as many seeds as prompts, or the base can be led away from nothing.
    """
    if len(prompts) != len(seeds):
        raise UsageError(f"{len(prompts)} prompts have {len(seeds)} seeds, each needs one")
    if not prompts:
        return []
    row = check_negative(pipeline, negative)
    settings: dict[str, Any] = {"num_inference_steps": steps, row.scale: guidance}
    said = negative or row.negative
    if said:
        settings["negative_prompt"] = [said] * len(prompts)
    drawn = pipeline(
        prompt=list(prompts),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        **{name: value for name, value in settings.items() if value is not None},
        **_list_inputs(canvas, len(prompts)),
    )
    if canvas.image is None or canvas.mask is None:
        return list(drawn.images)
    return [_keep_outside(picture, canvas.image, canvas.mask) for picture in drawn.images]


def check_negative(pipeline: Pipeline, negative: str) -> Guidance:
    """Returns how the pipeline is guided. Raises UsageError for a negative prompt that it could not follow."""
    row = _GUIDANCE.get(type(pipeline).__name__, _USUAL_GUIDANCE)
    if negative and row.negative is None:
        raise UsageError(
            "this base is guided by a number that it was taught, so nothing can be kept out by words",
            hint="leave out --negative",
        )
    return row


def adapt_pipeline(pipeline: Pipeline, canvas: Canvas) -> Pipeline:
    """Returns a pipeline over the same components that draws on ``canvas``: the same one where that is blank.

    Concepts go into the pipeline that is returned. Raises IncompatibleError where diffusers has none.
    """
    if canvas.image is None:
        return pipeline
    import diffusers

    name = type(pipeline).__name__
    if name not in _SIBLINGS:
        raise IncompatibleError(f"{name} has no way here to draw over a picture")
    kind: Any = getattr(diffusers, _SIBLINGS[name][canvas.mask is not None])
    options: dict[str, Any] = {}
    if name == "StableDiffusionXLPipeline":
        options["add_watermarker"] = getattr(pipeline, "watermark", None) is not None
    else:
        options["requires_safety_checker"] = bool(pipeline.config.get("requires_safety_checker"))
    sibling = kind(**pipeline.components, **options)
    sibling.set_progress_bar_config(disable=True)
    return sibling


def _list_inputs(canvas: Canvas, count: int) -> dict[str, Any]:
    size = {} if canvas.width is None else {"width": canvas.width, "height": canvas.height}
    if canvas.image is None:
        return size
    found: dict[str, Any] = {"image": [canvas.image] * count, "strength": canvas.strength}
    if canvas.mask is not None:
        found |= {"mask_image": [canvas.mask] * count, **size}
    return found


def _keep_outside(drawn: Image.Image, image: Image.Image, mask: Image.Image) -> Image.Image:
    """Returns the picture with what the mask leaves out as it was: an autoencoder changes it a little otherwise."""
    return Image.composite(drawn, image.convert("RGB"), mask.convert("L"))
