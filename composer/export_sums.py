"""Modules of several adapters as one each: exact sums, as factors side by side where all of them are factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from conceptry.composer.low_rank import LowRank, add_up
from conceptry.composer.low_rank_modules import from_low_rank, to_low_rank
from conceptry.errors import IncompatibleError
from conceptry.formats.checks import MAX_RANK
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.tensors import RawTensor

_SHAPED: Final = frozenset({"lora", "locon"})
"""Algorithms whose factors have the kernel's sizes; those of others are flat."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one concept adds to a module, and how strongly."""

    strength: float
    module: LoraModule


def sum_modules(
    shares: Mapping[str, Sequence[Share]], find_weight: Callable[[str], Tensor | None]
) -> dict[str, LoraModule]:
    """Returns one module for each name: the exact sum of its shares; those of strength 0 are left out.

    Args:
        shares: by ``{component}.{module path}``.
        find_weight: returns the base's tensor of a name such as ``unet.conv_in.weight``, or None.

    Raises:
        IncompatibleError: if a sum cannot be made without a weight of the base that is not there.
    """
    counted = {name: [one for one in found if one.strength != 0] for name, found in shares.items()}
    return {name: _sum(name, found, find_weight) for name, found in counted.items() if found}


def _sum(name: str, shares: Sequence[Share], find_weight: Callable[[str], Tensor | None]) -> LoraModule:
    if len(shares) == 1 and shares[0].strength == 1.0:
        return shares[0].module
    factors = [to_low_rank(one.module) for one in shares]
    scaled = [
        factor.scaled(one.strength) for one, factor in zip(shares, factors, strict=True) if factor is not None
    ]
    kernel = _find_kernel(name, shares, scaled, find_weight)
    if len(scaled) == len(shares) and kernel is not None and sum(one.rank for one in scaled) <= MAX_RANK:
        return from_low_rank(replace(add_up(scaled), kernel=kernel))
    return _sum_dense(name, shares, find_weight)


def _find_kernel(
    name: str,
    shares: Sequence[Share],
    factors: Sequence[LowRank],
    find_weight: Callable[[str], Tensor | None],
) -> tuple[int, ...] | None:
    """Returns the sizes of the layer's kernel, empty for a linear layer; None where nothing here tells."""
    for share, factor in zip(shares, factors, strict=False):
        if share.module.algorithm in _SHAPED or factor.kernel:
            return factor.kernel
    weight = find_weight(f"{name}.weight")
    return None if weight is None else tuple(weight.shape[2:])


def _sum_dense(name: str, shares: Sequence[Share], find_weight: Callable[[str], Tensor | None]) -> LoraModule:
    weight, bias = find_weight(f"{name}.weight"), find_weight(f"{name}.bias")
    if weight is None:
        raise IncompatibleError(
            f"the sum of {', '.join(sorted({one.module.algorithm for one in shares}))} at {name!r} depends on the "
            "base's weight, which is not there",
            hint="open the base that the concepts are for",
        )
    own = _widen(weight)
    own_bias = None if bias is None else _widen(bias)
    deltas = [_scale(one, dense_delta(one.module, own.shape, own, "float32")) for one in shares]
    biases = [_scale(one, dense_bias_delta(one.module, own_bias, "float32")) for one in shares]
    total = np.sum([np.zeros_like(own), *(one for one in deltas if one is not None)], axis=0)
    parts = {"diff": RawTensor.from_numpy(total)}
    given = [one for one in biases if one is not None]
    if given:
        parts["diff_b"] = RawTensor.from_numpy(np.sum(given, axis=0))
    return LoraModule(algorithm="full", parts=parts, rule="none")


def _scale(share: Share, delta: np.ndarray | None) -> np.ndarray | None:
    return None if delta is None else np.float32(share.strength) * delta


def _widen(tensor: Tensor) -> np.ndarray:
    return tensor.to("cpu", torch.float32).numpy()
