"""How the denoiser of each family is asked: one row for each class, in the terms of its own pipeline.

Latents are [batch, channels, height, width] everywhere; what a family packs, it packs here. ``times`` are timesteps for
denoisers of a diffusion process, and sigma in [0, 1] for those of a flow, which answer noise minus picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.errors import IncompatibleError
from conceptry.trainer.denoisers import get_denoiser
from conceptry.trainer.encodings import Conditioning

Latents = Float[Tensor, "batch channels height width"]
Ask = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
Encode = Callable[[Any, list[str]], Conditioning]

_FLUX_GUIDANCE: Final = 3.5
"""What a denoiser that was distilled from guided pictures is told, in training as in use."""

_STEPS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Architecture:
    """How prompts are encoded for a denoiser, and how it is asked."""

    encode: Encode
    ask: Ask


def find_architecture(pipeline: Any) -> Architecture:
    """Returns the row of the pipeline's denoiser. Raises IncompatibleError if its class is not known."""
    name = type(get_denoiser(pipeline)).__name__
    row = ARCHITECTURES.get(name)
    if row is None:
        raise IncompatibleError(
            f"{name} cannot be trained through by this version", hint=f"known: {', '.join(ARCHITECTURES)}"
        )
    return row


# --- prompts -------------------------------------------------------------------------------------------------------


def _encode_clip(pipeline: Any, texts: list[str]) -> Conditioning:
    encoded = pipeline.encode_prompt(
        texts, device=_find_device(pipeline), num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return Conditioning(encoded[0], encoded[2] if len(encoded) == 4 else None)


def _encode_three(pipeline: Any, texts: list[str]) -> Conditioning:
    states, _, pooled, _ = pipeline.encode_prompt(
        texts, texts, texts, device=_find_device(pipeline), do_classifier_free_guidance=False
    )
    return Conditioning(states, pooled)


def _encode_flux(pipeline: Any, texts: list[str]) -> Conditioning:
    states, pooled, _ = pipeline.encode_prompt(texts, texts, device=_find_device(pipeline))
    return Conditioning(states, pooled)


def _encode_qwen(pipeline: Any, texts: list[str]) -> Conditioning:
    states, mask = pipeline.encode_prompt(texts, device=_find_device(pipeline))
    whole = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return Conditioning(states, None, whole if mask is None else mask.bool())


def _encode_z_image(pipeline: Any, texts: list[str]) -> Conditioning:
    rows, _ = pipeline.encode_prompt(
        list(texts), device=_find_device(pipeline), do_classifier_free_guidance=False
    )
    states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=states.device)
    return Conditioning(states, None, torch.arange(states.shape[1], device=states.device) < lengths[:, None])


def _find_device(pipeline: Any) -> torch.device:
    return torch.device(next(pipeline.text_encoder.parameters()).device)


# --- the denoiser --------------------------------------------------------------------------------------------------


def _ask_unet(pipeline: Any, noisy: Latents, times: Tensor, conditioning: Conditioning) -> Latents:
    """Returns the prediction, with the size conditioning of SDXL where the base wants it."""
    unet = pipeline.unet
    kind = unet.dtype
    extra: dict[str, Any] = {}
    if conditioning.pooled is not None:
        height, width = (float(side * pipeline.vae_scale_factor) for side in noisy.shape[-2:])
        sizes = torch.tensor([[height, width, 0.0, 0.0, height, width]], device=noisy.device, dtype=kind)
        added = {"text_embeds": conditioning.pooled.to(kind), "time_ids": sizes.expand(len(noisy), -1)}
        extra["added_cond_kwargs"] = added
    states = conditioning.states.to(kind)
    answer = unet(noisy.to(kind), times, encoder_hidden_states=states, return_dict=False, **extra)
    prediction: Tensor = answer[0]
    return prediction


