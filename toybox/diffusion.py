"""The recipe of the diffusion model: v-prediction in latent space, text encoder and UNet trained together.

Zero terminal signal-to-noise ratio as in arXiv 2305.08891; loss weights as in arXiv 2303.09556 (min-SNR, gamma 5,
for v-prediction), with a floor so that the noisiest steps, which decide the layout, still count.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTokenizer

from conceptry.toybox.autoencoder import load_autoencoder
from conceptry.toybox.captions import describe
from conceptry.toybox.latents import scaling_factor, training_latents
from conceptry.toybox.scene import Scene
from conceptry.toybox.text import encode_captions, load_text
from conceptry.toybox.training import Run, Settings, autocast, pick_device

UNET: Final[dict[str, Any]] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
SCHEDULER: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
_GAMMA: Final = 5.0
_FLOOR: Final = 0.25
_CAPTION_DROPOUT: Final = 0.1
_DEFAULT_PICTURES: Final = 80_000
_DEFAULT_BATCH: Final = 64


def speak(scenes: list[Scene], rows: Tensor, tokenizer: CLIPTokenizer, rng: np.random.Generator) -> Tensor:
    """Token ids of fresh captions for the given scenes, a tenth of them empty."""
    texts = ["" if rng.uniform() < _CAPTION_DROPOUT else describe(scenes[int(row)], rng).text for row in rows]
    return encode_captions(tokenizer, texts)


class VelocityLoss:
    """The weighted v-prediction loss for one noise schedule."""

    def __init__(self, device: torch.device) -> None:
        scheduler = DDIMScheduler(**SCHEDULER)
        self.signal = scheduler.alphas_cumprod.to(device).sqrt()
        self.noise = (1.0 - scheduler.alphas_cumprod).to(device).sqrt()
        ratio = (self.signal / self.noise) ** 2
        self.weight = (ratio.clamp(max=_GAMMA) / (ratio + 1.0)).clamp(min=_FLOOR)

    def mix(self, clean: Tensor, noise: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents at ``steps``, and the velocity to be predicted."""
        a, s = self.signal[steps].view(-1, 1, 1, 1), self.noise[steps].view(-1, 1, 1, 1)
        return a * clean + s * noise, a * noise - s * clean

    def __call__(self, predicted: Tensor, target: Tensor, steps: Tensor) -> Tensor:
        """The mean over pictures of each weighted squared error."""
        errors = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        weighted: Tensor = self.weight[steps] * errors
        return weighted.mean()


def train_unet(settings: Settings) -> None:
    """Train UNet and text encoder; averaged weights end in ``OUT/unet``."""
    torch.manual_seed(settings.seed)
    device = pick_device(settings.device)
    vae = load_autoencoder(settings.out, device)
    count = settings.pictures or _DEFAULT_PICTURES
    scenes, latents = training_latents(settings.out / "data", vae, seed=settings.seed + 1, count=count)
    scale = scaling_factor(latents)
    tokenizer, encoder = load_text(settings.out, device)
    unet = UNet2DConditionModel(**UNET).to(device)
    if device.type == "cpu":  # six to nine times faster than the fused kernel at these small sizes
        unet.set_attn_processor(AttnProcessor())
        encoder.set_attn_implementation("eager")
    listening = [p for n, p in encoder.named_parameters() if p.requires_grad]
    groups = [{"params": list(unet.parameters()), "share": 1.0}, {"params": listening, "share": 0.1}]
    run = Run("unet", settings, {"unet": unet, "encoder": encoder}, peak_lr=1e-3, groups=groups)
    velocity = VelocityLoss(device)
    rng = np.random.default_rng((settings.seed, run.step))
    noise_source = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + run.step)
    forward = torch.compile(unet) if settings.compiled else unet
    batch = settings.batch or _DEFAULT_BATCH
    while run.running():
        rows = torch.from_numpy(rng.integers(count, size=batch))
        ids = speak(scenes, rows, tokenizer, rng).to(device)
        clean = latents[rows].to(device).float() * scale
        noise = torch.randn(clean.shape, generator=noise_source, device=device)
        steps = torch.randint(0, 1000, (batch,), generator=noise_source, device=device)
        noisy, target = velocity.mix(clean, noise, steps)
        with autocast(device):
            states = encoder(input_ids=ids).last_hidden_state
            predicted = forward(noisy, steps, states).sample
        run.update(velocity(predicted, target, steps))
        if run.step % 200 == 0:
            run.save()
            run.export()
    run.finish()
