"""Prompts that each cross-attention layer reads in its own way (P+ and XTI, arXiv 2303.09522).

A prompt with a word that has vectors for each layer is encoded once more for all layers together, when the denoiser
first reads its plain encoding; each layer's projections are then given the encoding that is theirs. Every sample of a
batch has encodings of its own, and those without such a word are passed on as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conceptry.composer.hooks import Patch, Probing
from conceptry.composer.pipelines import UNET, Pipeline, get_component, iter_cross_attention
from conceptry.composer.presence import find_source, mark_source
from conceptry.composer.sequences import Match, SequenceLog
from conceptry.composer.tokens import TokenPatch
from conceptry.errors import IncompatibleError

_STACK: Final = "_conceptry_layered"


class LayeredPatch(Patch):
    """Gives each cross-attention layer the prompt as its own vectors make it, while attached.

    Gradients reach the vectors. Several patches on one denoiser serve one prompt together.

    Args:
        pipeline: its denoiser reads the encodings, its text encoders make them.
        tokens: attached before this patch; some of its placeholders have ``layers``.
        layers: the paths that the vectors are for.

    Raises:
        IncompatibleError: at ``attach``, if the denoiser lacks a layer; nothing is then changed.
    """

    def __init__(self, pipeline: Pipeline, tokens: TokenPatch, layers: Iterable[str]) -> None:
        super().__init__()
        self.tokens = tokens
        self._pipeline = pipeline
        self._layers = tuple(dict.fromkeys(layers))
        self._denoiser = get_component(pipeline, UNET)

    def _put_in(self) -> None:
        attentions = dict(iter_cross_attention(self._denoiser))
        missing = [path for path in self._layers if path not in attentions]
        if missing:
            raise IncompatibleError(
                f"the rows are for the layer {missing[0]!r}, which the base lacks; it has {len(attentions)} "
                "cross-attention layers",
                hint="concepts show tells which base the concept was made for",
            )
        stack = vars(self._denoiser).get(_STACK)
        if stack is None:
            stack = vars(self._denoiser)[_STACK] = _Stack(self._pipeline, self._denoiser, attentions)
        stack.patches.append(self)
        stack.put_in()

    def _take_out(self) -> None:
        stack = vars(self._denoiser).get(_STACK)
        if stack is None:
            return
        if self in stack.patches:
            stack.patches.remove(self)
        stack.forget()
        if not stack.patches:
            stack.take_out()
            del vars(self._denoiser)[_STACK]


def has_layers(denoiser: nn.Module) -> bool:
    """Returns whether some prompt may be read by each layer in its own way now."""
    return _STACK in vars(denoiser)


def find_layers(denoiser: nn.Module, context: Tensor) -> Mapping[str | None, Tensor]:
    """Returns what layers read in place of ``context``, by their paths; nothing where all read it as it is.

    Raises:
        IncompatibleError: if the encoding was not made while the patches were attached.
    """
    stack = vars(denoiser).get(_STACK)
    return {} if stack is None else stack.find_contexts(context)


class _Stack:
    """All layered patches on one denoiser, what prompts they saw, and the hooks that serve them."""

    def __init__(self, pipeline: Pipeline, denoiser: nn.Module, attentions: Mapping[str, Any]) -> None:
        self.patches: list[LayeredPatch] = []
        self._log = SequenceLog(pipeline)
        self._paths = tuple(attentions)
        self._context: weakref.ref[Tensor] | None = None
        self._version: tuple[int, bool] = (0, False)
        self._contexts: dict[str, Tensor] = {}
        self._denoiser, self._attentions = denoiser, attentions
        self._handles: list[RemovableHandle] = []

    def put_in(self) -> None:
        """Puts the hooks in, unless they are; the stack is noted before, so that they are found again."""
        self.forget()
        if self._handles:
            return
        self._log.watch()
        self._handles.append(self._denoiser.register_forward_pre_hook(self._look_ahead, with_kwargs=True))
        for path, attention in self._attentions.items():
            for projection in (attention.to_k, attention.to_v):
                # Before a hypernetwork's, whose outcome is no text encoding any more.
                hook = self._make_hook(path)
                self._handles.append(projection.register_forward_pre_hook(hook, prepend=True))

    def forget(self) -> None:
        self._context, self._contexts = None, {}

    def take_out(self) -> None:
        self._log.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _look_ahead(self, _: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        # Outside of the layers: one whose activations are computed twice must do the same twice.
        context = options.get("encoder_hidden_states")
        if isinstance(context, Tensor):
            self.find_contexts(context)

    def _make_hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def give_own(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            # What was made of another encoding is read as it is: whoever made it minded the layers.
            known = Probing.active or find_source(args[0]) is not args[0]
            contexts = {} if known else self.find_contexts(args[0])
            return None if path not in contexts else (contexts[path], *args[1:])

        return give_own

    def find_contexts(self, context: Tensor) -> Mapping[str, Tensor]:
        """Returns each layer's encodings for this context: one tensor is read by all layers, and in all steps."""
        version = (0 if context.is_inference() else context._version, torch.is_grad_enabled())
        if self._context is None or self._context() is not context or version != self._version:
            self._contexts = self._encode(context)
            self._context, self._version = weakref.ref(context), version
        return self._contexts

    def _encode(self, context: Tensor) -> dict[str, Tensor]:
        found = [self._log.match(row) for row in context]
        rows = [number for number, parts in enumerate(found) if self._is_layered(parts)]
        if not rows:
            return {}
        parts = []
        for place in range(len(self._log.encoders)):
            mine = [found[row][place] for row in rows]
            parts.append(self._log.encode(place, [one.ids for one, _ in mine], mine, self._paths))
        own = torch.cat(parts, dim=-1).to(context)
        places = torch.tensor(rows, device=context.device)
        contexts = {}
        for path, values in zip(self._paths, own, strict=True):
            contexts[path] = context.index_copy(0, places, values)
            mark_source(contexts[path], context)
        return contexts

    def _is_layered(self, parts: Sequence[Match]) -> bool:
        return any(
            bool(patch.tokens.find_layered(encoder, one.ids).any())
            for patch in self.patches
            for encoder, (one, _) in zip(self._log.encoders, parts, strict=False)
        )
