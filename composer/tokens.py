"""Placeholders as new token ids: their rows are put in on the way, the vocabulary and the table stay as they are.

Textual inversion (arXiv 2208.01618) trains such rows; Perfusion (arXiv 2305.01644) has one for each concept.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch, Probing
from conceptry.composer.pipelines import Pipeline, TextEncoder, list_text_encoders, split_word
from conceptry.composer.placeholders import hold_tokenizer, release_tokenizer
from conceptry.composer.presence import EncodingLog, Present
from conceptry.errors import IncompatibleError, InvalidPlaceholderError
from conceptry.names import Placeholder

# Above every vocabulary, below 2^31; never given twice, so that pipelines may share a text encoder.
_NEXT_ID: Final = itertools.count(1 << 24)


PLAIN: Final = (None,)


class Reading:
    """The cross-attention layers that prompts are encoded for, the batch once for each; None is no layer's own."""

    paths: tuple[str | None, ...] = PLAIN


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """The vectors of one placeholder, [n_vectors, width] for each text encoder that has some.

    With ``layers`` they are [layers, n_vectors, width]: each cross-attention layer reads the prompt with vectors of its
    own (P+, arXiv 2303.09522), and whatever else reads it gets their mean.
    """

    placeholder: Placeholder
    rows: Mapping[ComponentName, Float[Tensor, "*layers vectors _"]]
    anchors: Mapping[ComponentName, Float[Tensor, " _"] | None] | None = None
    """What strength 0 reads as, None for zero; without anchors, strength does not count."""

    layers: tuple[str, ...] | None = None
    """Paths of the cross-attention layers, in the order of the vectors."""

    def count(self, component: ComponentName) -> int:
        """Returns how many vectors the placeholder has, each an id of its own."""
        return int(self.rows[component].shape[-2])

    def choose(self, component: ComponentName, strength: float, paths: tuple[str | None, ...]) -> Tensor:
        """Returns the vectors that each of ``paths`` reads, [paths, vectors, width]; None is no layer's own."""
        rows = self.blend(component, strength)
        if self.layers is None:
            return rows.expand(len(paths), *rows.shape)
        places = {path: number for number, path in enumerate(self.layers)}
        if not any(path in places for path in paths):
            return rows.mean(dim=0).expand(len(paths), *rows.shape[1:])
        found = [rows[places[path]] if path in places else rows.mean(dim=0) for path in paths]
        return torch.stack(found)

    def blend(self, component: ComponentName, strength: float) -> Tensor:
        """Returns the vectors for one text encoder as they are at ``strength``."""
        rows = self.rows[component]
        if self.anchors is None or strength == 1.0:
            return rows
        return blend_rows(rows, self.anchors.get(component), strength)


