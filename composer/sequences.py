"""The last prompts that text encoders were given, found again by their encodings, and encoded once more otherwise.

For what a denoiser is to read beside the plain encoding: the prompt with vectors for each layer (P+, arXiv 2303.09522),
or with the superclass in a word's place (Perfusion's global lock, arXiv 2305.01644).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conceptry.composer.emphasis import Reweighing, find_weights, weigh_states
from conceptry.composer.hooks import Probing, probing
from conceptry.composer.pipelines import Pipeline, TextEncoder, list_text_encoders
from conceptry.composer.presence import RECENT_SEQUENCES, list_states
from conceptry.composer.tokens import Reading
from conceptry.errors import IncompatibleError


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sequence as a text encoder was given it, and its last position in each hidden state.

    Text encoders attend to earlier positions only, so the last position depends on the whole prompt.
    """

    ids: Int[Tensor, " positions"]
    last: Float[Tensor, "states width"]
    weights: Float[Tensor, " positions"] | None = None
    """What its words weighed (``emphasized``)."""


Match = tuple[Encoded, int]
"""A sequence, and the hidden state that was read of it."""


class SequenceLog:
    """Remembers what each text encoder of a pipeline encoded while it watches, from ``watch`` to ``close``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.encoders = list_text_encoders(pipeline)
        self._seen: dict[str, deque[Encoded]] = {
            encoder.component: deque(maxlen=RECENT_SEQUENCES) for encoder in self.encoders
        }
        self._handles: list[RemovableHandle] = []

    def watch(self) -> None:
        """Watches from now on."""
        for encoder in self.encoders:
            self._watch(encoder)

    def close(self) -> None:
        """Watches no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, encoder: TextEncoder) -> None:
        pending: list[Tensor] = []

        def keep_ids(_: nn.Module, args: Any, options: dict[str, Any]) -> None:
            ids = options.get("input_ids", args[0] if args else None)
            pending[:] = [ids.reshape(-1, ids.shape[-1])] if isinstance(ids, Tensor) else []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            if pending and not Probing.active:
                states, ids = list_states(output), pending.pop()
                for number, row in enumerate(ids):
                    last = torch.stack([state[number, -1].detach() for state in states])
                    weights = find_weights(encoder.inner, row)
                    self._seen[encoder.component].append(Encoded(row, last, weights))

        # Before all others: the patches put harmless ids in the place of theirs.
        inner = encoder.inner
        self._handles.append(inner.register_forward_pre_hook(keep_ids, with_kwargs=True, prepend=True))
        self._handles.append(inner.register_forward_hook(record))

    def match(self, row: Float[Tensor, "positions context"]) -> tuple[Match, ...]:
        """Returns the sequence and the hidden state that each encoder's columns of ``row`` come from; nothing for
        all zeros, which SDXL uses for an empty negative prompt.

        Raises:
            IncompatibleError: if the encoding was not made while this log watched.
        """
        row = row.detach()
        if not bool(row.any()):
            return ()
        start, found = 0, []
        for encoder in self.encoders:
            match = _find(self._seen[encoder.component], row, start)
            if match is None:
                raise IncompatibleError(
                    "this text encoding was not made while the concept was attached, so that its layers cannot be told",
                    hint="give the pipeline prompt=, or call pipeline.encode_prompt(...) after attach(...)",
                )
            found.append(match)
            start += match[0].last.shape[1]
        return tuple(found)

    def encode(
        self, place: int, ids: Sequence[Tensor], matches: Sequence[Match], paths: tuple[str | None, ...]
    ) -> Float[Tensor, "paths rows positions width"]:
        """Returns what was read of the sequences that matched, with other ``ids``, as each of ``paths`` reads it.

        All are encoded as one batch, and weigh what they weighed before. Gradients flow where they are on.
        """
        encoder = self.encoders[place]
        stacked = torch.stack(list(ids))
        device = encoder.table.weight.device
        # Asked for only where it was read: at the first such call transformers puts in hooks of its own, for good.
        deep = any(which > 0 for _, which in matches)
        with _reading(paths), probing(), torch.autocast(device.type, enabled=False):
            output = encoder.inner(
                input_ids=stacked.repeat(len(paths), 1).to(device), output_hidden_states=deep
            )
        made = [state.reshape(len(paths), len(ids), *state.shape[1:]) for state in list_states(output)]
        rows = [_weigh(made[which][:, row], one.weights) for row, (one, which) in enumerate(matches)]
        return torch.stack(rows, dim=1)


def _weigh(states: Tensor, weights: Tensor | None) -> Tensor:
    return states if weights is None else weigh_states(states, weights.expand(states.shape[:2]))


def _find(entries: deque[Encoded], row: Tensor, start: int) -> Match | None:
    for one in reversed(entries):
        part = row[-1, start : start + one.last.shape[1]]
        equal = (one.last.to(part) == part).all(dim=1) if len(one.ids) == len(row) else part[:0]
        if bool(equal.any()):
            return one, int(equal.nonzero()[0])
    return None


@contextmanager
def _reading(paths: tuple[str | None, ...]) -> Iterator[None]:
    before, Reading.paths = (Reading.paths, Reweighing.active), paths
    Reweighing.active = True
    try:
        yield
    finally:
        Reading.paths, Reweighing.active = before
