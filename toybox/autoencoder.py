"""The recipe of the autoencoder: 64-pixel pictures to 16 x 16 x 4 latents and back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from conceptry.toybox.pictures import training_pictures
from conceptry.toybox.starting import set_out
from conceptry.toybox.training import Run, Settings, autocast, pick_device

CONFIG: Final[dict[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}
_KL_WEIGHT: Final = 2e-5
_DEFAULT_PICTURES: Final = 30_000
_DEFAULT_BATCH: Final = 16
_COARSE_PIXELS: Final = 4


def from_bytes(images: Tensor) -> Tensor:
    """Bytes (n, h, w, 3) as floats (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Bytes (n, h, w, 3) as floats (n, 3, h, w) in [-1, 1] on ``device``."""
    return from_bytes(torch.from_numpy(np.array(images)).to(device))


def train_autoencoder(settings: Settings) -> None:
    """Train the autoencoder; the averaged weights end in ``OUT/autoencoder/vae.safetensors``."""
    torch.manual_seed(settings.seed)
    device = pick_device(settings.device)
    vae = AutoencoderKL(**CONFIG).to(device)
    set_out(settings.start, vae=vae)
    count = settings.pictures or _DEFAULT_PICTURES
    _, images = training_pictures(settings.out / "data", seed=settings.seed, count=count)
    run = Run("autoencoder", settings, {"vae": vae}, peak_lr=2e-3, weight_decay=1e-4)
    source = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + run.step)
    store = torch.from_numpy(np.array(images)).to(device)
    batch = settings.batch or _DEFAULT_BATCH
    while run.running():
        rows = torch.randint(count, (batch,), generator=source, device=device)
        pixels = from_bytes(store[rows])
        with autocast(device):
            posterior = vae.encode(pixels).latent_dist
            restored = vae.decode(posterior.sample()).sample
        error = restored.float() - pixels
        squared = error.square().mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = squared + 0.05 * error.abs().mean() + _KL_WEIGHT * kl
        psnr = float(-10.0 * torch.log10(squared.detach() / 4.0))
        run.update(loss, psnr=psnr, kl=float(kl.detach()))
    run.finish()


def train_decoder(settings: Settings) -> None:
    """Train only the way back from latents, which stay as they are, so that a diffusion model made for them fits.

    Errors that neighbouring pixels share, such as a wrong color, count once more than their share of the squares.
    """
    torch.manual_seed(settings.seed)
    device, count = pick_device(settings.device), settings.pictures or _DEFAULT_PICTURES
    vae = load_autoencoder(settings.out, device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    _, images = training_pictures(settings.out / "data", seed=settings.seed, count=count)
    run = Run("decoder", settings, {"vae": vae.train()}, peak_lr=1e-3, weight_decay=1e-4)
    source = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + run.step)
    while run.running():
        rows = torch.randint(count, (settings.batch or _DEFAULT_BATCH,), generator=source, device=device)
        pixels = to_tensor(images[rows.cpu().numpy()], device)
        with autocast(device):
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample()
            restored = vae.decode(latents).sample
        error = restored.float() - pixels
        squared = error.square().mean()
        loss = squared + 0.05 * error.abs().mean() + F.avg_pool2d(error, _COARSE_PIXELS).square().mean()
        run.update(loss, psnr=float(-10.0 * torch.log10(squared.detach() / 4.0)))
    run.finish()
    part = settings.out / "autoencoder" / "vae.part"
    shutil.copyfile(run.folder / "vae.safetensors", part)
    os.replace(part, part.with_suffix(".safetensors"))


def load_autoencoder(folder: Path, device: torch.device) -> AutoencoderKL:
    """The trained autoencoder of a run's output folder, ready for use."""
    vae = AutoencoderKL(**CONFIG)
    vae.load_state_dict(load_file(folder / "autoencoder" / "vae.safetensors"))
    return vae.to(device).eval()
