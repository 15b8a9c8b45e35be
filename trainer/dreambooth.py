"""DreamBooth (arXiv 2208.12242): the denoiser's own weights are tuned, with a prior that keeps the superclass.

The base's values lie aside while the tuned ones stand in for them, so the base itself never changes and can be asked
at any time what it would have predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import iter_tensors
from conceptry.composer.tensors import from_torch
from conceptry.errors import TrainingError, UsageError
from conceptry.formats.full import FullContents, write_full
from conceptry.manifest import FullMethod
from conceptry.trainer.conditioning import Conditioning, PromptCache
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.learners import Draft, DraftPart, Learner, make_tokens
from conceptry.trainer.preservation import Preservation

UNET = ComponentName("unet")


class TunedWeights(Patch):
    """The tuned values in the place of the base's own while attached: what moves the parameters moves the values."""

    def __init__(self, weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self._values = values
        self._originals: dict[str, Tensor] = {}

    def _put_in(self) -> None:
        for name, weight in self._weights.items():
            self._originals[name] = weight.data
            weight.data = self._values[name]

    def _take_out(self) -> None:
        for name, original in self._originals.items():
            self._weights[name].data = original
        self._originals.clear()


@dataclass(slots=True, eq=False)
class DreamBooth(Learner):
    """Minimises the denoising loss on the pictures, plus the prior's on the superclass (eq. 2)."""

    trains_base_weights: ClassVar[bool] = True

    context: TrainingContext
    tuned: dict[str, nn.Parameter]
    """The base's parameters by published name; their memory is ``values`` while attached."""

    values: dict[str, Tensor]
    patch: TunedWeights
    prompts: PromptCache
    preservation: Preservation | None = None

    @classmethod
    def prepare(cls, context: TrainingContext) -> DreamBooth:
        """Returns the learner. Raises UsageError if no tensor of the base matches ``targets``."""
        unet = context.pipeline.unet
        tuned = find_weights(unet, context.job.settings.targets)
        values = {name: weight.detach().clone() for name, weight in tuned.items()}
        return cls(
            context=context,
            tuned=tuned,
            values=values,
            patch=TunedWeights(tuned, values),
            prompts=PromptCache(context.pipeline),
            preservation=Preservation.prepare(context),
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

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Lets the base's own weights answer while the block runs; the gradients of the tuned ones stay."""
        self.patch.detach()
        try:
            yield
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
        part = DraftPart(
            kind="full",
            method=FullMethod(components=(UNET,), changed_tensors=len(changed), total_tensors=total),
            files={f"{UNET}.safetensors": write},
        )
        return Draft(parts=(part,), tokens=make_tokens(job))


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
