"""Random rows, factors and edits that fit a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conceptry.composer.lora import LoraFactors
from conceptry.composer.pipelines import iter_cross_attention, list_text_encoders
from conceptry.composer.rank_one import RankOneEdit
from conceptry.composer.tokens import TokenRows
from conceptry.names import Placeholder


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_rows(pipeline: Any, placeholder: str, *, vectors: int = 1, seed: int = 1) -> TokenRows:
    generator = make_generator(seed)
    rows = {
        encoder.component: 0.3 * torch.randn(vectors, encoder.table.embedding_dim, generator=generator)
        for encoder in list_text_encoders(pipeline)
    }
    return TokenRows(Placeholder(placeholder), rows)


def make_covariance(width: int, *, seed: int = 2) -> Tensor:
    """Returns a well-conditioned covariance in float64."""
    samples = torch.randn(4 * width, width, generator=make_generator(seed), dtype=torch.float64)
    mixing = torch.randn(width, width, generator=make_generator(seed + 1), dtype=torch.float64) / width**0.5
    samples = samples @ (mixing + torch.eye(width, dtype=torch.float64))
    covariance: Tensor = samples.T @ samples / len(samples)
    return covariance


def make_edit(pipeline: Any, placeholder: str | None, *, seed: int = 3, **changes: Any) -> RankOneEdit:
    generator = make_generator(seed)
    width = context_width(pipeline)
    i_star = torch.randn(width, generator=generator)
    dual = torch.linalg.solve(make_covariance(width), i_star.double()).float()
    o_v = {
        path: torch.randn(attention.to_v.weight.shape[0], generator=generator)
        for path, attention in iter_cross_attention(pipeline.unet)
    }
    settings: dict[str, Any] = {"superclass": "cat", "bias": 0.6, "temperature": 0.15, **changes}
    name = None if placeholder is None else Placeholder(placeholder)
    return RankOneEdit(i_star=i_star, c_inv_i_star=dual, o_v=o_v, placeholder=name, **settings)


def context_width(pipeline: Any) -> int:
    return sum(encoder.table.embedding_dim for encoder in list_text_encoders(pipeline))


def make_factors(
    root: torch.nn.Module, paths: list[str], *, rank: int = 2, seed: int = 4, scale: float = 0.5
) -> dict[str, LoraFactors]:
    generator = make_generator(seed)
    factors = {}
    for path in paths:
        weight: Any = root.get_submodule(path).weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator) / 4
        tail = (1, 1) if weight.ndim == 4 else ()
        factors[path] = LoraFactors(
            down, torch.randn(weight.shape[0], rank, *tail, generator=generator) / 4, scale
        )
    return factors
