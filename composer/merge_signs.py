"""Merging by the signs and magnitudes of entries: TIES, DARE, and TIES in a basis that the deltas share (KnOTS).

Entries of a delta mean something, entries of its factors do not: (B, A) and (-B, -A) are one delta. So all of these
work on dense deltas, a layer at a time, or on coordinates in a shared basis, and come back to factors at the end.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.low_rank import LowRank, add_biases
from conceptry.composer.merge_layers import Layer, MergedLayer, stack_dense


def merge_ties(layer: Layer) -> MergedLayer:
    """Returns the disjoint mean of the greatest entries that agree in sign (arXiv 2306.01708, algorithm 1)."""
    return layer.cut_dense(elect(trim(stack_dense(layer.deltas), layer.density)))


def merge_dare(layer: Layer) -> MergedLayer:
    """Returns the sum of deltas of which a part of the entries was dropped at random, the rest scaled up to make good
    for it (arXiv 2311.03099, eq. 4)."""
    return layer.cut_dense(_drop(layer).sum(dim=0))


def merge_dare_ties(layer: Layer) -> MergedLayer:
    """Returns the disjoint mean of the entries that dropping at random left and that agree in sign."""
    return layer.cut_dense(elect(_drop(layer)))


def merge_knots(layer: Layer) -> MergedLayer:
    """Returns TIES of the coordinates in the left singular basis of all deltas side by side (arXiv 2410.19735, eq. 3).

    With [D_1 ... D_n] = U S [V_1 ... V_n]^T, the coordinates of D_i are S V_i^T; the rank is at most the sum of ranks.
    """
    basis, upper = torch.linalg.qr(torch.cat([one.up for one in layer.deltas], dim=1))
    parts = torch.split(upper, [one.rank for one in layer.deltas], dim=1)
    inner = [part @ one.down for part, one in zip(parts, layer.deltas, strict=True)]
    turn, values, _ = torch.linalg.svd(torch.cat(inner, dim=1), full_matrices=False)
    turn = turn[:, values > values.max() * 1e-6]
    merged = elect(trim(torch.stack([turn.T @ one for one in inner]), layer.density))
    return layer.cut(LowRank(basis @ turn, merged, layer.deltas[0].kernel, add_biases(layer.deltas)))


def trim(
    deltas: Float[Tensor, "concepts rows columns"], density: float
) -> Float[Tensor, "concepts rows columns"]:
    """Returns the deltas with all but the share ``density`` of greatest magnitude set to zero, each by itself."""
    flat = deltas.flatten(1).abs()
    kept = max(1, round(density * flat.shape[1]))
    floors = torch.topk(flat, kept, dim=1, sorted=False).values.amin(dim=1)
    return torch.where(deltas.abs() >= floors[:, None, None], deltas, 0.0)


def elect(deltas: Float[Tensor, "concepts rows columns"]) -> Float[Tensor, "rows columns"]:
    """Returns, by entry, the mean of those that are not zero and have the sign of the sum."""
    agreeing = (torch.sign(deltas) == torch.sign(deltas.sum(dim=0))) & (deltas != 0)
    count = agreeing.sum(dim=0).clamp(min=1)
    return torch.where(agreeing, deltas, 0.0).sum(dim=0) / count


def _drop(layer: Layer) -> Float[Tensor, "concepts rows columns"]:
    deltas = stack_dense(layer.deltas)
    for delta, owner in zip(deltas, layer.owners, strict=True):
        draws = layer.make_generator(owner).random(tuple(delta.shape), dtype="float32")
        kept = torch.from_numpy(draws) < layer.density
        delta.mul_(kept.to(delta.dtype) / layer.density)
    return deltas
