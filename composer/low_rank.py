"""Algebra of low-rank deltas on their factors alone: sums, truncation, singular directions, never a dense product.

The product of factors with R columns in all costs O((out + in) R^2 + R^3) to decompose: QR of both stacked factors, and
the singular values of the R x R core between them. Small calls of LAPACK run on one thread: on more they are slower
by an order of magnitude (a pool is woken for microseconds of work).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

# A pivot beside the greatest from which the Gram matrix in float64 keeps what single precision can tell.
_INDEPENDENT: Final = 1e-4
# One from which single precision rounds the directions to 1e-6 or so of themselves.
_ORTHOGONAL: Final = 0.1
# A singular value beside the greatest below which its square is rounding.
_ROUNDING: Final = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The delta ``up @ down`` of one layer, its scale folded in; a kernel is flattened into the columns."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank columns"]
    kernel: tuple[int, ...] = ()
    """Sizes of a convolution's kernel; empty for a linear layer."""

    bias: Float[Tensor, " out"] | None = None
    """What is added to the layer's bias."""

    @property
    def rank(self) -> int:
        """How many columns the factors have, dependent ones included."""
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs, and inputs times the kernel."""
        return int(self.up.shape[0]), int(self.down.shape[1])

    def scaled(self, strength: float) -> LowRank:
        """Returns ``strength`` times the delta."""
        bias = None if self.bias is None else strength * self.bias
        return LowRank(strength * self.up, self.down, self.kernel, bias)

    def to_dense(self) -> Float[Tensor, "out columns"]:
        """Returns the product."""
        return self.up @ self.down


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """Singular directions of a delta, the strongest first; all of them, or the first few."""

    left: Float[Tensor, "out kept"]
    values: Float[Tensor, " rank"]
    """All singular values, also of directions that are left out."""

    right: Float[Tensor, "kept columns"]

    @property
    def energy(self) -> float:
        """The squared Frobenius norm."""
        return float((self.values.double() ** 2).sum())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Gives a block in which torch computes on one thread."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)


def add_up(deltas: Sequence[LowRank]) -> LowRank:
    """Returns the exact sum: factors side by side, ranks added. There is at least one, all of one shape."""
    return LowRank(
        torch.cat([one.up for one in deltas], dim=1),
        torch.cat([one.down for one in deltas]),
        deltas[0].kernel,
        add_biases(deltas),
    )


def add_biases(deltas: Sequence[LowRank]) -> Tensor | None:
    """Returns the sum of the biases; None where there is none."""
    found = [one.bias for one in deltas if one.bias is not None]
    return torch.stack(found).sum(dim=0) if found else None


def decompose(delta: LowRank) -> Spectrum:
    """Returns the singular value decomposition of the product, of its rank at most, from the factors.

    With up = Q_u R_u and down^T = Q_d R_d, the product is Q_u (R_u R_d^T) Q_d^T and the core is small.
    """
    if delta.rank > min(delta.shape):
        left, values, right = torch.linalg.svd(delta.to_dense(), full_matrices=False)
        return Spectrum(left, values, right)
    return Spectrum(*_decompose(delta.up, delta.down.mT, delta.rank))


def decompose_stack(
    ups: Float[Tensor, "batch out rank"], downs: Float[Tensor, "batch rank columns"]
) -> tuple[Float[Tensor, "batch kept out"], Float[Tensor, "batch kept"], Float[Tensor, "batch kept columns"]]:
    """Returns ``decompose`` of each product of a stack, which takes a third of the time: directions as rows."""
    outputs, rank = ups.shape[1:]
    if rank > min(outputs, downs.shape[2]):
        left, values, right = torch.linalg.svd(ups @ downs, full_matrices=False)
    else:
        left, values, right = _decompose(ups, downs.mT, rank)
    return left.mT, values, right


def truncate(delta: LowRank, rank: int) -> tuple[LowRank, float]:
    """Returns the nearest delta of at most ``rank`` (Eckart and Young, 1936), and the share of energy it retains."""
    if delta.rank > min(delta.shape):
        return compose(decompose(delta), rank, delta)
    return compose(Spectrum(*_decompose(delta.up, delta.down.mT, rank)), rank, delta)


def _decompose(
    up: Float[Tensor, "*batch out rank"], down: Float[Tensor, "*batch columns rank"], kept: int
) -> tuple[
    Float[Tensor, "*batch out kept"], Float[Tensor, "*batch values"], Float[Tensor, "*batch kept columns"]
]:
    """Returns the first ``kept`` singular directions, and all singular values, in the precision of ``up``.

    R of a factor is the Cholesky factor of its Gram matrix, in float64, where its columns are independent enough that
    this rounds no more than single precision does; Householder's QR elsewhere. Q is never formed: Q_u x = up R_u^-1 x.
    """
    wide_up, wide_down = up.double(), down.double()
    upper, lower = _find_triangle(wide_up), _find_triangle(wide_down)
    if upper is None or lower is None:
        outer, upper = torch.linalg.qr(wide_up)
        inner, lower = torch.linalg.qr(wide_down)
        left, values, right = torch.linalg.svd(upper @ lower.mT)
        left, right = outer @ left[..., :kept], right[..., :kept, :] @ inner.mT
    else:
        core = upper @ lower.mT
        energies, left = torch.linalg.eigh(core @ core.mT)
        values, left = energies.clamp(min=0).sqrt().flip(-1), left.flip(-1)[..., :kept]
        # What is below the rounding of squares has no direction of its own; it is given none.
        scales = values[..., None, :kept]
        right = torch.where(scales > _ROUNDING * values[..., None, :1], core.mT @ left / scales, 0.0)
        left = _multiply(torch.linalg.solve_triangular(upper, left, upper=True), wide_up, up, upper).mT
        right = _multiply(torch.linalg.solve_triangular(lower, right, upper=True), wide_down, down, lower)
    return left.to(up.dtype), values.to(up.dtype), right.to(up.dtype)


def _multiply(
    turned: Float[Tensor, "*batch rank kept"],
    wide: Float[Tensor, "*batch rows rank"],
    factor: Float[Tensor, "*batch rows rank"],
    triangle: Float[Tensor, "*batch rank rank"],
) -> Float[Tensor, "*batch kept rows"]:
    """Returns ``(wide turned)^T``, in the precision of ``factor`` where its columns are all but orthogonal."""
    if _measure_independence(triangle) > _ORTHOGONAL:
        return turned.mT.to(factor.dtype) @ factor.mT
    return turned.mT @ wide.mT


def _find_triangle(factor: Float[Tensor, "*batch rows rank"]) -> Float[Tensor, "*batch rank rank"] | None:
    """Returns R of QR; None where a column nearly depends on others, so that the Gram matrix would not tell."""
    triangle, failures = torch.linalg.cholesky_ex(factor.mT @ factor, upper=True)
    if bool(failures.any()):
        return None
    return triangle if _measure_independence(triangle) > _INDEPENDENT else None


def _measure_independence(triangle: Float[Tensor, "*batch rank rank"]) -> float:
    """Returns the least pivot beside the greatest, of the worst factor of a stack."""
    diagonal = triangle.diagonal(dim1=-2, dim2=-1)
    return float((diagonal.amin(dim=-1) / diagonal.amax(dim=-1)).min())


def truncate_dense(
    dense: Float[Tensor, "out columns"], rank: int, like: LowRank, bias: Tensor | None
) -> tuple[LowRank, float]:
    """Returns the nearest delta of at most ``rank`` to a dense one, shaped as ``like``, and the energy it retains."""
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    shaped = LowRank(like.up, like.down, like.kernel, bias)
    return compose(Spectrum(left, values, right), rank, shaped)


def compose(spectrum: Spectrum, rank: int, like: LowRank) -> tuple[LowRank, float]:
    """Returns the first ``rank`` directions as factors of equal norm, shaped as ``like``, and their energy.

    The energy is a share of the whole; what is zero retains all of it.
    """
    kept = max(1, min(rank, spectrum.left.shape[1]))
    roots = spectrum.values[:kept].sqrt()
    up, down = spectrum.left[:, :kept] * roots, roots[:, None] * spectrum.right[:kept]
    energies = spectrum.values.double() ** 2
    total = float(energies.sum())
    share = float(energies[:kept].sum()) / total if total > 0 else 1.0
    return LowRank(up.contiguous(), down.contiguous(), like.kernel, like.bias), share
