"""Pictures as the denoiser sees them: encoded once, kept on the device, sampled anew in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from conceptry.errors import TrainingError
from conceptry.trainer.images import Picture


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Mean and standard deviation of every picture's latent distribution, scaled as the denoiser wants them."""

    mean: Float[Tensor, "pictures channels height width"]
    std: Float[Tensor, "pictures channels height width"]

    def sample(
        self, pictures: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns one draw of each picture's latents; the draw is made on the processor, the same everywhere."""
        chosen = pictures.to(self.mean.device)
        spread = torch.randn((len(pictures), *self.mean.shape[1:]), generator=generator).to(self.mean.device)
        return self.mean[chosen] + self.std[chosen] * spread


def read_resolution(pipeline: Any) -> int:
    """Returns the side in pixels of the pictures that the base makes."""
    return int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)


@torch.no_grad()
def encode_pictures(pipeline: Any, pictures: Sequence[Picture], *, resolution_pixels: int) -> LatentCache:
    """Returns the latent distributions of ``pictures``, computed in float32, a few at a time.

    Raises:
        TrainingError: if the autoencoder answers with numbers that are not finite; the picture is named.
    """
    vae = pipeline.vae
    device = next(vae.parameters()).device
    shift = float(vae.config.get("shift_factor") or 0.0)
    scale = float(vae.config.scaling_factor)
    means, stds = [], []
    for picture in pictures:
        pixels = crop_square(picture.image, resolution_pixels).to(device=device, dtype=vae.dtype)
        distribution = vae.encode(pixels[None]).latent_dist
        mean, std = distribution.mean.float(), distribution.std.float()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise TrainingError(
                f"the autoencoder's latents of {picture.name!r} are not finite",
                where=f"images/{picture.name}",
                hint="load the base's autoencoder in float32 (the fp16 one of SDXL overflows)",
            )
        means.append((mean - shift) * scale)
        stds.append(std * scale)
    return LatentCache(torch.cat(means), torch.cat(stds))


def crop_square(image: Image.Image, side_pixels: int) -> Float[Tensor, "3 side side"]:
    """Returns the picture's largest centred square at ``side_pixels``, values in [-1, 1]."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge))
    if edge != side_pixels:
        square = square.resize((side_pixels, side_pixels), Image.Resampling.LANCZOS)
    values = np.asarray(square, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()
