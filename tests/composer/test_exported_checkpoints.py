"""Compositions in one file: diffusers' own converters make of it what was attached, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from conceptry.base_locations import resolve_base
from conceptry.bases import Fit
from conceptry.composer import Composition, Destination, attach, export, fuse, identify_pipeline
from conceptry.composer.export_spellings import spell_unet, spell_vae
from conceptry.composer.exports import prepare_export
from conceptry.composer.loading import load_pipeline
from conceptry.composer.tensors import to_torch
from conceptry.errors import IncompatibleError
from conceptry.formats.header import read_header
from conceptry.formats.tensors import read_tensors
from tests.fakes.concepts import make_embedding, make_full, make_lora
from tests.fakes.forwards import TOLERANCE, make_calm_pipeline, measure_difference, run_components
from tests.fakes.pipelines import Shape, assert_same, snapshot
from tests.fakes.real import make_real_vae, make_sd15

Tensors = Mapping[str, torch.Tensor]

# Blocks, layers and heads of the real models; widths do not matter to names.
SD15: dict[str, Any] = {"cross_attention_dim": 32, "block_out_channels": (32, 32, 32, 32)}
SDXL: dict[str, Any] = {
    "cross_attention_dim": 32,
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def flatten(state: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors without a level that versions of transformers have or have not."""
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
def test_diffusers_reads_from_the_file_what_was_fused(shape: Shape, tmp_path: Path) -> None:
    pipeline = make_calm_pipeline(shape)
    composition = Composition(
        make_lora(tmp_path / "a", pipeline) * 0.7, make_full(tmp_path / "f", pipeline, name="test/f")
    )
    before = snapshot(pipeline, with_settings=False)
    path = tmp_path / "whole.safetensors"
    (file,) = export(composition, pipeline, Destination(path=path, target="checkpoint"))
    assert_same(before, snapshot(pipeline, with_settings=False))
    assert read_header(file.path).metadata["modelspec.title"] == "test/lora@1.0.0 + test/f@1.0.0"
    tensors = {name: to_torch(raw) for name, raw in read_tensors(file.path).items()}
    first, second = "cond_stage_model.transformer.", "cond_stage_model.model."
    if shape == "sdxl":
        first, second = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
    with fuse(composition, pipeline):
        unet, vae = pipeline.unet, pipeline.vae
        assert_equal(convert_ldm_unet_checkpoint(dict(tensors), unet.config), unet.state_dict())
        assert_equal(convert_ldm_vae_checkpoint(dict(tensors), vae.config), vae.state_dict())
        if shape != "sd2":
            read = convert_ldm_clip_checkpoint(dict(tensors), remove_prefix=first)
            assert_equal(flatten(read), flatten(pipeline.text_encoder.state_dict()))
        if shape != "sd1":
            encoder = pipeline.text_encoder if shape == "sd2" else pipeline.text_encoder_2
            read = convert_open_clip_checkpoint(encoder, dict(tensors), prefix=second)
            assert_equal(flatten(read), flatten(encoder.state_dict()))


@pytest.mark.filterwarnings("ignore")  # what the loader remarks of its own
@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
def test_plain_diffusers_opens_the_file_and_computes_what_is_attached(shape: Shape, tmp_path: Path) -> None:
    pipeline = make_calm_pipeline(shape)
    composition = Composition(make_lora(tmp_path / "a", pipeline) * 0.7)
    path, folder = tmp_path / "whole.safetensors", tmp_path / "settings"
    export(composition, pipeline, Destination(path=path, target="checkpoint"))
    pipeline.save_pretrained(folder)  # the base, for its configuration and tokenizers
    kind = StableDiffusionXLPipeline if shape == "sdxl" else StableDiffusionPipeline
    opened = kind.from_single_file(
        str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    with attach(composition, pipeline):
        expected = run_components(pipeline, "a photo of a cat")
    assert measure_difference(run_components(opened, "a photo of a cat"), expected) <= TOLERANCE


REPO = "models--stable-diffusion-v1-5--stable-diffusion-v1-5"


def cache_settings(pipeline: Any, cache: Path) -> None:
    """Put the configuration and the tokenizer of a base where those of published bases lie, no weights with them."""
    folder = cache / REPO / "snapshots" / ("a" * 40)
    pipeline.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    (cache / REPO / "refs").mkdir()
    (cache / REPO / "refs" / "main").write_text("a" * 40)


@pytest.mark.parametrize(
    "full_size", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["small", "full size"]
)
def test_an_exported_checkpoint_is_a_base_that_takes_concepts_and_is_exported_again(
    full_size: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_sd15(vae=make_real_vae()) if full_size else make_calm_pipeline("sd1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    cache_settings(pipeline, tmp_path / "cache")
    concept = make_lora(tmp_path / "a", pipeline)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    export(Composition(concept * 0.7), pipeline, Destination(path=first, target="checkpoint"))
    with fuse(Composition(concept * 0.7), pipeline):
        expected = identify_pipeline(pipeline)
        kept = {name: value.clone() for name, value in pipeline.unet.state_dict().items() if "attn" in name}
    del pipeline
    opened = load_pipeline(resolve_base(str(first), {}))
    assert identify_pipeline(opened).family == expected.family == "sd1"
    state = opened.unet.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    with attach(Composition(concept * -0.7), opened, fit=Fit.ARCHITECTURE) as report:
        assert report.concepts[0].unmatched == ()
    export(
        Composition(concept * 0.3),
        opened,
        Destination(path=second, target="checkpoint"),
        fit=Fit.ARCHITECTURE,
    )
    assert read_header(second).tensors.keys() == read_header(first).tensors.keys()


@pytest.mark.parametrize("settings", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_every_block_of_the_real_models_has_its_first_name(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**settings), AutoencoderKL(**VAE)
    spelled = {f"model.diffusion_model.{name}": value for name, value in spell_unet(unet)}
    spelled |= {f"first_stage_model.{name}": value for name, value in spell_vae(vae)}
    for read, expected in (
        (convert_ldm_unet_checkpoint(dict(spelled), unet.config), unet.state_dict()),
        (convert_ldm_vae_checkpoint(dict(spelled), vae.config), vae.state_dict()),
    ):
        assert {name: value.shape for name, value in read.items()} == {
            name: value.shape for name, value in expected.items()
        }


def test_what_the_file_cannot_say_of_its_base_is_warned_of(tmp_path: Path) -> None:
    pipeline = make_calm_pipeline("sd1")
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    composition = Composition(make_lora(tmp_path / "a", pipeline))
    place = Destination(path=tmp_path / "x.safetensors", target="checkpoint")
    (said,) = prepare_export(composition, pipeline, place).warnings
    assert said.startswith("the base predicts v_prediction")
    assert not place.path.exists()


def test_words_are_refused_as_a_file_has_no_tokenizer(tmp_path: Path) -> None:
    pipeline = make_calm_pipeline("sd1")
    place = Destination(path=tmp_path / "x.safetensors", target="checkpoint")
    with pytest.raises(IncompatibleError, match="has words of its own") as caught:
        export(Composition(make_embedding(tmp_path / "e", pipeline)), pipeline, place)
    assert caught.value.hint == "--for pipeline writes a folder, which has one"
    assert not place.path.exists()