def _ask_sd3(pipeline: Any, noisy: Latents, times: Tensor, conditioning: Conditioning) -> Latents:
    transformer = pipeline.transformer
    kind = transformer.dtype
    answer: Tensor = transformer(
        hidden_states=noisy.to(kind),
        timestep=times * _STEPS,
        encoder_hidden_states=conditioning.states.to(kind),
        pooled_projections=_require_pooled(conditioning).to(kind),
        return_dict=False,
    )[0]
    return answer


def _ask_flux(pipeline: Any, noisy: Latents, times: Tensor, conditioning: Conditioning) -> Latents:
    transformer = pipeline.transformer
    kind, (height, width) = transformer.dtype, noisy.shape[-2:]
    guidance = torch.full_like(times, _FLUX_GUIDANCE) if transformer.config.guidance_embeds else None
    answer: Tensor = transformer(
        hidden_states=_pack(noisy).to(kind),
        timestep=times.to(kind),
        guidance=guidance,
        pooled_projections=_require_pooled(conditioning).to(kind),
        encoder_hidden_states=conditioning.states.to(kind),
        txt_ids=torch.zeros(conditioning.states.shape[1], 3, device=noisy.device, dtype=kind),
        img_ids=_number_places(height // 2, width // 2).to(noisy.device, kind),
        return_dict=False,
    )[0]
    return _unpack(answer, noisy)


def _ask_qwen(pipeline: Any, noisy: Latents, times: Tensor, conditioning: Conditioning) -> Latents:
    transformer = pipeline.transformer
    kind, (height, width) = transformer.dtype, noisy.shape[-2:]
    mask = conditioning.mask
    answer: Tensor = transformer(
        hidden_states=_pack(noisy).to(kind),
        timestep=times.to(kind),
        encoder_hidden_states=conditioning.states.to(kind),
        encoder_hidden_states_mask=None if mask is None or bool(mask.all()) else mask.long(),
        img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
        return_dict=False,
    )[0]
    return _unpack(answer, noisy)


def _ask_z_image(pipeline: Any, noisy: Latents, times: Tensor, conditioning: Conditioning) -> Latents:
    """Returns the flow from picture to noise; this denoiser counts time the other way round, and so it answers."""
    transformer = pipeline.transformer
    kind = transformer.dtype
    states = conditioning.states.to(kind)
    mask = conditioning.mask
    rows = [
        row if mask is None else row[keep]
        for row, keep in zip(states, _list_masks(mask, states), strict=True)
    ]
    pictures = list(noisy.to(kind).unsqueeze(2).unbind(dim=0))
    answers: Sequence[Tensor] = transformer(pictures, (1 - times).to(kind), rows, return_dict=False)[0]
    return -torch.stack(list(answers)).squeeze(2)


def _list_masks(mask: Tensor | None, states: Tensor) -> Sequence[Tensor | slice]:
    return [slice(None)] * len(states) if mask is None else list(mask)


def _require_pooled(conditioning: Conditioning) -> Tensor:
    if conditioning.pooled is None:
        raise IncompatibleError(
            "the pipeline gives no pooled encoding of its prompts, which this denoiser reads"
        )
    return conditioning.pooled


def _pack(latents: Latents) -> Float[Tensor, "batch places values"]:
    """Returns squares of two by two places as one token each."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, height // 2 * (width // 2), channels * 4)


def _unpack(tokens: Float[Tensor, "batch places values"], like: Latents) -> Latents:
    batch, channels, height, width = like.shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(batch, channels, height, width)


def _number_places(rows: int, columns: int) -> Float[Tensor, "places 3"]:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float()


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "UNet2DConditionModel": Architecture(_encode_clip, _ask_unet),
    "SD3Transformer2DModel": Architecture(_encode_three, _ask_sd3),
    "FluxTransformer2DModel": Architecture(_encode_flux, _ask_flux),
    "QwenImageTransformer2DModel": Architecture(_encode_qwen, _ask_qwen),
    "ZImageTransformer2DModel": Architecture(_encode_z_image, _ask_z_image),
}
