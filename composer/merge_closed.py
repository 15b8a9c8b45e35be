"""Merges that ask what the layers read: constrained least squares on text encodings, ridge regression on activations.

Both have closed forms whose change of the weight is a product of factors, so that no dense weight is ever made.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.low_rank import LowRank, add_biases, add_up, truncate
from conceptry.composer.merge_layers import Layer, MergedLayer

# What a target row may add to those before it, in squared norm, before it counts as one of them.
_DEPENDENT: Final = 1e-9


def merge_closed_form(layer: Layer) -> MergedLayer:
    """Returns the change nearest to none on ordinary captions under which the words of each concept keep their values.

    Custom Diffusion (arXiv 2212.04488, eq. 4): minimise |(W - W_0) K_reg^T| subject to W K_i^T = W_i K_i^T. With K all
    target rows, C = K_reg^T K_reg and d = K C^-1: W = W_0 + E (d K^T)^-1 d for E = [D_i K_i^T], in float64. Rows that
    depend on those before them are left out: with C as the metric they can only repeat or contradict what these ask.
    Layers that read no text are summed.
    """
    if layer.regular is None or len(layer.inputs) != len(layer.deltas):
        return layer.cut(add_up(layer.deltas))
    rows = torch.cat([one.double() for one in layer.inputs])
    wanted = torch.cat(
        [
            delta.up.double() @ (delta.down.double() @ one.double().T)
            for delta, one in zip(layer.deltas, layer.inputs, strict=True)
        ],
        dim=1,
    )
    duals = torch.linalg.solve(layer.regular, rows.T).T
    kept = choose_independent(rows @ duals.T)
    rows, duals, wanted = rows[kept], duals[kept], wanted[:, kept]
    up = torch.linalg.solve(duals @ rows.T, wanted.T).T
    # Balanced before it is rounded: the rows of d nearly cancel, and single precision would lose what they leave.
    balanced, _ = truncate(LowRank(up, duals), len(kept))
    first = layer.deltas[0]
    merged = LowRank(
        balanced.up.to(first.up), balanced.down.to(first.down), first.kernel, add_biases(layer.deltas)
    )
    return layer.cut(merged)


def merge_ridge(layer: Layer) -> MergedLayer:
    """Returns the change under which each concept's own activations come out as with that concept alone, nearly.

    Gradient fusion (Mix-of-Show, arXiv 2305.18292, eq. 3) solved in closed form: minimise
    sum_i |(W_0 + D_i) X_i - W X_i|^2 + ridge |W - W_0|^2. With G_i = X_i X_i^T: W - W_0 = sum_i D_i G_i M^-1 for
    M = sum_i G_i + ridge, of rank sum r_i. The ridge is given beside the mean of M's diagonal. Layers whose activations
    were not measured are summed.
    """
    if len(layer.inputs) != len(layer.deltas):
        return layer.cut(add_up(layer.deltas))
    moments = torch.stack([one.double() for one in layer.inputs])
    total = moments.sum(dim=0)
    ridge = layer.settings.ridge * float(total.diagonal().mean())
    total.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(total)
    turned = [
        LowRank(
            delta.up,
            torch.cholesky_solve(moment @ delta.down.double().T, factor).T.to(delta.down).contiguous(),
            delta.kernel,
            delta.bias,
        )
        for delta, moment in zip(layer.deltas, moments, strict=True)
    ]
    return layer.cut(add_up(turned))


def choose_independent(gram: Float[Tensor, "rows rows"]) -> list[int]:
    """Returns the rows that are no combinations of those before them: Cholesky that passes over vanishing pivots."""
    kept: list[int] = []
    triangle = torch.zeros_like(gram)
    for row in range(len(gram)):
        above = triangle[: len(kept), : len(kept)]
        part = (
            torch.linalg.solve_triangular(above, gram[kept, row][:, None], upper=False)[:, 0]
            if kept
            else gram.new_zeros(0)
        )
        pivot = float(gram[row, row] - part @ part)
        if pivot > _DEPENDENT * float(gram[row, row]):
            triangle[len(kept), : len(kept)] = part
            triangle[len(kept), len(kept)] = pivot**0.5
            kept.append(row)
    return kept
