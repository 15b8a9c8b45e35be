"""How low-rank concepts lie to one another, layer by layer and all pairs at once, from their factors alone.

With the singular directions of each delta, D_i = U_i S_i V_i^T, all that is asked of a pair is in two small tables of
cosines, U_i^T U_j and V_i^T V_j: <D_i, D_j> = sum_kl s_k s_l (U_i^T U_j)_kl (V_i^T V_j)_kl, and the overlap of
subspaces |V_i^T V_j|^2 / min(r_i, r_j), which two random subspaces of d dimensions have at max(r_i, r_j) / d on
average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from conceptry.composer.low_rank import LowRank, Spectrum, decompose_stack, one_thread

# The directions that count hold this share of a delta's energy: the others are noise of training and of rounding.
ENERGY_SHARE: Final = 0.99
# Rows that are compared at once: what comes of them stays in the cache.
_BLOCK: Final = 128

Deltas = Mapping[str, Callable[[], LowRank]]
"""One concept: ``component.module`` -> what reads its delta, so that no more than a layer is in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """All pairs of the concepts that change one layer."""

    name: str
    members: tuple[int, ...]
    """The places of the concepts, in the order of rows and columns."""

    inner: Float[Tensor, "members members"]
    """Inner products of the deltas, each at its strength; squared norms on the diagonal."""

    shared_inputs: Float[Tensor, "members members"]
    """Overlap of what they read: 1 where one subspace lies in the other."""

    shared_outputs: Float[Tensor, "members members"]
    chance_inputs: Float[Tensor, "members members"]
    """The overlap that random subspaces of these ranks have on average."""

    chance_outputs: Float[Tensor, "members members"]


def iter_layer_tables(concepts: Sequence[Deltas]) -> Iterator[LayerTable]:
    """Returns a table for each layer that two concepts or more change, in the order of names."""
    names = sorted({name for concept in concepts for name in concept})
    with torch.no_grad():
        for name in names:
            members = tuple(place for place, concept in enumerate(concepts) if name in concept)
            if len(members) > 1:
                with one_thread():
                    yield _compare(name, members, [concepts[place][name]() for place in members])


@dataclass(frozen=True, slots=True, eq=False)
class _Directions:
    """The singular directions of all members as rows; those that hold too little energy are nought."""

    left: Float[Tensor, "rows out"]
    right: Float[Tensor, "rows columns"]
    belongs: Float[Tensor, "rows members"]
    """1 where a direction is a member's."""

    values: Float[Tensor, " rows"]
    counts: Float[Tensor, " members"]
    """How many directions of a member are kept."""


def _compare(name: str, members: tuple[int, ...], deltas: Sequence[LowRank]) -> LayerTable:
    found = _find_directions(deltas)
    size = len(deltas)
    weighted = found.belongs * found.values[:, None]
    inner, inputs, outputs = (_Table.zeros(size) for _ in range(3))
    for first in range(0, len(found.values), _BLOCK):
        # Of a symmetric table, the blocks from the diagonal on.
        rows = slice(first, first + _BLOCK)
        outer = found.left[rows] @ found.left[first:].T
        nearer = found.right[rows] @ found.right[first:].T
        inner.add(outer * nearer, weighted[rows], weighted[first:])
        outputs.add(outer.square_(), found.belongs[rows], found.belongs[first:])
        inputs.add(nearer.square_(), found.belongs[rows], found.belongs[first:])
    smaller = torch.minimum(found.counts[:, None], found.counts[None, :])
    larger = torch.maximum(found.counts[:, None], found.counts[None, :])
    return LayerTable(
        name,
        members,
        inner=inner.join(),
        shared_inputs=inputs.join() / smaller,
        shared_outputs=outputs.join() / smaller,
        chance_inputs=(larger / found.right.shape[1]).clamp(max=1),
        chance_outputs=(larger / found.left.shape[1]).clamp(max=1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Sums over the directions of each pair of members, made from blocks of rows; each pair of rows is met once."""

    diagonal: Float[Tensor, "members members"]
    beyond: Float[Tensor, "members members"]

    @classmethod
    def zeros(cls, size: int) -> _Table:
        """Returns an empty table of ``size`` members."""
        return cls(torch.zeros(size, size), torch.zeros(size, size))

    def add(self, block: Tensor, rows: Tensor, cells: Tensor) -> None:
        """Adds ``block``, whose first columns are its own rows, with what each row and column counts for a member."""
        own = len(rows)
        pooled = rows.T @ block
        self.diagonal.add_(pooled[:, :own] @ cells[:own])
        self.beyond.add_(pooled[:, own:] @ cells[own:])

    def join(self) -> Tensor:
        """Returns the symmetric table."""
        return self.diagonal + self.beyond + self.beyond.T


def _find_directions(deltas: Sequence[LowRank]) -> _Directions:
    """Returns the directions of all deltas; those of one rank are found together."""
    groups: dict[int, list[int]] = {}
    for place, delta in enumerate(deltas):
        groups.setdefault(delta.rank, []).append(place)
    columns: list[tuple[Tensor, ...]] = []
    counts = torch.zeros(len(deltas))
    for places in groups.values():
        left, values, right = decompose_stack(
            torch.stack([deltas[place].up for place in places]),
            torch.stack([deltas[place].down for place in places]),
        )
        kept = find_energy(values, ENERGY_SHARE)
        counts[places] = kept.sum(dim=1).float()
        belongs = torch.eye(len(deltas))[places].repeat_interleave(values.shape[1], dim=0)
        shown = kept[:, :, None]
        columns.append(
            (
                left.mul(shown).flatten(0, 1),
                right.mul(shown).flatten(0, 1),
                belongs * kept.flatten()[:, None],
                values.flatten(),
            )
        )
    left, right, belongs, values = (
        column[0] if len(column) == 1 else torch.cat(column) for column in zip(*columns, strict=True)
    )
    return _Directions(left, right, belongs, values, counts)


def find_energy(values: Float[Tensor, "*batch values"], share: float) -> Bool[Tensor, "*batch values"]:
    """Returns which of falling singular values are the fewest that hold ``share`` of the energy, one at least."""
    energies = values.double() ** 2
    before = torch.cumsum(energies, -1) - energies
    missing = before < share * energies.sum(dim=-1, keepdim=True)
    missing[..., 0] = True
    return missing


def keep_energy(spectrum: Spectrum, share: float) -> Spectrum:
    """Returns the fewest directions that hold ``share`` of the energy, one at least."""
    kept = int(find_energy(spectrum.values, share).sum())
    return Spectrum(spectrum.left[:, :kept], spectrum.values[:kept], spectrum.right[:kept])
