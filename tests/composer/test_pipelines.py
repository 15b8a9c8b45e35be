"""Other pipelines than text to image: pictures as a start, masks, control networks, the refiner of SDXL."""

from __future__ import annotations

import copy
import functools
import warnings
from pathlib import Path
from typing import Any, Final

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from PIL import Image

from conceptry.composer import Composition, attach
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from conceptry.formats.lora import LORA_NAME, LoraContents, write_lora
from conceptry.formats.lora_modules import LoraModule
from tests.fakes.concepts import describe_base, list_paths, make_lora, write_concept
from tests.fakes.dense import DensePipeline
from tests.fakes.edits import make_factors
from tests.fakes.forwards import make_calm_pipeline
from tests.fakes.kinds import KINDS, find_word, make_kind
from tests.fakes.pipelines import Shape, assert_same, snapshot

SHAPES: Final[tuple[Shape, ...]] = ("sd1", "sd2", "sdxl")
SORTS: Final = (
    "text to image",
    "image to image",
    "inpainting",
    "inpainting of nine channels",
    "control network",
)
CLASSES: Final = {
    "text to image": "{}Pipeline",
    "image to image": "{}Img2ImgPipeline",
    "inpainting": "{}InpaintPipeline",
    "inpainting of nine channels": "{}InpaintPipeline",
    "control network": "{}ControlNetPipeline",
}
PICTURE = Image.new("RGB", (16, 16), (200, 40, 40))
NEGATIVE: Final = "a dog"
TOLERANCE: Final = 1e-5
"""Of the largest value, after two steps with guidance."""

DENSE: Final = tuple(
    row for row in KINDS if row.id != "hypernetwork"
)  # test_hypernetworks.py writes its formula out
STRENGTHS: Final = {"lora": 0.7, "locon": 0.5, "loha": 0.6, "lokr": 0.4, "dora": 0.3, "full": 0.4}


@functools.cache
def lend_calm(shape: Shape) -> Any:
    """Every test leaves it as it was, to the bit."""
    return make_calm_pipeline(shape)


@functools.cache
def open_sort(shape: Shape, sort: str) -> Any:
    """Returns a pipeline of another class over copies of the same weights."""
    base = lend_calm(shape)
    parts = {name: copy.deepcopy(part) for name, part in base.components.items()}
    if sort == "inpainting of nine channels":
        torch.manual_seed(0)
        parts["unet"] = UNet2DConditionModel.from_config({**base.unet.config, "in_channels": 9}).eval()
        kept = {name: value for name, value in base.unet.state_dict().items() if name != "conv_in.weight"}
        parts["unet"].load_state_dict(kept, strict=False)
    if sort == "control network":
        torch.manual_seed(0)
        network = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 4)).eval()
        for value in network.parameters():
            value.data += 0.01 * torch.randn(value.shape)
        parts["controlnet"] = network
    stem = "StableDiffusionXL" if shape == "sdxl" else "StableDiffusion"
    settings: dict[str, Any] = {"requires_safety_checker": False}
    if shape == "sdxl":
        settings = {"add_watermarker": False}
    pipeline = getattr(diffusers, CLASSES[sort].format(stem))(**parts, **settings)
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline, "a cat")  # at its first use transformers puts in hooks of its own, for good
    return pipeline


