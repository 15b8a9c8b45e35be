"""Training pictures as latents, encoded once, so that the diffusion recipe never touches a pixel."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from conceptry.toybox.autoencoder import to_tensor
from conceptry.toybox.pictures import training_pictures
from conceptry.toybox.scene import Scene


@torch.inference_mode()
def encode_pictures(vae: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 128) -> Tensor:
    """Posterior means of pictures (n, 64, 64, 3), unscaled, (n, 4, 16, 16) half floats on the processor."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = to_tensor(images[start : start + batch], vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
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


def scaling_factor(latents: Tensor) -> float:
    """The factor that gives latents unit standard deviation."""
    return round(1.0 / float(latents.float().std()), 4)
