"""How low-rank concepts lie to one another, layer by layer and all pairs at once, from their factors alone.

With the factors of each delta, D_i = L_i^T R_i, all that is asked of a pair is in two small tables, L_i L_j^T and
R_i R_j^T: <D_i, D_j> is the sum of their products by element. With the singular directions, D_i = U_i S_i V_i^T, the
overlap of subspaces is |V_i^T V_j|^2 / min(r_i, r_j), which two random subspaces of d dimensions have at
max(r_i, r_j) / d on average. Inner products are of whole deltas; directions are those that hold nearly all energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.directions import find_energy, iter_meetings, list_rows
from conceptry.composer.low_rank import LowRank, Spectrum, one_thread

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
    """Returns a table for each layer that two concepts or more change, in the order of names.

    Where concepts have a layer in other shapes, there is a table for each shape that two have.
    """
    names = sorted({name for concept in concepts for name in concept})
    with torch.no_grad():
        for name in names:
            members = [place for place, concept in enumerate(concepts) if name in concept]
            if len(members) > 1:
                with one_thread():
                    yield from _iter_tables(name, {place: concepts[place][name]() for place in members})


def _iter_tables(name: str, deltas: Mapping[int, LowRank]) -> Iterator[LayerTable]:
    shapes: dict[tuple[int, int], list[int]] = {}
    for place, delta in deltas.items():
        shapes.setdefault(delta.shape, []).append(place)
    for members in shapes.values():
        if len(members) > 1:
            yield _compare(name, tuple(members), [deltas[place] for place in members])


def _compare(name: str, members: tuple[int, ...], deltas: Sequence[LowRank]) -> LayerTable:
    groups = list_rows(deltas)
    size = len(deltas)
    inner, outputs, inputs = (torch.zeros(size, size) for _ in range(3))
    counts = torch.zeros(size)
    for group in groups:
        counts[list(group.places)] = group.counts
    for met in iter_meetings(groups):
        cells = torch.tensor(met.mine)[:, None], torch.tensor(met.theirs)
        for table, values in ((inner, met.inner), (outputs, met.outputs), (inputs, met.inputs)):
            table[cells] = values
            table.T[cells] = values
    smaller = torch.minimum(counts[:, None], counts[None, :])
    larger = torch.maximum(counts[:, None], counts[None, :])
    height, width = deltas[0].shape
    chance_inputs, chance_outputs = (larger / width).clamp(max=1), (larger / height).clamp(max=1)
    return LayerTable(
        name,
        members,
        inner=inner,
        shared_inputs=inputs / smaller,
        # Two vectors, such as biases, span nothing that could overlap: their cosine says all.
        shared_outputs=chance_outputs if width == 1 else outputs / smaller,
        chance_inputs=chance_inputs,
        chance_outputs=chance_outputs,
    )


def keep_energy(spectrum: Spectrum, share: float) -> Spectrum:
    """Returns the fewest directions that hold ``share`` of the energy, one at least."""
    kept = int(find_energy(spectrum.values, share).sum())
    return Spectrum(spectrum.left[:, :kept], spectrum.values[:kept], spectrum.right[:kept])
