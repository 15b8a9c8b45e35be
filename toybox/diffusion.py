"""The recipe of the diffusion model: v-prediction in latent space, text encoder and UNet trained together.

Zero terminal signal-to-noise ratio as in arXiv 2305.08891; loss weights as in arXiv 2303.09556 (min-SNR, gamma 5,
for v-prediction), with a floor so that the noisiest steps, which decide the layout, still count.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers import CLIPTextModel, CLIPTokenizer

from conceptry.toybox.autoencoder import load_autoencoder
from conceptry.toybox.latents import caption_bank, scaling_factor, training_latents
from conceptry.toybox.scene import Scene
from conceptry.toybox.starting import set_out
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
_VARIANTS: Final = 4
_TEXT_RATE: Final = 0.1
_CELLS: Final = 16
_OBJECT_WEIGHT: Final = 4.0
_SINGLE_SHARE: Final = 0.6
_COARSE_CELLS: Final = 4
_COARSE_WEIGHT: Final = 4.0


def weigh_objects(scenes: list[Scene]) -> Tensor:
    """How much each latent cell counts (n, 1, 16, 16): more inside objects, whose share of the picture is small.

    The best prediction of a cell does not depend on its weight; what is learned first does.
    """
    centers = (np.arange(_CELLS) + 0.5) / _CELLS
    weights = np.ones((len(scenes), 1, _CELLS, _CELLS), np.float32)
    for row, scene in enumerate(scenes):
        for placed in scene.objects:
            lines = np.abs(centers - placed.y) < placed.half
            columns = np.abs(centers - placed.x) < placed.half
            weights[row, 0][np.outer(lines, columns)] = _OBJECT_WEIGHT
    return torch.from_numpy(weights / weights.mean())


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

    def __call__(self, predicted: Tensor, target: Tensor, steps: Tensor, cells: Tensor) -> Tensor:
        """The mean over pictures of each weighted squared error; ``cells`` weighs the places of each picture.

        What an error has in common over several cells, such as a wrong color, counts more than its share of the
        squares: like ``cells`` this leaves the best prediction as it is and is learned sooner.
        """
        wrong = predicted.float() - target
        fine = (wrong.square() * cells).mean(dim=(1, 2, 3))
        common = avg_pool2d(wrong, _COARSE_CELLS, stride=_COARSE_CELLS // 2).square()
        coarse = (common * avg_pool2d(cells, _COARSE_CELLS, stride=_COARSE_CELLS // 2)).mean(dim=(1, 2, 3))
        weighted: Tensor = self.weight[steps] * (fine + _COARSE_WEIGHT * coarse)
        return weighted.mean()


class _Batch(NamedTuple):
    """Clean latents (n, 4, 16, 16), token ids (n, 32), noise, steps (n,), and what each cell counts."""

    clean: Tensor
    ids: Tensor
    noise: Tensor
    steps: Tensor
    cells: Tensor


class _Data:
    """Everything that is drawn from, on the training device; scenes of one object come more often than they occur."""

    def __init__(self, scenes: list[Scene], latents: Tensor, bank: Tensor, empty: Tensor) -> None:
        self.device = latents.device
        self.latents, self.bank, self.empty = latents, bank, empty
        self.cells = weigh_objects(scenes).to(self.device)
        alone = torch.tensor([len(scene.objects) == 1 for scene in scenes], device=self.device)
        self.likely = torch.where(alone, _SINGLE_SHARE / alone.sum(), (1.0 - _SINGLE_SHARE) / (~alone).sum())

    def draw(self, batch: int, source: torch.Generator) -> _Batch:
        """A batch with random captions, a tenth of them empty."""
        rows = torch.multinomial(self.likely, batch, replacement=True, generator=source)
        said = torch.randint(self.bank.shape[1], (batch,), generator=source, device=self.device)
        silent = torch.rand(batch, generator=source, device=self.device) < _CAPTION_DROPOUT
        clean = self.latents[rows].float()
        return _Batch(
            clean=clean,
            ids=torch.where(silent[:, None], self.empty, self.bank[rows, said].long()),
            noise=torch.randn(clean.shape, generator=source, device=self.device),
            steps=torch.randint(1000, (batch,), generator=source, device=self.device),
            cells=self.cells[rows],
        )


def _networks(
    settings: Settings, device: torch.device
) -> tuple[CLIPTokenizer, CLIPTextModel, UNet2DConditionModel]:
    tokenizer, encoder = load_text(settings.out, device)
    unet = UNet2DConditionModel(**UNET).to(device)
    set_out(settings.start, unet=unet, encoder=encoder)
    if device.type == "cpu":  # six to nine times faster than the fused kernel at these small sizes
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)
        encoder.set_attn_implementation("eager")
    return tokenizer, encoder, unet


def train_unet(settings: Settings) -> None:
    """Train UNet and text encoder; averaged weights end in ``OUT/unet``."""
    torch.manual_seed(settings.seed)
    device, data = pick_device(settings.device), settings.out / "data"
    count = settings.pictures or _DEFAULT_PICTURES
    vae = load_autoencoder(settings.out, device)
    scenes, latents = training_latents(data, vae, seed=settings.seed + 1, count=count)
    tokenizer, encoder, unet = _networks(settings, device)
    bank = caption_bank(data, scenes, tokenizer, seed=settings.seed, variants=_VARIANTS)
    scale = scaling_factor(latents)
    groups = [
        {"params": list(unet.parameters()), "share": 1.0},
        {"params": list(encoder.parameters()), "share": _TEXT_RATE},
    ]
    run = Run("unet", settings, {"unet": unet, "encoder": encoder}, peak_lr=1e-3, groups=groups)
    source = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + run.step)
    empty = encode_captions(tokenizer, [""]).to(device)
    known = _Data(scenes, (latents.float() * scale).half().to(device), bank.to(device), empty)
    velocity = VelocityLoss(device)
    forward = torch.compile(unet) if settings.compiled else unet
    while run.running():
        batch = known.draw(settings.batch or _DEFAULT_BATCH, source)
        noisy, target = velocity.mix(batch.clean, batch.noise, batch.steps)
        with autocast(device):
            states = encoder(input_ids=batch.ids).last_hidden_state
            predicted = forward(noisy, batch.steps, states).sample
        run.update(velocity(predicted, target, batch.steps, batch.cells))
    run.finish()
