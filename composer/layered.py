"""Prompts that each cross-attention layer reads in its own way (P+ and XTI, arXiv 2303.09522).

A prompt with a word that has vectors for each layer is encoded once more for all layers together, when the denoiser
first reads its plain encoding; each layer's projections are then given the encoding that is theirs. Every sample of a
batch has encodings of its own, and those without such a word are passed on as they are.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from conceptry.composer.hooks import Patch, Probing
from conceptry.composer.pipelines import (
    UNET,
    Pipeline,
    TextEncoder,
    get_component,
    iter_cross_attention,
    list_text_encoders,
)
from conceptry.composer.presence import RECENT_SEQUENCES, list_states, mark_source
from conceptry.composer.tokens import Reading, TokenPatch
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
        stack.forget()

    def _take_out(self) -> None:
        stack = vars(self._denoiser).get(_STACK)
        if stack is None or self not in stack.patches:
            return
        stack.patches.remove(self)
        stack.forget()
        if not stack.patches:
            stack.remove()
            del vars(self._denoiser)[_STACK]


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """One sequence as a text encoder was given it, and its last position in each hidden state."""

    ids: Int[Tensor, " positions"]
    last: Float[Tensor, "states width"]
    layered: bool


class _Stack:
    """All layered patches on one denoiser, what prompts they saw, and the hooks that serve them."""

    def __init__(self, pipeline: Pipeline, denoiser: nn.Module, attentions: Mapping[str, Any]) -> None:
        self.patches: list[LayeredPatch] = []
        self._encoders = list_text_encoders(pipeline)
        self._paths = tuple(attentions)
        self._seen: dict[str, deque[_Encoded]] = {
            encoder.component: deque(maxlen=RECENT_SEQUENCES) for encoder in self._encoders
        }
        self._context: weakref.ref[Tensor] | None = None
        self._version: tuple[int, bool] = (0, False)
        self._contexts: dict[str, Tensor] = {}
        self._handles = [handle for encoder in self._encoders for handle in self._watch(encoder)]
        self._handles.append(denoiser.register_forward_pre_hook(self._look_ahead, with_kwargs=True))
        for path, attention in attentions.items():
            for projection in (attention.to_k, attention.to_v):
                # Before a hypernetwork's, whose outcome is no text encoding any more.
                hook = self._make_hook(path)
                self._handles.append(projection.register_forward_pre_hook(hook, prepend=True))

    def forget(self) -> None:
        self._context, self._contexts = None, {}

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # --- what was encoded ------------------------------------------------------------------------------------------

    def _watch(self, encoder: TextEncoder) -> Iterator[Any]:
        pending: list[Tensor] = []

        def keep_ids(_: nn.Module, args: Any, options: dict[str, Any]) -> None:
            ids = options.get("input_ids", args[0] if args else None)
            pending[:] = [ids.reshape(-1, ids.shape[-1])] if isinstance(ids, Tensor) else []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            if pending and Reading.paths == (None,):
                self._record(encoder, pending.pop(), output)

        # Before all others: the patches put harmless ids in the place of theirs.
        yield encoder.inner.register_forward_pre_hook(keep_ids, with_kwargs=True, prepend=True)
        yield encoder.inner.register_forward_hook(record)

    def _record(self, encoder: TextEncoder, ids: Tensor, output: Any) -> None:
        states = list_states(output)
        layered = torch.zeros_like(ids, dtype=torch.bool)
        for patch in self.patches:
            layered |= patch.tokens.find_layered(encoder, ids)
        for number, row in enumerate(ids):
            last = torch.stack([state[number, -1].detach() for state in states])
            self._seen[encoder.component].append(_Encoded(row, last, bool(layered[number].any())))

    # --- what the layers read --------------------------------------------------------------------------------------

    def _look_ahead(self, _: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        # Outside of the layers: one whose activations are computed twice must do the same twice.
        context = options.get("encoder_hidden_states")
        if isinstance(context, Tensor):
            self._find_contexts(context)

    def _make_hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def give_own(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            contexts = {} if Probing.active else self._find_contexts(args[0])
            return None if path not in contexts else (contexts[path], *args[1:])

        return give_own

    def _find_contexts(self, context: Tensor) -> Mapping[str, Tensor]:
        """Returns each layer's encodings for this context: one tensor is read by all layers, and in all steps."""
        version = (0 if context.is_inference() else context._version, torch.is_grad_enabled())
        if self._context is None or self._context() is not context or version != self._version:
            self._contexts = self._encode(context)
            self._context, self._version = weakref.ref(context), version
        return self._contexts

    def _encode(self, context: Tensor) -> dict[str, Tensor]:
        found = [self._match(row) if bool(row.any()) else () for row in context.detach()]
        rows = [number for number, parts in enumerate(found) if any(one.layered for one, _ in parts)]
        if not rows or not self.patches:
            return {}
        parts = [
            self._encode_part(place, [found[row][place] for row in rows])
            for place in range(len(self._encoders))
        ]
        own = torch.cat(parts, dim=-1).to(context)
        places = torch.tensor(rows, device=context.device)
        contexts = {}
        for path, values in zip(self._paths, own, strict=True):
            contexts[path] = context.index_copy(0, places, values)
            mark_source(contexts[path], context)
        return contexts

    def _match(self, row: Tensor) -> tuple[tuple[_Encoded, int], ...]:
        """Returns the sequence and the hidden state that each encoder's columns of ``row`` come from."""
        start, found = 0, []
        for encoder in self._encoders:
            match = None
            for one in reversed(self._seen[encoder.component]):
                part = row[-1, start : start + one.last.shape[1]]
                equal = (one.last.to(part) == part).all(dim=1) if len(one.ids) == len(row) else part[:0]
                if bool(equal.any()):
                    match = (one, int(equal.nonzero()[0]))
                    break
            if match is None:
                raise IncompatibleError(
                    "this text encoding was not made while the concept was attached, so that its layers cannot be told",
                    hint="give the pipeline prompt=, or call pipeline.encode_prompt(...) after attach(...)",
                )
            found.append(match)
            start += match[0].last.shape[1]
        return tuple(found)

    def _encode_part(
        self, place: int, found: list[tuple[_Encoded, int]]
    ) -> Float[Tensor, "paths rows positions width"]:
        """Returns the hidden states of one encoder for all layers, encoded as one batch."""
        encoder = self._encoders[place]
        ids = torch.stack([one.ids for one, _ in found])
        device = encoder.table.weight.device
        # Asked for only where it was read: at the first such call transformers puts in hooks of its own, for good.
        deep = any(which > 0 for _, which in found)
        with _reading(self._paths), torch.autocast(device.type, enabled=False):
            output = encoder.inner(
                input_ids=ids.repeat(len(self._paths), 1).to(device), output_hidden_states=deep
            )
        states = [
            state.reshape(len(self._paths), len(ids), *state.shape[1:]) for state in list_states(output)
        ]
        return torch.stack([states[which][:, row] for row, (_, which) in enumerate(found)], dim=1)


@contextmanager
def _reading(paths: tuple[str, ...]) -> Iterator[None]:
    before, Reading.paths = Reading.paths, paths
    try:
        yield
    finally:
        Reading.paths = before