class TokenPatch(Patch):
    """Gives each placeholder ids of its own and puts its rows where the token embedding is read, while attached.

    The rows may be parameters under training: gradients reach them. ``log`` remembers which prompts had which
    placeholders.

    Args:
        pipeline: its tokenizers are replaced by private copies while attached.
        tokens: the placeholders and their rows.
        strength: how far rows with anchors go from them; 1 is as trained. It may be set while attached.

    Raises:
        InvalidPlaceholderError: at ``attach``, if a placeholder is a word of a vocabulary.
        IncompatibleError: at ``attach``, if it is attached already, or a width is not the encoder's.
    """

    def __init__(self, pipeline: Pipeline, tokens: Sequence[TokenRows], *, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength
        self._pipeline = pipeline
        self._tokens = tuple(tokens)
        self._encoders = list_text_encoders(pipeline)
        self._ids: dict[str, dict[Placeholder, list[int]]] = {}
        self._held: dict[str, Any] = {}
        self.log = EncodingLog(encoder.component for encoder in self._encoders)

    def _put_in(self) -> None:
        for encoder in self._encoders:
            tokenizer = hold_tokenizer(self._pipeline, encoder.tokenizer_name, self)
            self._held[encoder.tokenizer_name] = tokenizer
            mine = [token for token in self._tokens if encoder.component in token.rows]
            for token in mine:
                check_placeholder(self._pipeline, token.placeholder, encoder)
                check_width(encoder, token)
            ids = {
                token.placeholder: [next(_NEXT_ID) for _ in range(token.count(encoder.component))]
                for token in mine
            }
            self._ids[encoder.tokenizer_name] = ids
            tokenizer.placeholder_ids.update(ids)
            self._watch(encoder, _RowTable(ids, _choose_safe_id(tokenizer)), mine)

    def _watch(self, encoder: TextEncoder, table: _RowTable, mine: Sequence[TokenRows]) -> None:
        def hide_ids(_: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if "input_ids" in options:
                return args, {**options, "input_ids": table.hide(options["input_ids"])}
            return (table.hide(args[0]), *args[1:]), options

        def record(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if not Probing.active:
                self.log.record(encoder.component, output, table.present)
            table.pending = None

        def put_rows(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if table.pending is None or output.shape[:-1] != table.pending.shape:
                return None
            chosen = [token.choose(encoder.component, self.strength, Reading.paths) for token in mine]
            return table.put_rows(output, torch.cat([one.to(output) for one in chosen], dim=1))

        self._handles.append(encoder.inner.register_forward_pre_hook(hide_ids, with_kwargs=True))
        self._handles.append(encoder.inner.register_forward_hook(record))
        self._handles.append(encoder.table.register_forward_hook(put_rows))

    def find_layered(self, encoder: TextEncoder, ids: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
        """Returns which of ``ids`` are of placeholders with vectors for each layer."""
        layered = [token.placeholder for token in self._tokens if token.layers is not None]
        known = self._ids.get(encoder.tokenizer_name, {})
        numbers = [number for name in layered for number in known.get(name, ())]
        return torch.isin(ids, torch.tensor(numbers, dtype=ids.dtype, device=ids.device))

    def _take_out(self) -> None:
        for name, tokenizer in self._held.items():
            for placeholder in self._ids.get(name, {}):
                tokenizer.placeholder_ids.pop(placeholder, None)
        for encoder in self._encoders:
            release_tokenizer(self._pipeline, encoder.tokenizer_name, self)
        self._held.clear()
        self._ids.clear()


class _RowTable:
    """The ids of one encoder's rows, consecutive, and those of the sequences that are being encoded."""

    def __init__(self, ids: Mapping[Placeholder, list[int]], safe_id: int) -> None:
        self._names = {number: name for name, numbers in ids.items() for number in numbers}
        self._first = min(self._names, default=0)
        self._safe_id = safe_id
        self.pending: Int[Tensor, "batch positions"] | None = None
        self.present: list[Present] = []

    def hide(self, ids: Any) -> Any:
        """Returns the ids with a harmless one in place of ours: CLIP finds its last position by comparing ids."""
        if not isinstance(ids, Tensor):
            return ids
        flat = ids.reshape(-1, ids.shape[-1])
        mine = self._find(flat)
        self.present = [
            frozenset(self._names[int(number)] for number in row[where])
            for row, where in zip(flat, mine, strict=True)
        ]
        self.pending = flat if bool(mine.any()) else None
        return ids if self.pending is None else torch.where(self._find(ids), self._safe_id, ids)

    def put_rows(self, embedded: Tensor, values: Float[Tensor, "paths ids width"]) -> Tensor | None:
        """Returns the embedded tokens [batch, positions, width] with our rows put in; None where there are none.

        The samples are those of the first path, then as many of the second, and so on.
        """
        if self.pending is None:
            return None
        mine = self._find(self.pending)
        path = torch.arange(len(embedded), device=mine.device) // (len(embedded) // len(values))
        result = embedded.clone()
        result[mine] = values[path[:, None].expand_as(mine)[mine], self.pending[mine] - self._first]
        return result

    def _find(self, ids: Tensor) -> Tensor:
        return (ids >= self._first) & (ids < self._first + len(self._names))


def check_placeholder(pipeline: Pipeline, placeholder: Placeholder, encoder: TextEncoder) -> None:
    """Raises InvalidPlaceholderError for a word of the vocabulary, IncompatibleError for one attached already."""
    tokenizer = getattr(pipeline, encoder.tokenizer_name)
    taken = {name.casefold() for name in getattr(tokenizer, "placeholder_ids", {})}
    if placeholder.casefold() in taken:
        raise IncompatibleError(
            f"the placeholder {placeholder!r} is attached to this pipeline already",
            hint="give one of them another word: Composition(..., rename={...})",
        )
    if len(split_word(pipeline, placeholder, encoder.tokenizer_name)) == 1:
        raise InvalidPlaceholderError(
            f"{placeholder!r} is a word of the base's vocabulary ({encoder.tokenizer_name})",
            hint=f"choose a word that it does not know, such as '<{placeholder.strip('<>')}-1>'",
        )


def check_width(encoder: TextEncoder, token: TokenRows) -> None:
    """Raises IncompatibleError for rows that are not as wide as those of the text encoder, or none."""
    rows, width = token.rows[encoder.component], encoder.table.embedding_dim
    expected = "n" if token.layers is None else f"{len(token.layers)}, n"
    sizes = () if token.layers is None else (len(token.layers),)
    if rows.ndim != len(sizes) + 2 or rows.shape != (*sizes, rows.shape[-2], width) or not rows.shape[-2]:
        raise IncompatibleError(
            f"the rows of {token.placeholder!r} are {list(rows.shape)}, "
            f"{encoder.component} takes [{expected}, {width}]",
            hint="concepts show tells which base the concept was made for",
        )


def _choose_safe_id(tokenizer: Any) -> int:
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return next(number for number in range(len(special) + 1) if number not in special)


def blend_rows(
    rows: Float[Tensor, "*layers vectors width"], anchor: Float[Tensor, " width"] | None, strength: float
) -> Float[Tensor, "*layers vectors width"]:
    """Returns ``anchor + strength * (rows - anchor)``; the anchor is the superclass's row, or zero where unknown.

    At strength 0 the placeholder reads as its superclass, at 1 as trained.
    """
    base = torch.zeros_like(rows[..., 0, :]).unsqueeze(-2) if anchor is None else anchor.to(rows)
    return rows.clone() if strength == 1.0 else base + strength * (rows - base)
