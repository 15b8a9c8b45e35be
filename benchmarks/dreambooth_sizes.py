"""Claim: ten fp16 DreamBooth versions take at most 40 % of ten checkpoints, and 15 % rounded, with a stated error.

``python benchmarks/dreambooth_sizes.py [OUT.json]``: the denoiser of SD1.5 in its real configuration, with random
weights, is tuned by the preset of ``dreambooth`` for sd1 (Adam at 5e-6, batch 1, clipped, with the prior of the base's
own prediction). At each of ``MARKS`` steps what differs is packed, in fp16 and fp32, with every bit kept and rounded.

Gradients go through every layer. So that it fits beside other work, the latents are ``SIDE`` wide instead of 64, and
only every ``SHARE``-th tensor is tuned and packed: what Adam does to a value depends on its own gradients alone, but
for the clipping, which its normalisation takes back. Weights that were trained, on which gradients agree more or less
often from step to step, may differ: ``benchmarks/byte_planes.py TUNE BASE`` measures a tune of one's own. A step of
the whole takes seconds on one core: ``SECONDS`` ends it early, and ``NARROW=4`` divides all widths, which makes random
weights twice as large, nearer to those of the trained model (deviation 0.03).

A checkpoint holds what the preset does not tune, too (text encoder and autoencoder): versions share these files, so
that of ten checkpoints the denoisers alone are stored. The base is no part of any version, and not counted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from byte_planes import LOSSY_STEP
from diffusers import DDPMScheduler, UNet2DConditionModel
from measuring import describe_machine
from torch import Tensor

from conceptry.bases import ComponentName, FamilyId
from conceptry.formats.byte_planes import write_planes
from conceptry.formats.full import FullContents
from conceptry.formats.tensors import RawTensor
from conceptry.trainer.settings import Settings, resolve_settings

SIDE, SHARE, PICTURES = int(os.environ.get("SIDE", "16")), int(os.environ.get("SHARE", "25")), 5
NARROW = int(os.environ.get("NARROW", "1"))
MARKS = tuple(map(int, os.environ.get("MARKS", "25,50,100,200,400,800").split(",")))
SECONDS = float(os.environ.get("SECONDS", "1200"))
MAX_EXACT, MAX_ROUNDED = 0.40, 0.15
DENOISER_SHARE = 859_520_964 / (859_520_964 + 123_060_480 + 83_653_863)
"""Values of SD1.5's denoiser beside those of its text encoder and autoencoder, counted in their configurations."""

DTYPES: Mapping[str, Any] = {"fp16": np.float16, "fp32": np.float32}


