"""What layers make of a text encoding, made once for all steps of a picture: keys, values, and what networks read.

A denoiser reads one tensor in every step. What edits make of it is kept with it, as long as nothing changes that it
depends on, and where everything that it depends on can be seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import torch
from torch import Tensor, nn

from conceptry.composer.hooks import Generation
from conceptry.composer.lora import DeltaHook
from conceptry.composer.presence import context_version

_OURS: Final = "conceptry."

State = tuple[Hashable, ...]
"""What an entry depends on beside its text encoding; equal states give equal tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    source: weakref.ref[Tensor]
    version: int
    state: State
    made: Tensor
    made_version: int


class Tables:
    """For each place the last tensor that was made there, of one text encoding; gone with the encoding."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        """How many tensors are kept."""
        return len(self._entries)

    def clear(self) -> None:
        """Forgets all."""
        self._entries.clear()

    def find(self, place: Hashable, source: Tensor, state: State | None) -> Tensor | None:
        """Returns what was made at ``place`` of this very tensor in this state; None where that is not known."""
        entry = self._entries.get(place)
        if entry is None or state is None or entry.source() is not source:
            return None
        if entry.version != context_version(source) or entry.state != state:
            return None
        # Whoever reads it may write into it; then it is nobody's any more.
        return entry.made if entry.made_version == entry.made._version else None

    def keep(self, place: Hashable, source: Tensor, state: State | None, made: Tensor) -> None:
        """Keeps what was made at ``place``; nothing where ``state`` is None, or where writes could not be seen."""
        if state is None or made.is_inference():
            return
        entries = self._entries

        def forget(gone: weakref.ref[Tensor]) -> None:
            entry = entries.get(place)
            if entry is not None and entry.source is gone:
                del entries[place]

        version = context_version(source)
        self._entries[place] = _Entry(weakref.ref(source, forget), version, state, made, made._version)


def describe_mode() -> State | None:
    """Returns what every entry depends on; None where nothing may be kept: gradients are to flow, code is compiled."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return (Generation.value, Generation.strengths)


def describe_layer(layer: nn.Module) -> State | None:
    """Returns what the layer's outputs depend on beside its inputs; None where that may change unseen."""
    mode = describe_mode()
    weight = layer._parameters.get("weight")
    if mode is None or not isinstance(layer, nn.Linear) or weight is None or "base_layer" in layer._modules:
        return None
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    for hook in hooks:
        is_ours = str(getattr(hook, "__module__", "")).startswith(_OURS)
        if not is_ours or (isinstance(hook, DeltaHook) and hook.down.requires_grad):
            return None
    return (*mode, len(hooks), weight.data_ptr(), context_version(weight))


def is_last(layer: nn.Module, hook: object) -> bool:
    """Returns whether this forward hook has the last word on the layer's output, hooks of its own type aside."""
    others = takewhile(lambda other: other is not hook, reversed(layer._forward_hooks.values()))
    return all(type(other) is type(hook) for other in others)
