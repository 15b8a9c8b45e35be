"""Pictures through the autoencoder and back: what a perfect diffusion model could at best draw."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from conceptry.toybox.autoencoder import to_tensor
from conceptry.toybox.training import autocast


def to_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """Floats (n, 3, h, w) in [-1, 1] as bytes (n, h, w, 3)."""
    values = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return values.permute(0, 2, 3, 1).cpu().numpy()


@torch.inference_mode()
def round_trip(vae: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 64) -> NDArray[np.uint8]:
    """Pictures (n, 64, 64, 3) encoded and decoded again."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = to_tensor(images[start : start + batch], vae.device)
        with autocast(vae.device):
            parts.append(to_bytes(vae.decode(vae.encode(pixels).latent_dist.mean).sample))
    return np.concatenate(parts)


def restore_pictures(path: Path, vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``round_trip`` of the pictures, done once and kept at ``path``."""
    if not path.is_file():
        part = path.with_suffix(".part.npy")
        np.save(part, round_trip(vae, images))
        os.replace(part, path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
