"""Prompts as the denoiser reads them, through the pipeline's own encoding, and the denoiser's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from conceptry.trainer.architectures import find_architecture
from conceptry.trainer.encodings import Conditioning, join_conditionings

__all__ = ["Conditioning", "PromptCache", "denoise", "encode_prompts", "find_long_prompts"]


def encode_prompts(pipeline: Any, texts: Sequence[str]) -> Conditioning:
    """Returns the encoding of ``texts`` as the pipeline itself would make it, with gradients where they are on.

    Each distinct text is encoded once.
    """
    distinct = list(dict.fromkeys(texts))
    rows = torch.tensor([distinct.index(text) for text in texts])
    return find_architecture(pipeline).encode(pipeline, distinct).select(rows)


def denoise(
    pipeline: Any,
    noisy: Float[Tensor, "batch channels height width"],
    times: Shaped[Tensor, " batch"],
    conditioning: Conditioning,
) -> Float[Tensor, "batch channels height width"]:
    """Returns the denoiser's prediction at ``times``, in the terms of its schedule."""
    return find_architecture(pipeline).ask(pipeline, noisy, times, conditioning)


@dataclass(slots=True)
class PromptCache:
    """Encodings of a frozen text encoder, each made once."""

    pipeline: Any
    _known: dict[str, Conditioning] = field(default_factory=dict)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding of ``texts``, from the cache where it was made before."""
        for text in dict.fromkeys(texts):
            if text not in self._known:
                self._known[text] = encode_prompts(self.pipeline, [text])
        return join_conditionings([self._known[text] for text in texts])


def find_long_prompts(pipeline: Any, texts: Sequence[str]) -> Mapping[str, int]:
    """Returns the texts that the base's tokenizer would cut, and how many tokens each has."""
    limit = int(pipeline.tokenizer.model_max_length)
    counts = {text: len(pipeline.tokenizer(text).input_ids) for text in dict.fromkeys(texts)}
    return {text: count for text, count in counts.items() if count > limit}
