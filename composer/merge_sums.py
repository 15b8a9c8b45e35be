"""Sums of deltas on their factors: exact, with what was said first left alone, and in slots of their own."""

from __future__ import annotations

from typing import Final

import torch

from conceptry.composer.low_rank import LowRank, add_up
from conceptry.composer.merge_layers import Layer, MergedLayer
from conceptry.errors import IncompatibleError

# The cosine between two input directions beyond which slots are not taken for disjoint: what fp16 factors round to.
SLOT_TOLERANCE: Final = 5e-3


def merge_sum(layer: Layer) -> MergedLayer:
    """Returns the sum of the deltas, factors side by side; a rank that is asked for is cut by QR of the factors."""
    return layer.cut(add_up(layer.deltas))


def merge_orthogonal(layer: Layer) -> MergedLayer:
    """Returns the sum in which each delta reads only inputs that no delta before it reads: D_j (1 - Q Q^T)."""
    kept = [layer.deltas[0]]
    for delta in layer.deltas[1:]:
        seen = _list_inputs(torch.cat([one.down for one in kept]))
        down = delta.down - (delta.down @ seen) @ seen.T
        kept.append(LowRank(delta.up, down, delta.kernel, delta.bias))
    return layer.cut(add_up(kept))


def merge_slots(layer: Layer) -> MergedLayer:
    """Returns the sum of deltas that read disjoint inputs, so that none disturbs another (arXiv 2312.02432, eq. 6).

    Raises:
        IncompatibleError: if two read a common direction.
    """
    bases = [_list_inputs(one.down) for one in layer.deltas]
    for place, basis in enumerate(bases):
        for other in bases[:place]:
            shared = float((basis.T @ other).abs().max()) if basis.shape[1] and other.shape[1] else 0.0
            if shared > SLOT_TOLERANCE:
                raise IncompatibleError(
                    f"two concepts read common inputs of {layer.name} (a cosine of {shared:.2f}), so they are in no "
                    "slots of their own",
                    hint="--method orthogonal projects the later one off; or train them in slots",
                )
    return layer.cut(add_up(layer.deltas))


def _list_inputs(down: torch.Tensor) -> torch.Tensor:
    """Returns an orthonormal basis [columns, rank] of what the rows span; directions of rounding are left out."""
    left, values, _ = torch.linalg.svd(down.T, full_matrices=False)
    floor = values.max() * max(down.shape) * torch.finfo(down.dtype).eps if len(values) else 0.0
    basis: torch.Tensor = left[:, values > floor]
    return basis
