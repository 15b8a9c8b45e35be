"""The concept's words as tokens of the base: what the rows start from, and which superclasses will do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.pipelines import list_text_encoders, split_word
from conceptry.composer.tokens import TokenRows, check_placeholder
from conceptry.errors import InvalidPlaceholderError
from conceptry.names import Placeholder
from conceptry.trainer.randomness import seed_generator
from conceptry.trainer.settings import Start

# Rows of one placeholder start this far apart, as a share of the table's own spread, or they would learn the same.
ROW_SPREAD = 0.1


def check_words(pipeline: Any, placeholder: Placeholder, superclass: str, *, single_token: bool) -> None:
    """Checks the words of a concept whose placeholder becomes ids of its own.

    Raises:
        InvalidPlaceholderError: if the placeholder is a word of a vocabulary, or the superclass is several tokens
            where it must be one; the head word is named.
    """
    for encoder in list_text_encoders(pipeline):
        check_placeholder(pipeline, placeholder, encoder)
    if not single_token:
        return
    for encoder in list_text_encoders(pipeline):
        count = len(split_word(pipeline, superclass, encoder.tokenizer_name))
        if count != 1:
            raise InvalidPlaceholderError(
                f"the superclass {superclass!r} is {count} tokens of the base's vocabulary, this method needs one",
                where="superclass",
                hint=_suggest_head(pipeline, superclass),
            )


def _suggest_head(pipeline: Any, superclass: str) -> str:
    words = superclass.replace("-", " ").replace("_", " ").split()
    for word in reversed(words):
        if len(words) > 1 and len(split_word(pipeline, word)) == 1:
            return f"take its head word: --superclass {word}"
    return "take a more general word that the base knows, such as the kind of thing it is"


def init_rows(
    pipeline: Any,
    superclass: str,
    *,
    vectors: int,
    seed: int,
    subject: int = 0,
    start: Start = "superclass",
) -> dict[ComponentName, nn.Parameter]:
    """Returns [vectors, width] float32 parameters for each text encoder: the mean of the superclass's own rows.

    Several vectors are set a little apart; those of another subject of the run, with another number, otherwise. Random
    ones have the mean and the spread of the whole vocabulary and know nothing of the superclass.
    """
    rows = {}
    for encoder in list_text_encoders(pipeline):
        table = encoder.table.weight.detach().float()
        if start == "random":
            noise = torch.randn(vectors, table.shape[1], generator=seed_generator(seed, "init", subject))
            values = table.mean(dim=0) + table.std(dim=0) * noise.to(table)
            rows[encoder.component] = nn.Parameter(values)
            continue
        ids = split_word(pipeline, superclass, encoder.tokenizer_name)
        mean = table[ids].mean(dim=0, keepdim=True)
        spread = torch.zeros(vectors, mean.shape[1])
        if vectors > 1:
            spread = torch.randn(spread.shape, generator=seed_generator(seed, "init", subject))
        values = mean + ROW_SPREAD * table.std() * spread.to(mean)
        rows[encoder.component] = nn.Parameter(values.clone())
    return rows


def to_token_rows(placeholder: Placeholder, rows: dict[ComponentName, nn.Parameter]) -> list[TokenRows]:
    """Returns the rows as the composer takes them."""
    values: dict[ComponentName, Tensor] = dict(rows)
    return [TokenRows(placeholder, values)]
