"""Words that weigh more or less than others: what a text encoder says of them is multiplied.

As A1111 does it: each position is multiplied by its weight, then all of a prompt so that their mean is what it was.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from conceptry.composer.pipelines import Pipeline, TextEncoder, list_text_encoders
from conceptry.composer.placeholders import private_tokenizers
from conceptry.composer.prompts import Piece
from conceptry.errors import IncompatibleError, UsageError

_LEAST_MEAN: Final = 1e-3
_WEIGHTED: Final[weakref.WeakKeyDictionary[Any, dict[str, Sequence[Piece]]]] = weakref.WeakKeyDictionary()
Rows = dict[tuple[int, ...], Float[Tensor, " positions"]]
_TABLES: Final[weakref.WeakKeyDictionary[nn.Module, Rows]] = weakref.WeakKeyDictionary()
"""What is weighed now, by the module that reads ids."""


class Reweighing:
    """Whether a sequence is encoded once more by someone who weighs it himself, as it was weighed before."""

    active: bool = False


def join_pieces(pieces: Sequence[Piece]) -> str:
    """Returns the text that is encoded: that of one weight as it is, words of different weights apart."""
    if all(piece.weight == 1.0 for piece in pieces):
        return "".join(piece.text for piece in pieces)
    return " ".join(piece.text.strip() for piece in pieces if piece.text.strip())


@contextmanager
def emphasized(pipeline: Pipeline, *prompts: Sequence[Piece]) -> Iterator[None]:
    """Has the pipeline weigh the words of these prompts, as ``join_pieces`` writes them, while the block runs.

    To be entered after concepts were attached, whose words are weighed like any other.

    Raises:
        IncompatibleError: if a text encoder is none of CLIP's, whose words cannot be weighed so.
        UsageError: if two of the prompts are the same words with other weights.
    """
    weighted = [pieces for pieces in prompts if any(piece.weight != 1.0 for piece in pieces)]
    if not weighted:
        yield
        return
    with ExitStack() as stack:
        encoders = list_text_encoders(pipeline)
        with private_tokenizers(pipeline):
            tables = [_make_table(pipeline, encoder, prompts) for encoder in encoders]
        for encoder, table in zip(encoders, tables, strict=True):
            stack.enter_context(_weigh(encoder, table))
        before = _WEIGHTED.get(pipeline, {})
        _WEIGHTED[pipeline] = before | {join_pieces(pieces): pieces for pieces in weighted}
        stack.callback(_WEIGHTED.__setitem__, pipeline, before)
        yield


@contextmanager
def set_aside(pipeline: Pipeline) -> Iterator[None]:
    """Has the weights that are given around the block count for nothing in it."""
    inner = [encoder.inner for encoder in list_text_encoders(pipeline)]
    tables, weighted = {module: _TABLES.get(module, {}) for module in inner}, _WEIGHTED.get(pipeline, {})
    try:
        _TABLES.update({module: {} for module in inner})
        _WEIGHTED[pipeline] = {}
        yield
    finally:
        _TABLES.update(tables)
        _WEIGHTED[pipeline] = weighted


def find_pieces(pipeline: Pipeline, prompt: str) -> Sequence[Piece]:
    """Returns a prompt in pieces with the weights that ``emphasized`` gives it now; one piece where it has none."""
    return _WEIGHTED.get(pipeline, {}).get(prompt) or (Piece(prompt),)


def find_weights(inner: nn.Module, ids: Int[Tensor, " positions"]) -> Float[Tensor, " positions"] | None:
    """Returns the weights that a sequence is given in an encoder now; None where they are all 1."""
    table = _TABLES.get(inner)
    return table.get(tuple(ids.tolist())) if table else None


def _make_table(pipeline: Pipeline, encoder: TextEncoder, prompts: Sequence[Sequence[Piece]]) -> Rows:
    tokenizer = getattr(pipeline, encoder.tokenizer_name)
    if "CLIP" not in type(encoder.module).__name__:
        raise IncompatibleError(
            f"{encoder.component} of this base is not CLIP's, so its words cannot be weighed",
            hint=r"write the prompt without (word:1.2); \( and \) are plain brackets",
        )
    table: Rows = {}
    for pieces in prompts:
        ids = tuple(_encode(tokenizer, join_pieces(pieces), padded=True))
        weights = torch.ones(len(ids))
        place = 1  # after the first special token
        for piece in pieces:
            own = _encode(tokenizer, piece.text)
            expected = ids[place : place + len(own)]
            if expected != tuple(own[: len(expected)]) and place + len(own) < len(ids):
                raise IncompatibleError(
                    f"the words of {piece.text[:60]!r} cannot be found in the encoded prompt"
                )
            weights[place : min(place + len(own), len(ids) - 1)] = piece.weight
            place += len(own)
        if ids in table and not torch.equal(table[ids], weights):
            raise UsageError(
                "the prompt and the negative prompt are the same words", hint="give them different words"
            )
        table[ids] = weights
    return table


def _encode(tokenizer: Any, text: str, *, padded: bool = False) -> list[int]:
    if padded:
        length = tokenizer.model_max_length
        return list(tokenizer(text, padding="max_length", max_length=length, truncation=True)["input_ids"])
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text.strip() else []


@contextmanager
def _weigh(encoder: TextEncoder, table: Rows) -> Iterator[None]:
    """Has the hidden states of the table's rows multiplied before anything else sees them."""
    seen: list[tuple[int, ...]] = []

    def remember(_: nn.Module, args: Any, options: dict[str, Any]) -> None:
        ids = options.get("input_ids", args[0] if args else None)
        seen[:] = [tuple(row) for row in ids.tolist()] if isinstance(ids, Tensor) else []

    def weigh(_: nn.Module, __: Any, output: Any) -> Any:
        counting = {} if Reweighing.active else _TABLES.get(encoder.inner, {})
        rows = [table[ids] if ids in table and counting.get(ids) is table[ids] else None for ids in seen]
        if all(row is None for row in rows):
            return None
        ones = torch.ones(len(seen[0]))
        weights = torch.stack([ones if row is None else row for row in rows])
        states = getattr(output, "hidden_states", None)
        return replace(
            output,
            last_hidden_state=weigh_states(output.last_hidden_state, weights),
            hidden_states=None if states is None else tuple(weigh_states(state, weights) for state in states),
        )

    # Ahead of what replaces ids and of what remembers encodings: both are to see what they see without weights.
    handles = [
        encoder.inner.register_forward_pre_hook(remember, with_kwargs=True, prepend=True),
        encoder.inner.register_forward_hook(weigh, prepend=True),
    ]
    before = _TABLES.get(encoder.inner, {})
    try:
        _TABLES[encoder.inner] = before | table
        yield
    finally:
        _TABLES[encoder.inner] = before
        for handle in handles:
            handle.remove()


def weigh_states(
    states: Float[Tensor, "batch positions width"], weights: Float[Tensor, "batch positions"]
) -> Float[Tensor, "batch positions width"]:
    """Returns states times their weights, each row scaled so that its mean stays; rows of weight 1 keep every bit.

    A row whose mean is nothing beside its values (a last layer norm without a bias) is not scaled: there is no mean to
    keep, and a quotient of two roundings would be anything.
    """
    scaled = states * weights.to(states).unsqueeze(-1)
    before, after = states.mean(dim=(1, 2), keepdim=True), scaled.mean(dim=(1, 2), keepdim=True)
    least = _LEAST_MEAN * states.square().mean(dim=(1, 2), keepdim=True).sqrt()
    has_mean = (before.abs() > least) & (after.abs() > least)
    is_weighted = (weights != 1).any(dim=1).to(states.device)[:, None, None] & has_mean
    return torch.where(is_weighted, scaled * (before / torch.where(is_weighted, after, 1.0)), scaled)
