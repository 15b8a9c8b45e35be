"""LoRA and its variants: tensors beside the denoiser's layers are trained, the base's weights stay as they are.

The text encoders are adapted too where ``train_text_encoder`` says so, at a learning rate of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import list_components, list_text_encoders
from conceptry.formats.lora import LoraContents, write_lora
from conceptry.formats.lora_methods import describe_modules
from conceptry.trainer.adapters import ADAPTERS, Adapter, Place
from conceptry.trainer.conditioning import Conditioning, PromptCache, encode_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.denoisers import name_denoiser
from conceptry.trainer.layers import Layers, find_layers, pick_by_pattern
from conceptry.trainer.learners import Draft, DraftPart, Learner, make_tokens
from conceptry.trainer.preservation import Preservation
from conceptry.trainer.randomness import seed_generator
from conceptry.trainer.settings import Settings

_TEXT_TARGETS = ("attention",)


@dataclass(slots=True, eq=False)
class Lora(Learner):
    """Minimises the denoising loss over the tensors of all adapters, plus the prior's where there is one."""

    context: TrainingContext
    adapters: tuple[Adapter, ...]
    started_from: Mapping[str, Tensor]
    patches: tuple[Patch, ...]
    prompts: PromptCache | None
    """Encodings of frozen text encoders; None where they are trained."""

    preservation: Preservation | None = None

    @classmethod
    def prepare(cls, context: TrainingContext) -> Lora:
        """Returns the learner. Raises UsageError if no layer of the base matches ``targets``."""
        settings, pipeline = context.job.settings, context.pipeline
        row = ADAPTERS[settings.algorithm]
        adapters = tuple(row.make(place) for place in _iter_places(context))
        roots = list_components(pipeline)
        grouped: dict[ComponentName, list[Adapter]] = {}
        for adapter in adapters:
            grouped.setdefault(adapter.component, []).append(adapter)
        return cls(
            context=context,
            adapters=adapters,
            started_from={
                name: value.detach().clone() for name, value in _name_parameters(adapters, pipeline).items()
            },
            patches=tuple(row.patch(roots[component], found) for component, found in grouped.items()),
            prompts=None if settings.train_text_encoder else PromptCache(pipeline),
            preservation=Preservation.prepare(context),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The tensors of every layer's adapter."""
        return _name_parameters(self.adapters, self.context.pipeline)

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The values that training began with."""
        return self.started_from

    def attach(self) -> None:
        """Lets the adapters change the layers' outputs."""
        try:
            for patch in self.patches:
                patch.attach()
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Takes them out."""
        for patch in reversed(self.patches):
            patch.detach()

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding; a frozen text encoder reads each text once."""
        return (
            encode_prompts(self.context.pipeline, texts)
            if self.prompts is None
            else self.prompts.encode(texts)
        )

    def draft(self) -> Draft:
        """Returns a ``lora`` part."""
        job = self.context.job.job
        modules = {f"{one.component}.{one.path}": one.to_module() for one in self.adapters}

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_lora(path, LoraContents(modules=modules), metadata)

        part = DraftPart(kind="lora", method=describe_modules(modules), files={"lora.safetensors": write})
        return Draft(parts=(part,), tokens=make_tokens(job))


def iter_layers(pipeline: Any, settings: Settings) -> Iterator[tuple[ComponentName, Layers]]:
    """Returns for each component that is adapted its layers by published path. Raises UsageError if one has none."""
    denoiser = name_denoiser(pipeline)
    yield denoiser, find_layers(getattr(pipeline, denoiser), settings.targets)
    if settings.train_text_encoder:
        for encoder in list_text_encoders(pipeline):
            yield encoder.component, find_layers(encoder.module, _TEXT_TARGETS)


def pick_size(path: str, settings: Settings) -> tuple[int, float]:
    """Returns rank and alpha of the layer at ``path``: those of its pattern, else ``rank`` and ``alpha``."""
    rank = pick_by_pattern(path, settings.rank_pattern, settings.rank)
    return rank, float(pick_by_pattern(path, settings.alpha_pattern, settings.alpha or float(rank)))


def _iter_places(context: TrainingContext) -> Iterator[Place]:
    settings = context.job.settings
    generator = seed_generator(context.job.job.seed, "init")
    for component, layers in iter_layers(context.pipeline, settings):
        for path, layer in layers.items():
            rank, alpha = pick_size(path, settings)
            yield Place(
                component=component,
                path=path,
                layer=layer,
                rank=rank,
                alpha=alpha,
                frozen_outputs=settings.frozen_outputs,
                frozen_inputs=settings.frozen_inputs,
                generator=generator,
            )


def _name_parameters(adapters: Sequence[Adapter], pipeline: Any) -> dict[str, nn.Parameter]:
    denoiser = name_denoiser(pipeline)
    named: dict[str, nn.Parameter] = {}
    for one in adapters:
        prefix = "lora/" if one.component == denoiser else f"text_encoder/{one.component}."
        named |= {f"{prefix}{one.path}/{name}": value for name, value in one.parameters.items()}
    return named
