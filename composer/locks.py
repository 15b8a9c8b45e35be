"""Locked keys: what W_K is applied to instead of the concept's own encoding (arXiv 2305.01644, section 4)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.gram import RankOneEdit
from conceptry.composer.hooks import probing
from conceptry.composer.pipelines import (
    Pipeline,
    encode_prompts,
    find_last_token,
    get_device,
    list_text_encoders,
)
from conceptry.composer.templates import LOCK_TEMPLATES
from conceptry.errors import IncompatibleError


def encode_superclass(pipeline: Pipeline, superclass: str) -> Float[Tensor, " context"]:
    """Returns e_super: the mean over LOCK_TEMPLATES of the encoding at the superclass's last token.

    Raises:
        InvalidPlaceholderError: if the word is not found among the tokens.
    """
    prompts = [template.format(superclass) for template in LOCK_TEMPLATES]
    with torch.no_grad(), probing():
        encoded = encode_prompts(pipeline, prompts)
    places = [find_last_token(pipeline, prompt, superclass) for prompt in prompts]
    rows = torch.stack([row[place] for row, place in zip(encoded, places, strict=True)])
    return rows.float().mean(dim=0).to(get_device(pipeline))


def find_superclass(pipeline: Pipeline, edit: RankOneEdit) -> Tensor | None:
    """Returns e_super of an edit; None where its key targets are given. Raises IncompatibleError."""
    if edit.o_k is not None:
        return None
    if edit.superclass_encoding is not None:
        return edit.superclass_encoding
    if edit.superclass is None:
        raise IncompatibleError("a rank-one edit needs a superclass or key targets")
    if not list_text_encoders(pipeline):
        raise IncompatibleError("the pipeline has no text encoder, which locked keys are read from")
    return encode_superclass(pipeline, edit.superclass)
