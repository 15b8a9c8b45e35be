"""The real configurations of SD1.5 and SDXL: every block, layer and head; SDXL also with each width an eighth."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.fakes.pipelines import make_tokenizer, make_vae

MAX_TOKENS = 77


def _text_config(width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        eos_token_id=2,
    )


def make_real_vae() -> AutoencoderKL:
    """Returns the autoencoder of SD1.5 in full size."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).eval()


def make_sd15(seed: int = 0, vae: AutoencoderKL | None = None) -> Any:
    """Returns SD1.5 in full size (4 GB in fp32) with random weights; the picture decoder is small, or as given."""
    torch.manual_seed(seed)
    return StableDiffusionPipeline(
        vae=vae or make_vae(),
        text_encoder=CLIPTextModel(_text_config(768, 12, 12)).eval(),
        tokenizer=make_tokenizer(MAX_TOKENS),
        unet=UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280)
        ).eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_narrow_sdxl(seed: int = 0) -> Any:
    """Returns SDXL with 70 cross-attention layers and both encoders, every width an eighth."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=128,
        cross_attention_dim=256,
        block_out_channels=(40, 80, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + 160,
    )
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(_text_config(96, 12, 12)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(160, 32, 20)).eval(),
        tokenizer=make_tokenizer(MAX_TOKENS),
        tokenizer_2=make_tokenizer(MAX_TOKENS, pads_with_eos=False),
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    )


def make_sdxl() -> Any:
    """Returns SDXL with the denoiser in full size (10 GB in fp32); text encoders have their widths and two layers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            cross_attention_dim=2048,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    unet.to_empty(device="cpu")
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                flat = parameter.view(-1)
                for first in range(0, len(flat), len(noise)):
                    flat[first : first + len(noise)] = noise[: len(flat) - first]
    return StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=CLIPTextModel(_text_config(768, 2, 12)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(1280, 2, 20)).eval(),
        tokenizer=make_tokenizer(MAX_TOKENS),
        tokenizer_2=make_tokenizer(MAX_TOKENS, pads_with_eos=False),
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    )
