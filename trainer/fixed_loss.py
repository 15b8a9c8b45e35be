"""The loss on samples that never change, which unlike a training loss can be compared from step to step."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.learners import Learner
from conceptry.trainer.objectives import weighted_error

FIXED_SAMPLES: Final = 16


@torch.no_grad()
def measure_fixed_loss(context: TrainingContext, learner: Learner) -> float:
    """Returns the loss on samples that are the same in every call, of noise that training never draws."""
    error = measure_error(learner, context.draw_fixed_batch(FIXED_SAMPLES), count_at_once(context))
    (loss,) = context.team.agree([float(error)], context.device)
    return loss


def count_at_once(context: TrainingContext) -> int:
    """Returns how many samples a piece of a step has, for which alone a job that accumulates has memory."""
    settings = context.job.settings
    return math.ceil(settings.batch_size / min(settings.accumulation_steps, settings.batch_size))


def measure_error(learner: Learner, batch: Batch, at_once: int) -> Tensor:
    """Returns the error of a batch, of which at most ``at_once`` samples are computed at once."""
    size = len(batch.prompts)
    if at_once >= size:
        return weighted_error(learner.predict(batch), batch.target, batch.weights, batch.mask)
    errors = [
        weighted_error(learner.predict(piece), piece.target, piece.weights, piece.mask) * len(piece.prompts)
        for piece in batch.split(math.ceil(size / at_once))
    ]
    return torch.stack(errors).sum() / size