def draw(pipeline: Any, prompt: str, **changes: Any) -> torch.Tensor:
    name = type(pipeline).__name__
    given: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    if "Img2Img" in name or "Inpaint" in name:
        given |= {"image": PICTURE, "strength": 1.0}
    if "ControlNet" in name:
        given |= {"image": PICTURE}
    if "Inpaint" in name:
        given |= {"mask_image": Image.new("L", (16, 16), 255)}
    if "Img2Img" not in name:
        given |= {"height": 16, "width": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images: torch.Tensor = pipeline(
            prompt, negative_prompt=NEGATIVE, generator=torch.Generator().manual_seed(0), **given, **changes
        ).images
    return images


def make_all(folder: Path, pipeline: Any) -> dict[str, Concept]:
    """Returns a concept of each kind; words begin with three letters of their own."""
    labels = {"perfusion_global": "global"}
    return {
        row.id: make_kind(folder, pipeline, row.id, label=labels.get(row.id), seed=100 * number)
        for number, row in enumerate(DENSE)
    }


def write_prompt(*concepts: Concept) -> str:
    words = [find_word(one) for one in concepts]
    return "a " + " ".join(word for word in words if word.startswith("<")) + " and cat"


def check(pipeline: Any, concepts: dict[str, Concept]) -> None:
    """Holds a drawing with the concepts attached against one by dense weights, other rows and formulas."""
    weighted = [(one, STRENGTHS.get(kind, 1.0)) for kind, one in concepts.items()]
    prompt = write_prompt(*concepts.values())
    before = snapshot(pipeline, with_settings=False)
    plain = draw(pipeline, prompt)
    dense = DensePipeline(pipeline, weighted)
    expected = draw(dense.prepare(prompt, NEGATIVE), dense.spell(prompt))
    with attach(Composition(*(one * strength for one, strength in weighted)), pipeline) as report:
        assert not any(applied.unmatched for applied in report.concepts)
        found = draw(pipeline, prompt)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= TOLERANCE, (list(concepts), error)
    assert (expected - plain).abs().max() > 1e-3 * expected.abs().max(), list(concepts)
    assert torch.equal(draw(pipeline, prompt), plain)
    assert_same(before, snapshot(pipeline, with_settings=False))


def test_all_kinds_work_in_pipelines_of_the_same_base(tmp_path: Path) -> None:
    check(open_sort("sd1", "control network"), make_all(tmp_path, lend_calm("sd1")))


def test_a_network_with_channels_for_a_mask_takes_what_was_made_for_its_base(tmp_path: Path) -> None:
    check(open_sort("sd2", "inpainting of nine channels"), make_all(tmp_path, lend_calm("sd2")))


@pytest.mark.slow
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_is_what_its_equations_say_in_every_pipeline(
    tmp_path: Path, shape: Shape, sort: str
) -> None:
    concepts, pipeline = make_all(tmp_path, lend_calm(shape)), open_sort(shape, sort)
    for kind, concept in concepts.items():
        check(pipeline, {kind: concept})
    check(pipeline, concepts)


# --- the refiner -----------------------------------------------------------------------------------------------------


@functools.cache
def open_refiner() -> Any:
    """Returns a pipeline that reads the second text encoder alone, as SDXL's refiner does."""
    parts = {name: copy.deepcopy(part) for name, part in lend_calm("sdxl").components.items()}
    sizes = {"cross_attention_dim": 40, "projection_class_embeddings_input_dim": 5 * 8 + 40}
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**parts["unet"].config, **sizes}).eval()
    parts |= {"unet": unet, "text_encoder": None, "tokenizer": None}
    pipeline = StableDiffusionXLImg2ImgPipeline(
        **parts, requires_aesthetics_score=True, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    draw(pipeline, "a cat")  # at its first use transformers puts in hooks of its own, for good
    return pipeline


def make_refiner_lora(folder: Path, pipeline: Any) -> Concept:
    """Returns a LoRA on the refiner's UNet and on its one text encoder."""
    query = "encoder.layers.0.self_attn.q_proj"
    text = query if hasattr(pipeline.text_encoder_2, "encoder") else f"text_model.{query}"
    factors = {
        **{f"unet.{path}": one for path, one in make_factors(pipeline.unet, list_paths(pipeline)).items()},
        f"text_encoder_2.text_model.{query}": make_factors(pipeline.text_encoder_2, [text])[text],
    }
    modules = {
        name: LoraModule.of_factors(
            down=from_torch(one.down), up=from_torch(one.up), alpha=one.scale * one.rank
        )
        for name, one in factors.items()
    }
    folder.mkdir(parents=True)
    write_lora(folder / LORA_NAME, LoraContents(modules=modules))
    return write_concept(
        folder,
        "test/refined",
        describe_base(identify_pipeline(pipeline)),
        {"kind": "lora", "rank": 2, "modules": len(modules), "scale": 0.5},
        files=[LORA_NAME],
        tokens=[],
    )


def test_the_refiner_takes_what_was_made_for_it(tmp_path: Path) -> None:
    refiner = open_refiner()
    assert identify_pipeline(refiner).family == "sdxl_refiner"
    lora = make_refiner_lora(tmp_path / "lora", refiner)
    made = {"lora": lora, "embedding": make_kind(tmp_path, refiner, "embedding")}
    check(refiner, made)
    check(
        refiner,
        {"xti": make_kind(tmp_path, refiner, "xti"), "perfusion": make_kind(tmp_path, refiner, "perfusion")},
    )
    with attach(Composition(*made.values()), refiner) as report:
        assert [applied.fit for applied in report.concepts] == ["exact", "exact"]


def test_the_refiner_refuses_what_is_for_the_base(sdxl: Any, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError) as caught:
        attach(Composition(make_lora(tmp_path / "base", sdxl)), open_refiner())
    assert "test/lora@1.0.0" in caught.value.message
    assert caught.value.hint
