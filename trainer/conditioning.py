"""Prompts as the denoiser reads them, through the pipeline's own encoding, and the denoiser's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What cross-attention reads, and for SDXL the pooled encoding that is added to the time embedding."""

    states: Float[Tensor, "prompts tokens width"]
    pooled: Float[Tensor, "prompts pooled"] | None = None

    def select(self, rows: Int64[Tensor, " batch"]) -> Conditioning:
        """Returns the conditioning of ``rows``; gradients flow through."""
        rows = rows.to(self.states.device)
        return Conditioning(self.states[rows], None if self.pooled is None else self.pooled[rows])


def encode_prompts(pipeline: Any, texts: Sequence[str]) -> Conditioning:
    """Returns the encoding of ``texts`` as the pipeline itself would make it, with gradients where they are on.

    Each distinct text is encoded once.
    """
    distinct = list(dict.fromkeys(texts))
    device = next(pipeline.text_encoder.parameters()).device
    encoded = pipeline.encode_prompt(
        distinct, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    pooled = encoded[2] if len(encoded) == 4 else None
    rows = torch.tensor([distinct.index(text) for text in texts])
    return Conditioning(encoded[0], pooled).select(rows)


def denoise(
    pipeline: Any,
    noisy: Float[Tensor, "batch channels height width"],
    timesteps: Int64[Tensor, " batch"],
    conditioning: Conditioning,
) -> Float[Tensor, "batch channels height width"]:
    """Returns the denoiser's prediction, with the size conditioning of SDXL where the base wants it."""
    unet = pipeline.unet
    kind = unet.dtype
    extra: dict[str, Any] = {}
    if conditioning.pooled is not None:
        side = float(noisy.shape[-1] * pipeline.vae_scale_factor)
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=noisy.device, dtype=kind)
        added = {"text_embeds": conditioning.pooled.to(kind), "time_ids": sizes.expand(len(noisy), -1)}
        extra["added_cond_kwargs"] = added
    answer = unet(
        noisy.to(kind),
        timesteps,
        encoder_hidden_states=conditioning.states.to(kind),
        return_dict=False,
        **extra,
    )
    prediction: Tensor = answer[0]
    return prediction


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
        found = [self._known[text] for text in texts]
        pooled = [one.pooled for one in found if one.pooled is not None]
        return Conditioning(torch.cat([one.states for one in found]), torch.cat(pooled) if pooled else None)


def find_long_prompts(pipeline: Any, texts: Sequence[str]) -> Mapping[str, int]:
    """Returns the texts that the base's tokenizer would cut, and how many tokens each has."""
    limit = int(pipeline.tokenizer.model_max_length)
    counts = {text: len(pipeline.tokenizer(text).input_ids) for text in dict.fromkeys(texts)}
    return {text: count for text, count in counts.items() if count > limit}
