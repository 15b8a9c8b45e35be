"""SD1.5 and SDXL in their published configurations, with random weights, or on the meta device without any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.fakes.pipelines import make_tokenizer

CLIP_TOKENS: Final = 77
SD15_UNET: Final[dict[str, Any]] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
SDXL_UNET: Final[dict[str, Any]] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L: Final[dict[str, int]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G: Final[dict[str, int]] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def make_clip(
    shape: dict[str, int], *, vocab_size: int = 49408, projected: bool = False, divide: int = 1
) -> Any:
    widths = {key: shape[key] // divide for key in ("hidden_size", "intermediate_size", "projection_dim")}
    config = CLIPTextConfig(
        **{**shape, **widths},
        vocab_size=vocab_size,
        max_position_embeddings=CLIP_TOKENS,
        eos_token_id=2,
        bos_token_id=0,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def make_vae(widths: tuple[int, ...] = (128, 256, 512, 512), *, norm_groups: int = 32) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=norm_groups,
        sample_size=512,
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_sd15() -> Any:
    """Returns SD1.5 at real size, 1.07 G random parameters: 4.3 GB."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=make_vae().eval(),
        text_encoder=make_clip(CLIP_L),
        tokenizer=make_tokenizer(CLIP_TOKENS),
        unet=UNet2DConditionModel(**SD15_UNET).eval(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_narrow_sdxl(divide: int = 8) -> Any:
    """Returns SDXL with all its blocks, layers, heads and encoders, each width divided by ``divide``."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(CLIP_TOKENS)
    pooled = CLIP_G["projection_dim"] // divide
    unet = {
        **SDXL_UNET,
        "cross_attention_dim": SDXL_UNET["cross_attention_dim"] // divide,
        "block_out_channels": tuple(width // divide for width in SDXL_UNET["block_out_channels"]),
        "norm_num_groups": 8,
        "addition_time_embed_dim": 256 // divide,
        "projection_class_embeddings_input_dim": 6 * 256 // divide + pooled,
    }
    return StableDiffusionXLPipeline(
        vae=make_vae((16, 32, 64, 64), norm_groups=8).eval(),
        text_encoder=make_clip(CLIP_L, vocab_size=len(tokenizer), divide=divide),
        text_encoder_2=make_clip(CLIP_G, vocab_size=len(tokenizer), projected=True, divide=divide),
        tokenizer=tokenizer,
        tokenizer_2=make_tokenizer(CLIP_TOKENS, pads_with_eos=False),
        unet=UNet2DConditionModel(**unet).eval(),
        scheduler=make_scheduler(),
        add_watermarker=False,
    )


def make_meta_sdxl() -> Any:
    """Returns the parts of real SDXL without memory: names and shapes."""
    with torch.device("meta"):
        return SimpleNamespace(
            unet=UNet2DConditionModel(**SDXL_UNET),
            text_encoder=make_clip(CLIP_L),
            text_encoder_2=make_clip(CLIP_G, projected=True),
            vae=make_vae(),
            tokenizer=object(),
            tokenizer_2=object(),
        )
