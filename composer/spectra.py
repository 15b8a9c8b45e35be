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
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.low_rank import LowRank, Spectrum, decompose_all, one_thread

# The directions that count hold this share of a delta's energy: the others are noise of training and of rounding.
ENERGY_SHARE: Final = 0.99
_BLOCK: Final = 8

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


def _compare(name: str, members: tuple[int, ...], deltas: Sequence[LowRank]) -> LayerTable:
    spectra = [keep_energy(one, ENERGY_SHARE) for one in decompose_all(deltas)]
    counts = torch.tensor([len(one.values) for one in spectra])
    left = torch.cat([one.left for one in spectra], dim=1)
    right = torch.cat([one.right for one in spectra])
    values = torch.cat([one.values for one in spectra])
    belongs = torch.eye(len(spectra)).repeat_interleave(counts, dim=0)
    weights = belongs * values[:, None]
    starts = [0, *torch.cumsum(counts, 0).tolist()]
    inner, inputs, outputs = (torch.zeros(len(spectra), len(spectra)) for _ in range(3))
    for first in range(0, len(spectra), _BLOCK):
        # Of a symmetric table, the blocks from the diagonal on.
        begin, end = starts[first], starts[min(first + _BLOCK, len(spectra))]
        rows, cells = slice(begin, end), slice(begin, None)
        outer = left[:, rows].T @ left[:, cells]
        nearer = right[rows] @ right[cells].T
        inner += weights[rows].T @ (outer * nearer) @ weights[cells]
        outputs += belongs[rows].T @ outer.square_() @ belongs[cells]
        inputs += belongs[rows].T @ nearer.square_() @ belongs[cells]
    smaller = torch.minimum(counts[:, None], counts[None, :])
    larger = torch.maximum(counts[:, None], counts[None, :]).float()
    return LayerTable(
        name,
        members,
        inner=_mirror(inner),
        shared_inputs=_mirror(inputs) / smaller,
        shared_outputs=_mirror(outputs) / smaller,
        chance_inputs=(larger / right.shape[1]).clamp(max=1),
        chance_outputs=(larger / left.shape[0]).clamp(max=1),
    )


def keep_energy(spectrum: Spectrum, share: float) -> Spectrum:
    """Returns the fewest directions that hold ``share`` of the energy, one at least."""
    energies = spectrum.values.double() ** 2
    reached = torch.cumsum(energies, 0) >= share * energies.sum()
    kept = int(reached.int().argmax()) + 1
    return Spectrum(spectrum.left[:, :kept], spectrum.values[:kept], spectrum.right[:kept])


def _mirror(table: Tensor) -> Tensor:
    upper = table.triu()
    return upper + upper.triu(1).T