def make_unet() -> Any:
    """Returns the denoiser of SD1.5 with random weights, of which every ``SHARE``-th tensor is to be tuned."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        block_out_channels=tuple(channels // NARROW for channels in (320, 640, 1280, 1280)),
        norm_num_groups=32 // NARROW,
    ).requires_grad_(False)
    for number, (_, weight) in enumerate(sorted(unet.named_parameters())):
        weight.requires_grad_(number % SHARE == 0)
    return unet


class Tuning:
    """One run: pictures, prompts and noise drawn with a fixed seed."""

    def __init__(self, unet: Any, settings: Settings) -> None:
        self.unet, self.settings = unet, settings
        self.weights = {name: one for name, one in unet.named_parameters() if one.requires_grad}
        self.base = {name: one.detach().clone() for name, one in self.weights.items()}
        (rate,) = settings.learning_rates.values()
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay
        )
        self.schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        self.random = torch.Generator().manual_seed(1)
        coarse = torch.randn((PICTURES, 4, 4, 4), generator=self.random)
        self.pictures = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
        self.subject, self.plain = torch.randn((2, 1, 77, 768), generator=self.random)

    def take_step(self) -> None:
        """One update of the weights, as the preset says."""
        chosen = torch.randint(PICTURES, (self.settings.batch_size,), generator=self.random)
        clean = self.pictures[chosen]
        noise = torch.randn(clean.shape, generator=self.random)
        times = torch.randint(1000, (len(clean),), generator=self.random)
        noisy = self.schedule.add_noise(clean, noise, times)
        wanted = self._ask_base(noisy, times)
        both = torch.cat([self.subject, self.plain])
        subject, plain = self._ask(torch.cat([noisy] * 2), torch.cat([times] * 2), both).chunk(2)
        loss = torch.nn.functional.mse_loss(subject, noise)
        loss = loss + self.settings.prior_weight * torch.nn.functional.mse_loss(plain, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.settings.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _ask(self, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
        answer: Tensor = self.unet(
            noisy, times, encoder_hidden_states=text.repeat_interleave(len(noisy) // len(text), 0)
        ).sample
        return answer

    @torch.no_grad()
    def _ask_base(self, noisy: Tensor, times: Tensor) -> Tensor:
        tuned = {name: weight.data for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.data = self.base[name]
        answer = self._ask(noisy, times, self.plain)
        for name, weight in self.weights.items():
            weight.data = tuned[name]
        return answer


def measure(run: Tuning, dtype: Any, folder: Path) -> dict[str, float]:
    """Returns the shares of what was tuned, with every bit kept and rounded, and the errors of the second."""
    old, new = (
        {name: RawTensor.from_numpy(one.detach().numpy().astype(dtype)) for name, one in values.items()}
        for values in (run.base, run.weights)
    )
    contents = FullContents(component=ComponentName("unet"), tensors=new)
    exact = write_planes(folder / "exact.safetensors", contents, old.get)
    rounded = write_planes(folder / "rounded.safetensors", contents, old.get, step=LOSSY_STEP)
    return {
        "exact": exact.share,
        "rounded": rounded.share,
        "exact_of_checkpoint": DENOISER_SHARE * exact.share,
        "rounded_of_checkpoint": DENOISER_SHARE * rounded.share,
        "relative_error": rounded.relative_error,
        "greatest_error": rounded.greatest_error,
    }


def main() -> None:
    """Tunes, measures at each mark, prints and writes."""
    settings = resolve_settings("dreambooth", FamilyId("sd1"), {})
    run = Tuning(make_unet(), settings)
    values = sum(one.numel() for one in run.weights.values())
    deviation = float(torch.cat([one.flatten() for one in run.base.values()]).std())
    print(f"{len(run.weights)} tensors of {values / 1e6:.1f} million values, deviation {deviation:.3g}")
    rows: list[dict[str, Any]] = []
    done, begun = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for mark in MARKS:
            while done < mark and time.monotonic() - begun < SECONDS:
                run.take_step()
                done += 1
            if done < mark:
                print(f"stopped after {done} steps: {SECONDS:g} s are over")
            for name, dtype in DTYPES.items():
                row = {"steps": done, "dtype": name, **measure(run, dtype, Path(folder))}
                rows.append(row)
                shown = "  ".join(f"{key} {row[key]:.4g}" for key in list(row)[2:])
                print(f"{done:5} steps, {name}: {shown}", flush=True)
            if done < mark:
                break
    last = next(row for row in reversed(rows) if row["dtype"] == "fp16")
    holds = last["exact_of_checkpoint"] <= MAX_EXACT and last["rounded_of_checkpoint"] <= MAX_ROUNDED
    wanted = f"wanted {MAX_EXACT:.0%} and {MAX_ROUNDED:.0%} of a checkpoint in fp16"
    print(f"holds after {last['steps']} steps: {holds} ({wanted})")
    if len(sys.argv) > 1:
        document = {
            "title": "sizes of DreamBooth versions",
            "machine": describe_machine(),
            "side": SIDE,
            "narrow": NARROW,
        }
        document |= {
            "values": values,
            "deviation": deviation,
            "preset_steps": settings.steps,
            "rows": rows,
            "holds": holds,
        }
        Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
        Path(sys.argv[1]).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
