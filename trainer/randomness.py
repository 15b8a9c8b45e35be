"""Every random choice of a run as a function of (seed, purpose, step), so that resuming needs no replay."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Purpose = Literal["init", "order", "latents", "noise", "timesteps", "prompts", "check", "prior", "crops"]


def seed_generator(seed: int, purpose: Purpose, step: int = 0) -> torch.Generator:
    """Returns a processor generator for one purpose of one step; the same on every device and in every order."""
    key = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


@dataclass(frozen=True, slots=True)
class Draw:
    """What chance decides in one step, still on the processor."""

    pictures: Int64[Tensor, " batch"]
    prompts: Float[Tensor, " batch"]
    """A share in [0, 1) that picks one of a picture's prompts."""

    timesteps: Int64[Tensor, " batch"]


def draw_step(
    *, seed: int, step: int, pictures: int, batch_size: int, train_timesteps: int, turn: int | None = None
) -> Draw:
    """Returns the pictures, prompts and timesteps of a step.

    Pictures come in shuffled passes: each is seen once before any is seen again. Timesteps are stratified over the
    batch, which has the same mean as independent ones and less variance. ``turn`` is the how many-th step on these
    pictures it is, where others have steps in between.
    """
    offsets = torch.rand(batch_size, generator=seed_generator(seed, "timesteps", step))
    strata = (torch.arange(batch_size) + offsets) / batch_size
    timesteps = (strata * train_timesteps).long().clamp_(max=train_timesteps - 1)
    order = torch.randperm(batch_size, generator=seed_generator(seed, "order", step))
    return Draw(
        pictures=_pick_pictures(seed, step if turn is None else turn, pictures, batch_size),
        prompts=torch.rand(batch_size, generator=seed_generator(seed, "prompts", step)),
        timesteps=timesteps[order],
    )


def _pick_pictures(seed: int, step: int, pictures: int, batch_size: int) -> Int64[Tensor, " batch"]:
    places = range(step * batch_size, (step + 1) * batch_size)
    passes = {place // pictures for place in places}
    orders = {
        number: torch.randperm(pictures, generator=seed_generator(seed, "order", -1 - number))
        for number in passes
    }
    return torch.stack([orders[place // pictures][place % pictures] for place in places])
