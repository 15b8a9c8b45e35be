"""What a denoiser is told of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What attention reads, and beside it the pooled encoding of the families that have one."""

    states: Float[Tensor, "prompts tokens width"]
    pooled: Float[Tensor, "prompts pooled"] | None = None
    mask: Bool[Tensor, "prompts tokens"] | None = None
    """Which tokens are there, for encoders whose prompts keep their own lengths."""

    def select(self, rows: Int64[Tensor, " batch"]) -> Conditioning:
        """Returns the conditioning of ``rows``; gradients flow through."""
        rows = rows.to(self.states.device)
        return Conditioning(
            self.states[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.mask is None else self.mask[rows],
        )


def join_conditionings(found: Sequence[Conditioning]) -> Conditioning:
    """Returns the conditionings one after the other, those with masks filled up to one length."""
    tokens = max(one.states.shape[1] for one in found)
    pooled = [one.pooled for one in found if one.pooled is not None]
    masks = [one.mask for one in found if one.mask is not None]
    return Conditioning(
        torch.cat([F.pad(one.states, (0, 0, 0, tokens - one.states.shape[1])) for one in found]),
        torch.cat(pooled) if pooled else None,
        torch.cat([F.pad(mask, (0, tokens - mask.shape[1])) for mask in masks]) if masks else None,
    )
