"""Low-rank factors of several learners beside one layer: all are multiplied as one batch, each with its own rows.

Beside a linear layer the rows of each learner are one matrix of a batched product. Beside a convolution the narrow one
is computed for each learner, and what it gives, of as many channels as the rank, goes through the wide factors at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptry.composer.lora import DeltaHook


def add_products(
    layer: nn.Module, hooks: Sequence[DeltaHook], sizes: Sequence[int], x: Tensor, output: Tensor
) -> Tensor | None:
    """Returns ``output`` with each hook's ``scale * up(down(x))`` added to its own rows, ``sizes`` of them in turn.

    None where they cannot be stacked: ranks or dtypes that differ, a strength of 0, a bias, a layer of another kind, or
    rows in unequal numbers beside a linear layer.
    """
    first = hooks[0]
    alike = all(
        hook.down.shape == first.down.shape
        and hook.down.dtype == hook.up.dtype == first.up.dtype
        and hook.bias is None
        and hook.scale != 0
        for hook in hooks
    )
    if not alike or len(x) != sum(sizes):
        return None
    x = x.to(first.down.dtype)
    if isinstance(layer, nn.Conv2d):
        return _add_beside_convolution(layer, hooks, sizes, x, output)
    if isinstance(layer, nn.Linear) and len(set(sizes)) == 1:
        return _add_beside_linear(hooks, x, output)
    return None


def _add_beside_linear(hooks: Sequence[DeltaHook], x: Tensor, output: Tensor) -> Tensor:
    down, up = torch.stack([hook.down for hook in hooks]), _stack_scaled(hooks)
    low = torch.bmm(x.reshape(len(down), -1, x.shape[-1]), down.mT)
    return _add_batched(output.reshape(len(down), -1, output.shape[-1]), low, up.mT).reshape(output.shape)


def _add_beside_convolution(
    layer: nn.Conv2d, hooks: Sequence[DeltaHook], sizes: Sequence[int], x: Tensor, output: Tensor
) -> Tensor:
    pieces: Sequence[Tensor] = x.split(list(sizes))  # type: ignore[no-untyped-call]
    low = torch.cat(
        [
            F.conv2d(piece, hook.down, None, layer.stride, layer.padding, layer.dilation)
            for piece, hook in zip(pieces, hooks, strict=True)
        ]
    )
    up = _repeat(_stack_scaled(hooks), sizes)
    return _add_batched(output.flatten(2), up, low.flatten(2)).reshape(output.shape)


def _stack_scaled(hooks: Sequence[DeltaHook]) -> Tensor:
    return torch.stack([hook.up.flatten(1) * hook.scale for hook in hooks])


def _repeat(factors: Tensor, sizes: Sequence[int]) -> Tensor:
    """Returns each learner's factor once for each of its rows."""
    return factors.repeat_interleave(torch.tensor(sizes, device=factors.device), dim=0)


def _add_batched(output: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Returns ``output + left @ right`` for a batch of matrices; in one pass where the types are the same."""
    if output.dtype == left.dtype == right.dtype:
        return torch.baddbmm(output, left, right)
    return output + torch.bmm(left, right).to(output.dtype)
