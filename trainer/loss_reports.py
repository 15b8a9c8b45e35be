"""The loss of each step as it is told: smoothed, and read back from an accelerator only now and then."""

from __future__ import annotations

import math
import time
from typing import Final

import torch
from torch import Tensor

from conceptry.trainer.context import TrainingContext
from conceptry.trainer.events import TrainEvent

REPORT_EVERY_STEPS: Final = 20


class LossReporter:
    """Reports each step; the loss is read back from an accelerator only now and then, so that it never waits."""

    def __init__(self, context: TrainingContext, total: int) -> None:
        self._context = context
        self._total = total
        self._pending: list[Tensor] = []
        self._shown: float | None = None
        self._started = time.perf_counter()

    def add(self, loss: Tensor, step: int) -> bool:
        """Returns whether the losses known so far are finite."""
        self._pending.append(loss)
        if loss.device.type == "cpu" or len(self._pending) >= REPORT_EVERY_STEPS or step == self._total:
            value = float(torch.stack(self._pending).mean())
            self._pending.clear()
            if not math.isfinite(value):
                return False
            self._shown = value if self._shown is None else 0.9 * self._shown + 0.1 * value
        seconds = time.perf_counter() - self._started
        self._context.on_event(
            TrainEvent(kind="step", step=step, total=self._total, loss=self._shown, seconds=seconds)
        )
        return True
