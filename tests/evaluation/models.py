"""CLIP and DINO in their real architectures, a few dozen wide and random, as folders that save_pretrained writes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from tests.fakes.pipelines import make_tokenizer

PIXELS = 32


def save_models(folder: Path) -> tuple[Path, Path]:
    """Returns the folders of a CLIP model with its tokenizer and of a DINO model."""
    tokenizer = make_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": PIXELS,
        "patch_size": 8,
    }
    torch.manual_seed(3)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    dino = ViTModel(ViTConfig(**vision), add_pooling_layer=False)
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    dino.save_pretrained(folder / "dino")
    return folder / "clip", folder / "dino"
