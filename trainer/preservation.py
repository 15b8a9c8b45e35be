"""The prior of DreamBooth (arXiv 2208.12242, eq. 2): the superclass shall stay what it is in the base.

``prediction``: on the noisy latents of the step, with the superclass alone in the prompt, the answer shall be the
base's own; nothing is generated. ``pictures``: pictures that the base made of the superclass, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.trainer.conditioning import PromptCache
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.learners import Learner
from conceptry.trainer.objectives import weighted_error
from conceptry.trainer.prior import ClassLatents, load_class_latents
from conceptry.trainer.prompts import write_class_prompt
from conceptry.trainer.randomness import seed_generator


@dataclass(frozen=True, slots=True)
class Preservation:
    """The loss on the superclass of one run, for any method that changes weights."""

    context: TrainingContext
    prompts: PromptCache
    """Encodings of the base's own text encoders."""

    class_latents: tuple[ClassLatents, ...]
    """Pictures of each subject's superclass; empty where the base is asked instead."""

    @classmethod
    def prepare(cls, context: TrainingContext) -> Preservation | None:
        """Returns the prior that the settings ask for, its pictures generated; None where they ask for none."""
        settings = context.job.settings
        if settings.prior == "none" or not settings.prior_weight:
            return None
        wordings = context.wordings if settings.prior == "pictures" else ()
        pictures = tuple(load_class_latents(context, wording) for wording in wordings)
        return cls(context, PromptCache(context.pipeline), pictures)

    def compute_loss(self, learner: Learner, batch: Batch, step: int) -> Float[Tensor, ""]:
        """Returns ``prior_weight`` times the error on prompts with the superclass alone."""
        if not self.class_latents:
            texts, noisy = [pair.plain for pair in batch.prompts], batch.noisy
            target = self._ask_base(learner, batch, texts)
        else:
            subjects = [pair.subject for pair in batch.prompts]
            texts = [write_class_prompt(self.context.wordings[subject]) for subject in subjects]
            generator = seed_generator(self.context.job.job.seed, "prior", step)
            # Of the whole batch, whose rows a piece takes: drawn for each by itself, all would get the same ones.
            size = batch.step_size
            drawn = [batch.take(pictures.pick(size, generator)) for pictures in self.class_latents]
            chosen = [drawn[subject][place] for place, subject in enumerate(subjects)]
            clean = torch.stack(chosen).to(batch.noisy)
            noise = batch.take(torch.randn((size, *clean.shape[1:]), generator=generator)).to(clean)
            noisy = self.context.schedule.add_noise(clean, noise, batch.timesteps)
            target = self.context.schedule.make_target(clean, noise, batch.timesteps)
        conditioning = learner.condition(texts)
        with self.context.autocast():
            prediction = self.context.denoise(noisy, batch.timesteps, conditioning)
        weight = self.context.job.settings.prior_weight
        return weight * weighted_error(prediction, target, batch.weights)

    @torch.no_grad()
    def _ask_base(self, learner: Learner, batch: Batch, texts: list[str]) -> Tensor:
        with learner.absent(), self.context.autocast():
            conditioning = self.prompts.encode(texts)
            return self.context.denoise(batch.noisy, batch.timesteps, conditioning)
