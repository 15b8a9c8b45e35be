"""Algebra of low-rank deltas on their factors alone: sums, truncation, singular directions, never a dense product.

The product of factors with R columns in all costs O((out + in) R^2 + R^3) to decompose: QR of both stacked factors, and
the singular values of the R x R core between them. Small calls of LAPACK run on one thread: on more they are slower
by an order of magnitude (a pool is woken for microseconds of work).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
    """Singular directions of a delta, the strongest first: ``left * values @ right`` is the delta."""

    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank columns"]

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
    outputs, columns = delta.shape
    if delta.rank > min(outputs, columns):
        left, values, right = torch.linalg.svd(delta.to_dense(), full_matrices=False)
        return Spectrum(left, values, right)
    outer, upper = torch.linalg.qr(delta.up)
    inner, lower = torch.linalg.qr(delta.down.T)
    left, values, right = torch.linalg.svd(upper @ lower.T)
    return Spectrum(outer @ left, values, right @ inner.T)


def decompose_all(deltas: Sequence[LowRank]) -> list[Spectrum]:
    """Returns ``decompose`` of each; those of one shape and rank together, which saves half the time."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for place, delta in enumerate(deltas):
        groups.setdefault((*delta.shape, delta.rank), []).append(place)
    found: dict[int, Spectrum] = {}
    for places in groups.values():
        if len(places) == 1 or deltas[places[0]].rank > min(deltas[places[0]].shape):
            found |= {place: decompose(deltas[place]) for place in places}
            continue
        outer, upper = torch.linalg.qr(torch.stack([deltas[place].up for place in places]))
        inner, lower = torch.linalg.qr(torch.stack([deltas[place].down.T for place in places]))
        left, values, right = torch.linalg.svd(upper @ lower.mT)
        rows = zip(outer @ left, values, right @ inner.mT, strict=True)
        found |= {place: Spectrum(*row) for place, row in zip(places, rows, strict=True)}
    return [found[place] for place in range(len(deltas))]


def truncate(delta: LowRank, rank: int) -> tuple[LowRank, float]:
    """Returns the nearest delta of at most ``rank`` (Eckart and Young, 1936), and the share of energy it retains."""
    return compose(decompose(delta), rank, delta)


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
    kept = max(1, min(rank, len(spectrum.values)))
    roots = spectrum.values[:kept].sqrt()
    up, down = spectrum.left[:, :kept] * roots, roots[:, None] * spectrum.right[:kept]
    energies = spectrum.values.double() ** 2
    total = float(energies.sum())
    share = float(energies[:kept].sum()) / total if total > 0 else 1.0
    return LowRank(up.contiguous(), down.contiguous(), like.kernel, like.bias), share
