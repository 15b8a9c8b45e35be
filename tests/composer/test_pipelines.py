"""Other pipelines than text to image: pictures as a start, masks, control networks, the refiner of SDXL."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from conceptry.composer import Composition, attach
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from tests.fakes.concepts import make_embedding, make_lora, make_rank_one
from tests.fakes.pipelines import assert_same, snapshot

PROMPT = "a <e> and a <r>, zork"
PICTURE = Image.new("RGB", (16, 16), (200, 40, 40))
OPTIONS = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}


def make_three(folder: Path, pipeline: Any) -> list[Concept]:
    return [make(folder / make.__name__, pipeline) for make in (make_embedding, make_rank_one, make_lora)]


def take_parts(pipeline: Any, **changes: Any) -> dict[str, Any]:
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()} | changes
    return {**parts, "requires_safety_checker": False}


def open_image_to_image(sd1: Any) -> Any:
    return StableDiffusionImg2ImgPipeline(**take_parts(sd1))


def open_inpainting(sd1: Any, channels: int) -> Any:
    unet = sd1.unet
    if channels != 4:
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels}).eval()
        kept = {name: value for name, value in sd1.unet.state_dict().items() if name != "conv_in.weight"}
        unet.load_state_dict(kept, strict=False)
    return StableDiffusionInpaintPipeline(**take_parts(sd1, unet=unet))


def open_controlled(sd1: Any) -> Any:
    torch.manual_seed(0)
    network = ControlNetModel.from_unet(sd1.unet, conditioning_embedding_out_channels=(4, 4)).eval()
    for value in network.parameters():
        value.data += 0.01 * torch.randn(value.shape)
    return StableDiffusionControlNetPipeline(**take_parts(sd1), controlnet=network)


def draw(pipeline: Any, prompt: str = PROMPT) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"image": PICTURE, **OPTIONS}
    if isinstance(pipeline, StableDiffusionInpaintPipeline):
        given |= {"mask_image": Image.new("L", (16, 16), 255)}
    if not isinstance(pipeline, StableDiffusionControlNetPipeline):
        given |= {"strength": 1.0}
    if not isinstance(pipeline, StableDiffusionImg2ImgPipeline):
        given |= {"height": 16, "width": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images: torch.Tensor = pipeline(prompt, generator=torch.Generator().manual_seed(0), **given).images
    return images


@pytest.mark.parametrize("sort", ["image to image", "inpainting", "control network"])
def test_all_kinds_work_in_pipelines_of_the_same_base(sd1: Any, tmp_path: Path, sort: str) -> None:
    openers = {
        "image to image": open_image_to_image,
        "inpainting": lambda base: open_inpainting(base, 4),
        "control network": open_controlled,
    }
    pipeline = openers[sort](sd1)
    concepts = make_three(tmp_path, sd1)
    plain, before = draw(pipeline), snapshot(pipeline, with_settings=False)
    for kept in ([concepts[0]], [concepts[0], concepts[1]], concepts):
        with attach(Composition(*kept), pipeline) as report:
            assert {applied.fit for applied in report.concepts} == {"exact"}
            assert not torch.allclose(draw(pipeline), plain, atol=1e-2)
    assert torch.equal(draw(pipeline), plain)
    assert_same(before, snapshot(pipeline, with_settings=False))


def test_a_network_with_channels_for_a_mask_takes_what_was_made_for_its_base(
    sd1: Any, tmp_path: Path
) -> None:
    pipeline = open_inpainting(sd1, 9)
    plain, before = draw(pipeline), snapshot(pipeline, with_settings=False)
    with attach(Composition(*make_three(tmp_path, sd1)), pipeline) as report:
        assert not any(applied.unmatched for applied in report.concepts)
        assert not torch.allclose(draw(pipeline), plain, atol=1e-2)
    assert torch.equal(draw(pipeline), plain)
    assert_same(before, snapshot(pipeline, with_settings=False))


def test_the_refiner_refuses_what_is_for_the_base(sdxl: Any, tmp_path: Path) -> None:
    parts = {name: copy.deepcopy(part) for name, part in sdxl.components.items()}
    config = {
        **parts["unet"].config,
        "cross_attention_dim": 40,
        "projection_class_embeddings_input_dim": 5 * 8 + 40,
    }
    torch.manual_seed(0)
    parts |= {
        "unet": UNet2DConditionModel.from_config(config).eval(),
        "text_encoder": None,
        "tokenizer": None,
    }
    pipeline = StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, add_watermarker=False
    )
    with pytest.raises(IncompatibleError) as caught:
        attach(Composition(make_lora(tmp_path / "base", sdxl)), pipeline)
    assert "test/lora@1.0.0" in caught.value.message
    assert caught.value.hint
