"""When a run should end, and which of its values are kept: early stopping, and the best on noise that it never saw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from conceptry.trainer.settings import EarlyStop


@dataclass(slots=True)
class VarianceStop:
    """DVAR (arXiv 2302.04841): the loss on one batch that never changes has become flat.

    The run ends when var(last ``window_steps`` losses) / var(all losses) falls below ``ratio``.
    """

    settings: EarlyStop
    losses: list[float] = field(default_factory=list)

    def add(self, losses: list[float]) -> None:
        """Takes the losses of the steps since the last call."""
        self.losses += losses

    @property
    def reached(self) -> bool:
        """Whether the loss is flat; a function of the losses alone, so that a resumed run stops at the same step."""
        return is_flat(self.losses, window=self.settings.window_steps, ratio=self.settings.ratio)


def is_flat(losses: list[float], *, window: int, ratio: float) -> bool:
    """Returns whether the variance of the last ``window`` losses is under ``ratio`` of that of all of them."""
    if len(losses) <= window:
        return False
    whole = float(np.var(losses))
    return whole > 0 and float(np.var(losses[-window:])) < ratio * whole


@dataclass(slots=True)
class BestValues:
    """The values of the step whose loss on held-out noise was the lowest, in the processor's memory."""

    loss: float = math.inf
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def offer(self, loss: float, step: int, tensors: Mapping[str, Tensor]) -> bool:
        """Keeps a copy of ``tensors`` if ``loss`` is finite and the lowest so far; returns whether it did."""
        if not loss < self.loss:  # not a number is never kept
            return False
        self.loss, self.step = loss, step
        for name, value in tensors.items():
            if name in self.tensors:
                self.tensors[name].copy_(value)
            else:
                self.tensors[name] = value.detach().to("cpu", copy=True)
        return True

    @torch.no_grad()
    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the kept values into ``tensors``."""
        for name, value in tensors.items():
            value.copy_(self.tensors[name])
