"""Module lists of real base models, built on the meta device from their published configurations."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest

Shape = tuple[int, ...]

UNETS: Mapping[str, Mapping[str, Any]] = {
    "sd1": {"cross_attention_dim": 768},
    "sd2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl_refiner": {
        "cross_attention_dim": 1280,
        "attention_head_dim": [6, 12, 24, 24],
        "use_linear_projection": True,
        "block_out_channels": [384, 768, 1536, 1536],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
TRANSFORMERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "sd3": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 192},
    ),
    "qwen_image": ("QwenImageTransformer2DModel", {}),
    "wan": ("WanTransformer3DModel", {}),
    "z_image": ("ZImageTransformer2DModel", {}),
    "krea2": ("Krea2Transformer2DModel", {}),
    "flux2": ("Flux2Transformer2DModel", {}),
}
ENCODERS: Mapping[str, tuple[tuple[str, int, int], ...]] = {
    "sd1": (("text_encoder", 768, 12),),
    "sd2": (("text_encoder", 1024, 23),),
    "sdxl": (("text_encoder", 768, 12), ("text_encoder_2", 1280, 32)),
    "sdxl_refiner": (("text_encoder_2", 1280, 32),),
    "flux": (("text_encoder", 768, 12),),
    "sd3": (("text_encoder", 768, 12), ("text_encoder_2", 1280, 32)),
}


@functools.cache
def list_weights(family: str) -> Mapping[str, Shape]:
    """Returns ``{component}.{path}`` -> shape of every weight of the denoiser and the CLIP text encoders."""
    diffusers = pytest.importorskip("diffusers", reason="of the extra torch")
    torch = pytest.importorskip("torch", reason="of the extra torch")
    with torch.device("meta"):
        if family in UNETS:
            name, network = "unet", diffusers.UNet2DConditionModel(**UNETS[family])
        else:
            kind, config = TRANSFORMERS[family]
            name, network = "transformer", getattr(diffusers, kind)(**config)
        parts = {name: network}
        for encoder, width, layers in ENCODERS.get(family, ()):
            parts[encoder] = _make_clip(encoder, width, layers)
    return {
        f"{part}.{_spell(part, path)}": tuple(value.shape)
        for part, module in parts.items()
        for path, value in module.state_dict().items()
        if path.endswith(".weight")
    }


def _spell(part: str, path: str) -> str:
    path = path.removesuffix(".weight")
    plain = not part.startswith("text") or path.startswith("text_") or path == "text_projection"
    return path if plain else f"text_model.{path}"


def _make_clip(name: str, width: int, layers: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    return (CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel)(config)


def list_layers(family: str) -> Mapping[str, Shape]:
    """Returns the linear and convolution layers among the weights of a family: all that can be adapted."""
    return {
        path: shape
        for path, shape in list_weights(family).items()
        if len(shape) in (2, 4) and ".embeddings." not in path
    }


def list_norms(family: str) -> Mapping[str, Shape]:
    """Returns the scales of norms among the weights of a family."""
    return {path: shape for path, shape in list_weights(family).items() if len(shape) == 1}
