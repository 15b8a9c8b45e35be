"""Modules of adapter files as low-rank deltas and back, where an algorithm's delta is a product of factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from conceptry.composer.low_rank import LowRank
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.formats.algorithms import ALGORITHM_BY_ID
from conceptry.formats.deltas import dense_bias_delta, fold_core
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import AlgorithmId


def to_low_rank(module: LoraModule, dtype: torch.dtype = torch.float32) -> LowRank | None:
    """Returns the module's delta at strength 1 as factors; None where it is no product of factors known here.

    A LoHa of rank r has rank r^2: the element-wise product of two products is that of the row-wise Kronecker products
    of their factors. A LoKr has the product of the ranks of its two sides.
    """
    if not has_factors(module):
        return None
    up, down, kernel = _SPLITS[module.algorithm](module, dtype)
    bias = dense_bias_delta(module, dtype="float64")
    return LowRank(
        module.scale * up,
        down,
        kernel,
        None if bias is None else torch.from_numpy(bias).to(dtype),
    )


def has_factors(module: LoraModule) -> bool:
    """Returns whether ``to_low_rank`` gives the module's delta; nothing is read."""
    return module.algorithm in _SPLITS and not _WHOLE & module.parts.keys()


def needs_base(module: LoraModule) -> bool:
    """Returns whether the module's delta depends on the base's weight."""
    return ALGORITHM_BY_ID[module.algorithm].needs_base


def find_shape(module: LoraModule) -> tuple[int, ...] | None:
    """Returns the shape of the weight that a module changes; None where it changes a bias alone, or nothing tells."""
    for part in ("diff", "w_norm"):
        if part in module.parts:
            return module.parts[part].shape
    if module.algorithm in ("full", "norm"):
        return None
    match = module.match()
    outputs, inputs = match.sizes.product(match.form.outputs), match.sizes.product(match.form.inputs)
    return None if outputs is None or inputs is None else (outputs, inputs, *(match.sizes.kernel or ()))


def from_low_rank(delta: LowRank, dtype: torch.dtype = torch.float32) -> LoraModule:
    """Returns the module that stores ``delta``: scale 1, the kernel in the first factor."""
    rank, columns = delta.down.shape
    ones = tuple(1 for _ in delta.kernel)
    inputs = columns // _count(delta.kernel)
    module = LoraModule.of_factors(
        down=from_torch(delta.down.to(dtype).reshape(rank, inputs, *delta.kernel)),
        up=from_torch(delta.up.to(dtype).reshape(-1, rank, *ones)),
        alpha=float(rank),
    )
    if delta.bias is None:
        return module
    parts = {**module.parts, "diff_b": from_torch(delta.bias.to(dtype))}
    return LoraModule(algorithm=module.algorithm, parts=parts, numbers=module.numbers, rule=module.rule)


# --- how each algorithm splits -------------------------------------------------------------------------------------

# Parts with which a delta is no product of two factors of a small rank.
_WHOLE: Final = frozenset({"hada_t1", "hada_t2", "lokr_w2", "lokr_t2"})
_Split = tuple[Tensor, Tensor, tuple[int, ...]]


def _count(kernel: tuple[int, ...]) -> int:
    return int(torch.Size(kernel).numel())


def _read(raw: RawTensor, dtype: torch.dtype) -> Tensor:
    return to_torch(raw, dtype=dtype)


def _split_plain(module: LoraModule, dtype: torch.dtype) -> _Split:
    down = fold_core(module) if "core" in module.parts else module.down
    wide = _read(down, dtype)
    return _read(module.up, dtype).flatten(1), wide.flatten(1), tuple(wide.shape[2:])


def _split_hadamard(module: LoraModule, dtype: torch.dtype) -> _Split:
    """(a1 b1) * (a2 b2) = (a1 . a2) (b1 . b2), all pairs of columns and of rows (Khatri and Rao, 1968)."""
    a1, b1, a2, b2 = (
        _read(module.parts[part], dtype) for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    )
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return up, down, ()


def _split_kronecker(module: LoraModule, dtype: torch.dtype) -> _Split:
    """(p q) x (u v) = (p x u) (q x v); a side that is stored whole is its own left factor, beside ones."""
    parts = module.parts
    outer, inner = _read(parts["lokr_w2_a"], dtype), _read(parts["lokr_w2_b"], dtype)
    if "lokr_w1" in parts:
        left = _read(parts["lokr_w1"], dtype)
        right = torch.eye(left.shape[1], dtype=dtype)
    else:
        left, right = _read(parts["lokr_w1_a"], dtype), _read(parts["lokr_w1_b"], dtype)
    return torch.kron(left, outer), torch.kron(right, inner.flatten(1)), tuple(inner.shape[2:])


_SPLITS: Final[Mapping[AlgorithmId, Callable[[LoraModule, torch.dtype], _Split]]] = {
    "lora": _split_plain,
    "locon": _split_plain,
    "loha": _split_hadamard,
    "lokr": _split_kronecker,
}
