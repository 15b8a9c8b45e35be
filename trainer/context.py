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
from conceptry.trainer.distribution import ALONE, Team
from conceptry.trainer.events import NOBODY, OnEvent, Onlooker, TrainEvent
from conceptry.trainer.jobs import ResolvedJob
from conceptry.trainer.latents import LatentCache, iter_places
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
    mask: Float[Tensor, "batch 1 height width"] | None = None
    """How much each place counts in the loss; None where no picture has a mask."""

    start: int = 0
    whole: int = 0
    """Of a piece: the place of its first sample in the step's batch, and how many that has; 0 where this is all."""

    def take(self, drawn: Tensor) -> Tensor:
        """Returns the rows of this piece from what was drawn for the step's whole batch."""
        return drawn[self.start : self.start + len(self.prompts)]

    @property
    def step_size(self) -> int:
        """How many samples the step's whole batch has."""
        return self.whole or len(self.prompts)

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
            mask=None if self.mask is None else self.mask[start:stop],
            start=self.start + start,
            whole=self.step_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingContext:
    """The job, the base it runs on, and the data, all on one device."""

    job: ResolvedJob
    pipeline: Any
    identity: BaseIdentity
    schedule: NoiseSchedule
    buckets: tuple[LatentCache, ...]
    """The encoded pictures, one cache for each shape, the one with most pictures first."""

    prompts: tuple[tuple[PromptPair, ...], ...]
    wordings: tuple[Wording, ...]
    """How each subject is written."""

    cache_folder: Path
    repo: str | None = None
    revision: str | None = None
    """Where the base was published, when that is how it was named."""

    autocast_dtype: torch.dtype | None
    """The dtype that the denoiser computes in; None means its own."""

    on_event: OnEvent
    team: Team = ALONE
    """The processes that share the job's batches."""

    watch: Onlooker = NOBODY
    """Who looks on between steps."""

    @property
    def latents(self) -> LatentCache:
        """The encoded pictures of the most frequent shape; of all pictures unless there are buckets."""
        return self.buckets[0]

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
        """Returns the samples of ``step``, all of one shape: a function of the seed and the step alone."""
        settings = self.job.settings
        cycle = tuple(iter_places(self.buckets))
        which, inside = cycle[step % len(cycle)]
        bucket = self.buckets[which]
        draw = draw_step(
            seed=self.job.job.seed,
            step=step,
            pictures=bucket.pass_length,
            batch_size=settings.batch_size,
            train_timesteps=self.schedule.timesteps,
            turn=step // len(cycle) * bucket.pass_length + inside,
        )
        pictures = bucket.follow(draw.pictures)
        rows = [self.prompts[bucket.members[int(picture)]] for picture in pictures]
        chosen = [row[int(share * len(row))] for row, share in zip(rows, draw.prompts.tolist(), strict=True)]
        return self._make_batch(bucket, pictures, draw.timesteps, chosen, step)

    def draw_fixed_batch(self, samples: int, *, noise: int = -1) -> Batch:
        """Returns samples that never change during a run: the ruler that progress is measured with.

        They are of the most frequent shape. ``noise`` is negative, so that no step of training draws the same noise;
        each number is another set.
        """
        bucket = self.latents
        pictures = bucket.follow(torch.arange(samples) % bucket.pass_length)
        timesteps = ((torch.arange(samples) + 0.5) / samples * self.schedule.timesteps).long()
        chosen = [self.prompts[bucket.members[int(picture)]][0] for picture in pictures]
        return self._make_batch(bucket, pictures, timesteps, chosen, step=noise)

    def _make_batch(
        self,
        bucket: LatentCache,
        pictures: Int64[Tensor, " batch"],
        timesteps: Int64[Tensor, " batch"],
        prompts: Sequence[PromptPair],
        step: int,
    ) -> Batch:
        seed = self.job.job.seed
        generator = seed_generator(seed, "latents", step)
        rows = bucket.pick(pictures, generator)
        clean = bucket.sample(rows, generator)
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
            mask=None if bucket.masks is None else bucket.masks[rows.to(self.device)],
        )
