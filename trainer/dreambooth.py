"""DreamBooth (arXiv 2208.12242): the denoiser's own weights are tuned, with a prior that keeps the superclass.

The base's values lie aside while the tuned ones stand in for them, so the base itself never changes and can be asked
at any time what it would have predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.full import FullPatch
from conceptry.composer.pipelines import iter_tensors
from conceptry.composer.tensors import from_torch
from conceptry.errors import TrainingError, UsageError
from conceptry.formats.full import FullContents, write_full
from conceptry.manifest import FullMethod, Token
from conceptry.trainer.conditioning import Conditioning, PromptCache, denoise
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.learners import Draft, Learner
from conceptry.trainer.objectives import weighted_error
from conceptry.trainer.prior import ClassLatents, load_class_latents
from conceptry.trainer.prompts import write_class_prompt
from conceptry.trainer.randomness import seed_generator

UNET = ComponentName("unet")


@dataclass(slots=True, eq=False)
class DreamBooth(Learner):
    """Minimises the denoising loss on the pictures plus ``prior_weight`` times a loss on the superclass (eq. 2).

    Prior ``prediction``: on the same noisy latents with the superclass alone in the prompt, the tuned denoiser shall
    predict what the base predicts. Prior ``pictures``: pictures that the base made of the superclass, as in the paper.
    """

    trains_base_weights: ClassVar[bool] = True

    context: TrainingContext
    tuned: dict[str, nn.Parameter]
    """The base's parameters by published name; their memory is ``values`` while attached."""

    values: dict[str, Tensor]
    patch: FullPatch
    prompts: PromptCache
    class_latents: ClassLatents | None

    @classmethod
    def prepare(cls, context: TrainingContext) -> DreamBooth:
        """Returns the learner. Raises UsageError if no tensor of the base matches ``targets``."""
        settings, unet = context.job.settings, context.pipeline.unet
        tuned = find_weights(unet, settings.targets)
        values = {name: weight.detach().clone() for name, weight in tuned.items()}
        prompts = PromptCache(context.pipeline)
        pictures = None
        if settings.prior == "pictures":
            pictures = load_class_latents(context)
        return cls(
            context=context,
            tuned=tuned,
            values=values,
            patch=FullPatch(unet, values),
            prompts=prompts,
            class_latents=pictures,
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The denoiser's parameters, which are the tuned ones while attached."""
        return {f"weights/{name}": weight for name, weight in self.tuned.items()}

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The base's own values; to be read while detached."""
        return {f"weights/{name}": weight.detach() for name, weight in self.tuned.items()}

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The tuned values."""
        return {f"weights/{name}": value for name, value in self.values.items()}

    def attach(self) -> None:
        """Puts the tuned values in the place of the base's."""
        self.patch.attach()
        for weight in self.tuned.values():
            weight.requires_grad_(True)

    def detach(self) -> None:
        """Puts the base's values back."""
        for weight in self.tuned.values():
            weight.requires_grad_(False)
            weight.grad = None
        self.patch.detach()

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding; the text encoder is frozen, so each text is encoded once."""
        return self.prompts.encode(texts)

    def compute_loss(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """Returns the loss on the pictures plus the prior's."""
        settings = self.context.job.settings
        loss = weighted_error(self.predict(batch), batch.target, batch.weights)
        if settings.prior == "none" or not settings.prior_weight:
            return loss
        return loss + settings.prior_weight * self._compute_prior(batch, step)

    def _compute_prior(self, batch: Batch, step: int) -> Tensor:
        noisy = batch.noisy
        if self.class_latents is None:
            conditioning = self.condition([pair.plain for pair in batch.prompts])
            target = self._predict_base(batch, conditioning)
        else:
            conditioning = self.condition([write_class_prompt(self.context.wording)] * len(batch.prompts))
            generator = seed_generator(self.context.job.job.seed, "prior", step)
            clean = self.class_latents.pick(len(batch.prompts), generator).to(noisy)
            noisy = self.context.schedule.add_noise(clean, batch.noise, batch.timesteps)
            target = self.context.schedule.make_target(clean, batch.noise, batch.timesteps)
        with self.context.autocast():
            prediction = denoise(self.context.pipeline, noisy, batch.timesteps, conditioning)
        return weighted_error(prediction, target, batch.weights)

    @torch.no_grad()
    def _predict_base(self, batch: Batch, conditioning: Conditioning) -> Tensor:
        self.patch.detach()
        try:
            with self.context.autocast():
                return denoise(self.context.pipeline, batch.noisy, batch.timesteps, conditioning)
        finally:
            self.patch.attach()

    def draft(self) -> Draft:
        """Returns a ``full`` part with the tensors that differ from the base's. Raises TrainingError if none does."""
        job = self.context.job.job
        changed = {
            name: value
            for name, value in self.values.items()
            if not torch.equal(value, self.tuned[name].data)
        }
        if not changed:
            raise TrainingError("no weight differs from the base's", hint="train for more steps")

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            # Bytes are made here and not before: of a large model they are gigabytes.
            tensors = {name: from_torch(value) for name, value in changed.items()}
            write_full(path, FullContents(component=UNET, tensors=tensors), metadata)

        total = sum(1 for _ in iter_tensors(self.context.pipeline.unet))
        return Draft(
            kind="full",
            method=FullMethod(components=(UNET,), changed_tensors=len(changed), total_tensors=total),
            tokens=(Token(placeholder=job.placeholder, superclass=job.superclass),),
            files={f"{UNET}.safetensors": write},
        )


def find_weights(unet: Any, targets: Sequence[str]) -> dict[str, nn.Parameter]:
    """Returns the denoiser's parameters whose published name matches one of ``targets``. Raises UsageError."""
    found = {
        name: tensor
        for name, tensor in iter_tensors(unet)
        if isinstance(tensor, nn.Parameter) and any(fnmatchcase(name, target) for target in targets)
    }
    if not found:
        raise UsageError(
            f"no weight of the base matches {', '.join(targets) or 'nothing'}",
            where="settings.targets",
            hint='all of them are "*", cross-attention alone is "*.attn2.*"',
        )
    return found
