"""A pipeline made ready for training, and given back as it was: frozen, in evaluation mode, with private tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import nn

from conceptry.composer.placeholders import private_tokenizers
from conceptry.errors import IncompatibleError
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.denoisers import get_denoiser

# Up to this many positions plain attention is several times faster on a processor, forward and backward, than the fused
# kernel; beyond it the matrix of scores costs more memory than it is worth.
PLAIN_ATTENTION_POSITIONS: Final = 1024


@contextmanager
def prepared(pipeline: Any) -> Iterator[None]:
    """Freezes all weights and works on private tokenizers while the block runs; all is as it was afterwards."""
    modules = [module for module in pipeline.components.values() if isinstance(module, nn.Module)]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_frozen(module))
        stack.enter_context(private_tokenizers(pipeline))
        yield


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(part, part.training) for part in module.modules()]
    module.requires_grad_(False)
    module.eval()
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode


@contextmanager
def plain_attention(pipeline: Any, *, positions: int) -> Iterator[None]:
    """Computes the denoiser's attention without the fused kernel while the block runs, where that is faster.

    Args:
        pipeline: whose denoiser is trained through.
        positions: of the largest self-attention: height times width of the latents.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    unet = get_denoiser(pipeline)
    before = dict(getattr(unet, "attn_processors", {}))
    on_processor = next(iter(unet.parameters())).device == torch.device("cpu")
    usual = bool(before) and all(type(processor) is AttnProcessor2_0 for processor in before.values())
    if not (on_processor and usual and positions <= PLAIN_ATTENTION_POSITIONS):
        yield
        return
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(before)


@contextmanager
def checkpointed_gradients(context: TrainingContext) -> Iterator[None]:
    """Has the denoiser compute its activations anew in the backward pass while the block runs, if the job says so.

    Raises:
        IncompatibleError: if the denoiser cannot.
    """
    denoiser = get_denoiser(context.pipeline)
    if not context.job.settings.gradient_checkpointing or getattr(
        denoiser, "is_gradient_checkpointing", False
    ):
        yield
        return
    if not getattr(denoiser, "_supports_gradient_checkpointing", False):
        raise IncompatibleError(
            f"{type(denoiser).__name__} cannot compute its activations twice",
            where="settings.gradient_checkpointing",
            hint="train with a smaller --set batch_size, or with more --set accumulation_steps",
        )
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()
