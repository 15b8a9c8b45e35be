"""LoRA (arXiv 2106.09685): low-rank deltas beside the denoiser's projections; the base's weights stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conceptry.composer.lora import LoraFactors, LoraPatch
from conceptry.composer.tensors import from_torch
from conceptry.errors import UsageError
from conceptry.formats.lora import LoraContents, LoraModule, write_lora
from conceptry.manifest import LoraMethod, Token
from conceptry.trainer.conditioning import Conditioning, PromptCache
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.learners import Draft, Learner
from conceptry.trainer.randomness import seed_generator


@dataclass(slots=True, eq=False)
class Lora(Learner):
    """Trains W + (alpha / rank) B A (eq. 3): A begins as Kaiming uniform noise, B at zero."""

    context: TrainingContext
    factors: dict[str, tuple[nn.Parameter, nn.Parameter]]
    """Module path inside the UNet -> (down, up)."""

    scale: float
    started_from: Mapping[str, Tensor]
    patch: LoraPatch
    prompts: PromptCache

    @classmethod
    def prepare(cls, context: TrainingContext) -> Lora:
        """Returns the learner. Raises UsageError if no layer of the base matches ``targets``."""
        settings = context.job.settings
        layers = find_layers(context.pipeline.unet, settings.targets)
        generator = seed_generator(context.job.job.seed, "init")
        factors = {path: _make_factors(layer, settings.rank, generator) for path, layer in layers.items()}
        scale = (settings.alpha or settings.rank) / settings.rank
        wrapped = {path: LoraFactors(down, up, scale) for path, (down, up) in factors.items()}
        return cls(
            context=context,
            factors=factors,
            scale=scale,
            started_from={name: value.detach().clone() for name, value in _name_parameters(factors).items()},
            patch=LoraPatch(context.pipeline.unet, wrapped),
            prompts=PromptCache(context.pipeline),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Both factors of every layer."""
        return _name_parameters(self.factors)

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The factors that training began with."""
        return self.started_from

    def attach(self) -> None:
        """Adds the deltas to the layers' outputs."""
        self.patch.attach()

    def detach(self) -> None:
        """Takes them out."""
        self.patch.detach()

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding; the text encoder is frozen, so each text is encoded once."""
        return self.prompts.encode(texts)

    def draft(self) -> Draft:
        """Returns a ``lora`` part."""
        job, rank = self.context.job.job, self.context.job.settings.rank
        modules = {
            f"unet.{path}": LoraModule.of_factors(
                down=from_torch(down), up=from_torch(up), alpha=self.scale * rank
            )
            for path, (down, up) in self.factors.items()
        }

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_lora(path, LoraContents(modules=modules), metadata)

        return Draft(
            kind="lora",
            method=LoraMethod(rank=rank, modules=len(modules), scale=self.scale),
            tokens=(Token(placeholder=job.placeholder, superclass=job.superclass),),
            files={"lora.safetensors": write},
        )


def find_layers(unet: Any, targets: Sequence[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Returns the linear and convolution layers whose path matches one of ``targets``. Raises UsageError."""
    found = {
        path: layer
        for path, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(fnmatchcase(path, target) for target in targets)
    }
    if not found:
        raise UsageError(
            f"no layer of the base matches {', '.join(targets) or 'nothing'}",
            where="settings.targets",
            hint='attention projections are "*.to_q" "*.to_k" "*.to_v" "*.to_out.0"',
        )
    return found


def _make_factors(
    layer: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    weight = layer.weight
    inputs = math.prod(weight.shape[1:])
    bound = 1 / math.sqrt(inputs)  # Kaiming uniform with a = sqrt(5), as linear layers begin
    down = (torch.rand((rank, *weight.shape[1:]), generator=generator) * 2 - 1) * bound
    up = torch.zeros((weight.shape[0], rank, *[1] * (weight.ndim - 2)))
    return nn.Parameter(down.to(weight.device)), nn.Parameter(up.to(weight.device))


def _name_parameters(factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> dict[str, nn.Parameter]:
    named = {f"lora/{path}/down": down for path, (down, _) in factors.items()}
    return named | {f"lora/{path}/up": up for path, (_, up) in factors.items()}
