"""Which prompts had which placeholders, read off the text encodings that a denoiser is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.bases import ComponentName
from conceptry.names import Placeholder

RECENT_SEQUENCES: Final = 512
RECENT_STATES: Final = 4
"""SDXL reads the last hidden state but one; ``clip_skip`` goes a little further back."""

_SOURCE: Final = "_conceptry_source"

Present = frozenset[Placeholder]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One encoded sequence: how long it was, and its last position in each hidden state.

    Text encoders attend to earlier positions only, so the last position depends on the whole prompt.
    """

    length: int
    last: Float[Tensor, "states width"]
    present: Present


class EncodingLog:
    """The last few hundred encodings of each text encoder, with the placeholders that their prompts had."""

    def __init__(self, components: Iterable[ComponentName]) -> None:
        self._entries: dict[ComponentName, deque[_Entry]] = {
            component: deque(maxlen=RECENT_SEQUENCES) for component in components
        }

    def record(self, component: ComponentName, output: Any, present: Sequence[Present]) -> None:
        """Remembers the outputs of one call of a text encoder, one set of placeholders for each sequence."""
        tensors = [state.detach() for state in list_states(output)]
        if not tensors:
            return
        last = torch.stack([state[:, -1] for state in tensors], dim=1)
        for row, names in zip(last, present, strict=False):
            self._entries[component].append(_Entry(tensors[0].shape[1], row.clone(), names))

    def find(self, context: Float[Tensor, "batch positions context"]) -> list[Present | None]:
        """Returns for each sample the placeholders of its prompt, or None where its encoding is not known.

        All-zero encodings, which SDXL uses for an empty negative prompt, have none.
        """
        found: list[Present | None] = []
        for row in context.detach():
            found.append(frozenset() if not bool(row.any()) else self._find_row(row))
        return found

    def _find_row(self, row: Float[Tensor, "positions context"]) -> Present | None:
        start = 0
        names: set[Placeholder] = set()
        for entries in self._entries.values():
            match = _match(entries, row, start)
            if match is None:
                return None
            width, present = match
            names |= present
            start += width
        return frozenset(names) if start == row.shape[1] else None


def list_states(output: Any) -> list[Tensor]:
    """Returns the hidden states of a text encoder's output that pipelines read: the last, and the last few before."""
    hidden = getattr(output, "last_hidden_state", None)
    states = [hidden, *(getattr(output, "hidden_states", None) or ())[-RECENT_STATES:]]
    return [state for state in states if isinstance(state, Tensor)]


def mark_source(context: Tensor, source: Tensor) -> None:
    """Lets ``find_source`` say that ``context`` was made of the encodings of ``source``."""
    setattr(context, _SOURCE, source)


def find_source(context: Tensor) -> Tensor:
    """Returns the encodings that a layer's own ones stand for; ``context`` itself where it is nobody's."""
    source: Tensor = getattr(context, _SOURCE, context)
    return source


def context_version(context: Tensor) -> int:
    """Returns the number of in-place changes of ``context``; inference tensors are never changed."""
    return 0 if context.is_inference() else int(context._version)


def _match(entries: Iterable[_Entry], row: Tensor, start: int) -> tuple[int, Present] | None:
    """Returns the width and the placeholders of all entries that equal ``row`` from column ``start`` on."""
    fitting = [entry for entry in entries if entry.length == row.shape[0]]
    if not fitting:
        return None
    width = fitting[0].last.shape[1]
    part = row[-1, start : start + width]
    if part.shape[0] != width:
        return None
    owners = [number for number, entry in enumerate(fitting) for _ in entry.last]
    equal = (torch.cat([entry.last for entry in fitting]).to(part) == part).all(dim=1)
    found = [fitting[owners[place]].present for place in equal.nonzero().flatten().tolist()]
    return (width, frozenset().union(*found)) if found else None
