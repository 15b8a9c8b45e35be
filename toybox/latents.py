"""Training pictures as latents and captions as token ids, made once: the diffusion recipe touches neither again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from conceptry.toybox.autoencoder import to_tensor
from conceptry.toybox.captions import describe
from conceptry.toybox.pictures import in_parallel, training_pictures
from conceptry.toybox.scene import Scene
from conceptry.toybox.text import encode_captions
from conceptry.toybox.training import autocast

_CHUNK: Final = 1000


@torch.inference_mode()
def encode_pictures(vae: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 128) -> Tensor:
    """Posterior means of pictures (n, 64, 64, 3), unscaled, (n, 4, 16, 16) half floats on the processor."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = to_tensor(images[start : start + batch], vae.device)
        with autocast(vae.device):
            parts.append(vae.encode(pixels).latent_dist.mean.half().cpu())
    return torch.cat(parts)


def training_latents(
    folder: Path, vae: AutoencoderKL, *, seed: int, count: int
) -> tuple[list[Scene], Tensor]:
    """Scenes and their latents (count, 4, 16, 16), encoded once for each autoencoder."""
    scenes, images = training_pictures(folder, seed=seed, count=count)
    path = folder / f"latents-{seed}-{count}.safetensors"
    if not path.is_file():
        save_file({"latents": encode_pictures(vae, images)}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return scenes, load_file(path)["latents"]


def _say(task: tuple[list[Scene], int, int]) -> list[str]:
    scenes, variants, seed = task
    rng = np.random.default_rng((9, seed))
    return [describe(scene, rng).text for scene in scenes for _ in range(variants)]


def caption_bank(
    folder: Path, scenes: list[Scene], tokenizer: CLIPTokenizer, *, seed: int, variants: int
) -> Tensor:
    """Token ids (scenes, variants, 32) of several captions for each scene, int16, made once a folder."""
    path = folder / f"captions-{seed}-{len(scenes)}-{variants}.safetensors"
    if not path.is_file():
        starts = range(0, len(scenes), _CHUNK)
        tasks = [(scenes[at : at + _CHUNK], variants, seed * 1_000_003 + at) for at in starts]
        parts = [encode_captions(tokenizer, texts).to(torch.int16) for texts in in_parallel(_say, tasks)]
        save_file({"ids": torch.cat(parts).view(len(scenes), variants, -1)}, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return load_file(path)["ids"]


def scaling_factor(latents: Tensor) -> float:
    """The factor that gives latents unit standard deviation."""
    return round(1.0 / float(latents.float().std()), 4)
