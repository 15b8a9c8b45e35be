"""Keys locked to the superclass for a whole prompt (Perfusion's global key lock, arXiv 2305.01644, section 4).

The key projections read the prompt with the superclass in the place of each such concept's word, so that the other
words are encoded as they are beside the superclass. Values read the prompt as it is written.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor, nn

from conceptry.composer.gram import RankOneEdit
from conceptry.composer.layered import find_layers, has_layers
from conceptry.composer.pipelines import Pipeline, TextEncoder, split_word
from conceptry.composer.presence import context_version, find_source, mark_source
from conceptry.composer.sequences import Match, SequenceLog
from conceptry.composer.tokens import PLAIN
from conceptry.errors import IncompatibleError

Stages = tuple[Mapping[str | None, Tensor], ...]
"""A batch by layer (None where all read the same): as it is written, then with more and more superclasses."""


class GlobalLock:
    """What key projections read while some edits lock keys globally.

    A concept at strength s moves keys s of the way to those of its superclass. Where strengths differ, the stronger
    concepts' words give way first: e0 + s1 (e1 - e0) + s2 (e2 - e1), each e with one more word replaced.

    Args:
        pipeline: its text encoders are watched, and encode the prompts again.
        denoiser: its cross-attention layers read the encodings.
        paths: of those layers.
    """

    def __init__(self, pipeline: Pipeline, denoiser: nn.Module, paths: Sequence[str]) -> None:
        self._pipeline = pipeline
        self._denoiser = denoiser
        self._paths = tuple(paths)
        self._log = SequenceLog(pipeline)
        self._context: weakref.ref[Tensor] | None = None
        self._key: tuple[object, ...] = ()
        self._stages: Stages = ()
        self._strengths: tuple[float, ...] = ()
        self._mixed: dict[str | None, Tensor] = {}

    def watch(self) -> None:
        """Watches the text encoders from now on."""
        self._log.watch()

    def close(self) -> None:
        """Watches the text encoders no longer."""
        self._log.close()

    def find_context(self, path: str, context: Tensor, edits: Sequence[RankOneEdit]) -> Tensor | None:
        """Returns what the keys at ``path`` are made of in place of ``context``; None where nothing is replaced.

        Args:
            path: of the cross-attention layer.
            context: what the layer was given to read.
            edits: those that lock keys globally.

        Raises:
            IncompatibleError: if the encoding was not made while attached, or word and superclass differ in length.
        """
        source = find_source(context)
        groups = _group(edits)
        if not groups:
            return None
        key = (
            context_version(source),
            torch.is_grad_enabled(),
            *(edit.placeholder for _, group in groups for edit in group),
            tuple(len(group) for _, group in groups),
        )
        strengths = tuple(strength for strength, _ in groups)
        if self._context is None or self._context() is not source or key != self._key:
            self._stages = self._encode(source, [group for _, group in groups])
            self._context, self._key, self._strengths = weakref.ref(source), key, ()
        if strengths != self._strengths:
            self._mixed = _mix(self._stages, strengths, source)
            self._strengths = strengths
        return self._mixed.get(path, self._mixed.get(None))

    def _encode(self, context: Tensor, groups: Sequence[Sequence[RankOneEdit]]) -> Stages:
        found = [self._log.match(row) for row in context]
        swaps = [self._list_swaps(group) for group in groups]
        ids = [[one.ids for one, _ in parts] for parts in found]
        versions = [ids]
        for swap in swaps:
            ids = [
                [_replace(own, table) for own, table in zip(row, swap, strict=False)] for row in versions[-1]
            ]
            versions.append(ids)
        rows = [row for row in range(len(found)) if _differ(versions[0][row], versions[-1][row])]
        if not rows:
            return ()
        paths = self._paths if has_layers(self._denoiser) else PLAIN
        return tuple(self._encode_rows(context, rows, ids, found, paths) for ids in versions)

    def _encode_rows(
        self,
        context: Tensor,
        rows: Sequence[int],
        ids: Sequence[Sequence[Tensor]],
        found: Sequence[Sequence[Match]],
        paths: tuple[str | None, ...],
    ) -> dict[str | None, Tensor]:
        parts = [
            self._log.encode(
                place, [ids[row][place] for row in rows], [found[row][place] for row in rows], paths
            )
            for place in range(len(self._log.encoders))
        ]
        places = torch.tensor(list(rows), device=context.device)
        whole = torch.cat(parts, dim=-1).to(context)
        # The other rows are as the layer reads them without a lock: some may have vectors of its own.
        before = find_layers(self._denoiser, context)
        return {
            path: before.get(path, context).index_copy(0, places, values)
            for path, values in zip(paths, whole, strict=True)
        }

    def _list_swaps(self, group: Sequence[RankOneEdit]) -> list[dict[int, int]]:
        """Returns for each encoder which id takes the place of which."""
        return [
            dict(swap for edit in group for swap in _iter_swaps(self._pipeline, encoder, edit))
            for encoder in self._log.encoders
        ]


def _group(edits: Sequence[RankOneEdit]) -> list[tuple[float, list[RankOneEdit]]]:
    """Returns the edits that do anything by strength, the strongest first."""
    active = sorted((edit for edit in edits if edit.strength != 0), key=lambda edit: -edit.strength)
    return [(strength, list(group)) for strength, group in groupby(active, key=lambda edit: edit.strength)]


def _mix(stages: Stages, strengths: Sequence[float], source: Tensor) -> dict[str | None, Tensor]:
    if not stages:
        return {}
    mixed = {}
    for path, plain in stages[0].items():
        total = stages[1][path] if strengths[0] == 1.0 else plain + strengths[0] * (stages[1][path] - plain)
        for number, strength in enumerate(strengths[1:], start=1):
            total = total + strength * (stages[number + 1][path] - stages[number][path])
        mark_source(total, source)
        mixed[path] = total
    return mixed


def _iter_swaps(pipeline: Pipeline, encoder: TextEncoder, edit: RankOneEdit) -> Iterator[tuple[int, int]]:
    tokenizer = getattr(pipeline, encoder.tokenizer_name)
    own = getattr(tokenizer, "placeholder_ids", {}).get(edit.placeholder, [])
    superclass = split_word(pipeline, edit.superclass or "", encoder.tokenizer_name)
    if own and len(own) != len(superclass):
        raise IncompatibleError(
            f"keys cannot be locked to {edit.superclass!r} for a whole prompt: it is {len(superclass)} tokens, "
            f"{edit.placeholder!r} has {len(own)} vectors"
        )
    return zip(own, superclass, strict=False)


def _replace(ids: Int[Tensor, " positions"], swaps: Mapping[int, int]) -> Int[Tensor, " positions"]:
    replaced = ids.clone()
    for own, other in swaps.items():
        replaced[ids == own] = other
    return replaced


def _differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return any(not torch.equal(one, other) for one, other in zip(first, second, strict=True))
