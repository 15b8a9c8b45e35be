"""What one run works with: the job, the open base, the encoded pictures and where to report to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from conceptry.bases import BaseIdentity
from conceptry.trainer.conditioning import Conditioning, denoise
from conceptry.trainer.events import OnEvent, TrainEvent
from conceptry.trainer.jobs import ResolvedJob
from conceptry.trainer.latents import LatentCache
from conceptry.trainer.objectives import NoiseSchedule
from conceptry.trainer.prompts import PromptPair, Wording
from conceptry.trainer.randomness import draw_step, seed_generator

Latents = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's samples."""

    clean: Latents
    noise: Latents
    noisy: Latents
    target: Latents
    timesteps: Int64[Tensor, " batch"]
    weights: Float[Tensor, " batch"]
    prompts: tuple[PromptPair, ...]

    def split(self, parts: int) -> list[Batch]:
        """Returns the batch in ``parts`` pieces of nearly equal size, for gradient accumulation."""
        bounds = [len(self.prompts) * part // parts for part in range(parts + 1)]
        return [self._cut(start, stop) for start, stop in pairwise(bounds) if stop > start]

    def _cut(self, start: int, stop: int) -> Batch:
        return Batch(
            clean=self.clean[start:stop],
            noise=self.noise[start:stop],
            noisy=self.noisy[start:stop],
            target=self.target[start:stop],
            timesteps=self.timesteps[start:stop],
            weights=self.weights[start:stop],
            prompts=self.prompts[start:stop],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingContext:
    """The job, the base it runs on, and the data, all on one device."""

    job: ResolvedJob
    pipeline: Any
    identity: BaseIdentity
    schedule: NoiseSchedule
    latents: LatentCache
    prompts: tuple[tuple[PromptPair, ...], ...]
    wording: Wording
    cache_folder: Path
    repo: str | None = None
    revision: str | None = None
    """Where the base was published, when that is how it was named."""

    autocast_dtype: torch.dtype | None
    """The dtype that the denoiser computes in; None means its own."""

    on_event: OnEvent

    @property
    def device(self) -> torch.device:
        """Where the denoiser and the latents are."""
        return self.latents.mean.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context in which the denoiser runs during training."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def denoise(
        self, noisy: Latents, timesteps: Int64[Tensor, " batch"], conditioning: Conditioning
    ) -> Latents:
        """Returns the denoiser's prediction in its own precision, or that of ``autocast`` around it."""
        return denoise(self.pipeline, noisy, self.schedule.tell(timesteps), conditioning)

    def announce(self, message: str) -> None:
        """Tells the caller that a phase begins."""
        self.on_event(TrainEvent(kind="phase", message=message))

    def warn(self, message: str) -> None:
        """Tells the caller something that does not stop the run."""
        self.on_event(TrainEvent(kind="warning", message=message))

    def draw_batch(self, step: int) -> Batch:
        """Returns the samples of ``step``, a function of the seed and the step alone."""
        job, count = self.job, len(self.prompts)
        draw = draw_step(
            seed=job.job.seed,
            step=step,
            pictures=count,
            batch_size=job.settings.batch_size,
            train_timesteps=self.schedule.timesteps,
        )
        rows = [self.prompts[int(picture)] for picture in draw.pictures]
        chosen = [row[int(share * len(row))] for row, share in zip(rows, draw.prompts.tolist(), strict=True)]
        return self._make_batch(draw.pictures, draw.timesteps, chosen, step)

    def draw_fixed_batch(self, samples: int) -> Batch:
        """Returns samples that never change during a run: the ruler that progress is measured with."""
        pictures = torch.arange(samples) % len(self.prompts)
        timesteps = ((torch.arange(samples) + 0.5) / samples * self.schedule.timesteps).long()
        chosen = [self.prompts[int(picture)][0] for picture in pictures]
        return self._make_batch(pictures, timesteps, chosen, step=-1)

    def _make_batch(
        self,
        pictures: Int64[Tensor, " batch"],
        timesteps: Int64[Tensor, " batch"],
        prompts: Sequence[PromptPair],
        step: int,
    ) -> Batch:
        seed = self.job.job.seed
        clean = self.latents.sample(pictures, seed_generator(seed, "latents", step))
        noise = torch.randn(clean.shape, generator=seed_generator(seed, "noise", step)).to(self.device)
        timesteps = timesteps.to(self.device)
        return Batch(
            clean=clean,
            noise=noise,
            noisy=self.schedule.add_noise(clean, noise, timesteps),
            target=self.schedule.make_target(clean, noise, timesteps),
            timesteps=timesteps,
            weights=self.schedule.weigh(timesteps, self.job.settings.min_snr_gamma),
            prompts=tuple(prompts),
        )
