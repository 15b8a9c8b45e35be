"""The directions that low-rank deltas of one layer read and write, many deltas at once, from Gram matrices of factors.

With rows L and R of a delta D = L^T R, and R_l, R_r the Cholesky factors of L L^T and R R^T, the singular vectors of
the small core R_l R_r^T turn L and R into the singular directions of D: U^T = X^T L with X = R_l^-1 (left vectors). So
all cosines between the directions of two deltas are X_i^T (L_i L_j^T) X_j: products of the factors as they are, and
small matrices. Factors whose rows all but depend on one another are decomposed by themselves first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from conceptry.composer.low_rank import LowRank, decompose_stack

# The directions that count hold this share of a delta's energy: the others are noise of training and of rounding.
ENERGY_SHARE: Final = 0.99
# The sine between a row and those before it from which the Gram matrix in single precision tells it from them.
_INDEPENDENT: Final = 0.03
# Rows that are compared at once: what comes of them stays in the cache.
_BLOCK: Final = 128
# A rank from which the small matrices are no longer small.
_WIDE: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Deltas of one rank, D = left^T right each, and what turns their rows into the directions that count."""

    places: tuple[int, ...]
    left: Float[Tensor, "deltas rank out"]
    right: Float[Tensor, "deltas rank columns"]
    left_turn: Tensor
    """[deltas, rank, rank], or [deltas, rank] where the rows are the directions, but for their lengths."""

    right_turn: Tensor
    counts: Float[Tensor, " deltas"]
    """How many directions of a delta are kept; the others are turned to nought."""

    own: Sequence[tuple[Tensor, Tensor]]
    """L L^T and R R^T of a few deltas at a time, one block after the other."""

    def cut(self, first: int, last: int) -> Rows:
        """Returns those of some deltas, without products of their own."""
        part = slice(first, last)
        turns = self.left_turn[part], self.right_turn[part]
        return Rows(self.places[part], self.left[part], self.right[part], *turns, self.counts[part], ())


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """What two groups of deltas have in common, by pair."""

    mine: tuple[int, ...]
    theirs: tuple[int, ...]
    inner: Float[Tensor, "mine theirs"]
    """<D_i, D_j> of the whole deltas."""

    outputs: Float[Tensor, "mine theirs"]
    """|U_i^T U_j|^2 over the directions that count."""

    inputs: Float[Tensor, "mine theirs"]


def list_rows(deltas: Sequence[LowRank]) -> list[Rows]:
    """Returns the rows of all deltas of one layer, those of one rank together."""
    groups: dict[int, list[int]] = {}
    for place, delta in enumerate(deltas):
        groups.setdefault(delta.rank, []).append(place)
    return [rows for places in groups.values() for rows in _list_alike(deltas, places)]


def iter_meetings(groups: Sequence[Rows]) -> Iterator[Meeting]:
    """Returns what every two deltas of a layer have in common, once at least for each pair."""
    for number, group in enumerate(groups):
        step, count = _measure_step(group.left), len(group.places)
        for at, own in enumerate(group.own):
            block, rest = group.cut(at * step, (at + 1) * step), group.cut((at + 1) * step, count)
            yield _meet(block, block, own)
            for other in (rest, *groups[number + 1 :]):
                if other.places:
                    yield _meet(
                        block, other, (_multiply(block.left, other.left), _multiply(block.right, other.right))
                    )


def _meet(mine: Rows, theirs: Rows, products: tuple[Tensor, Tensor]) -> Meeting:
    outer, nearer = products
    shape = (len(mine.places), mine.left.shape[1], len(theirs.places), theirs.left.shape[1])
    return Meeting(
        mine.places,
        theirs.places,
        inner=(outer * nearer).view(shape).sum(dim=(1, 3)),
        outputs=_share(outer.view(shape), mine.left_turn, theirs.left_turn),
        inputs=_share(nearer.view(shape), mine.right_turn, theirs.right_turn),
    )


def _multiply(mine: Tensor, theirs: Tensor) -> Tensor:
    return mine.flatten(0, 1) @ theirs.flatten(0, 1).T


def _share(cosines: Float[Tensor, "mine rank theirs other"], mine: Tensor, theirs: Tensor) -> Tensor:
    first, rank, second, other = cosines.shape
    rows = cosines.reshape(first, rank, second * other)
    turned = mine.mT @ rows if mine.ndim == 3 else mine[:, :, None] * rows
    columns = turned.reshape(first * rank, second, other).transpose(0, 1)
    both = columns @ theirs if theirs.ndim == 3 else columns * theirs[:, None, :]
    return both.square_().sum(dim=2).view(second, first, rank).sum(dim=2).T


def _list_alike(deltas: Sequence[LowRank], places: Sequence[int]) -> Iterator[Rows]:
    """Returns the rows of deltas of one rank: as they are where this tells their directions, decomposed elsewhere."""
    # Side by side in memory, one column a row: products of such are the fastest.
    columns = torch.cat([deltas[place].up for place in places], dim=1)
    left = columns.T.view(len(places), -1, len(columns))
    right = torch.stack([deltas[place].down for place in places])
    if left.shape[1] > _WIDE:
        # Their small matrices are none, and there are few: one after the other.
        for at, place in enumerate(places):
            yield _decompose((place,), left[at : at + 1], right[at : at + 1])
        return
    blocks = _multiply_own(left, right)
    upper, upper_tells = _find_triangles([outer for outer, _ in blocks], left.shape[1])
    lower, lower_tells = _find_triangles([nearer for _, nearer in blocks], left.shape[1])
    tells = upper_tells & lower_tells
    if bool(tells.all()):
        yield _turn(tuple(places), (left, right), (upper, lower), blocks)
        return
    told, others = (
        [place for place, one in zip(places, tells.tolist(), strict=True) if one is way]
        for way in (True, False)
    )
    if told:
        rows = left[tells], right[tells]
        yield _turn(tuple(told), rows, (upper[tells], lower[tells]), _multiply_own(*rows))
    yield _decompose(tuple(others), left[~tells], right[~tells])


def _measure_step(rows: Tensor) -> int:
    """Returns how many deltas are compared at once."""
    return max(1, _BLOCK // rows.shape[1])


def _multiply_own(left: Tensor, right: Tensor) -> list[tuple[Tensor, Tensor]]:
    step = _measure_step(left)
    return [
        (_multiply(outer, outer), _multiply(nearer, nearer))
        for outer, nearer in zip(torch.split(left, step), torch.split(right, step), strict=True)
    ]


def _find_triangles(blocks: Sequence[Tensor], rank: int) -> tuple[Tensor, Bool[Tensor, " deltas"]]:
    """Returns the Cholesky factor of each delta's Gram matrix, and whether it tells the rows apart."""
    shown = (block.view(len(block) // rank, rank, len(block) // rank, rank) for block in blocks)
    grams = torch.cat([block.diagonal(dim1=0, dim2=2).movedim(2, 0) for block in shown]).double()
    triangles, failures = torch.linalg.cholesky_ex(grams, upper=True)
    lengths = grams.diagonal(dim1=1, dim2=2).sqrt()
    sines = (triangles.diagonal(dim1=1, dim2=2) / lengths).amin(dim=1)
    return triangles, (failures == 0) & (
        sines > _INDEPENDENT
    )  # a row of zeros has no sine: nan is not greater


def _turn(
    places: tuple[int, ...],
    rows: tuple[Tensor, Tensor],
    triangles: tuple[Tensor, Tensor],
    own: Sequence[tuple[Tensor, Tensor]],
) -> Rows:
    upper, lower = triangles
    core = upper @ lower.mT
    energies, left = torch.linalg.eigh(core @ core.mT)
    values, left = energies.clamp(min=0).sqrt().flip(-1), left.flip(-1)
    kept = find_energy(values, ENERGY_SHARE)
    # What is not kept has a value that may be nought, and no direction.
    scales = torch.where(kept, values, torch.inf)[:, None, :]
    right = core.mT @ left / scales
    return Rows(
        places,
        *rows,
        torch.linalg.solve_triangular(upper, left * kept[:, None, :], upper=True).float(),
        torch.linalg.solve_triangular(lower, right, upper=True).float(),
        kept.sum(dim=1).float(),
        own,
    )


def _decompose(places: tuple[int, ...], left: Tensor, right: Tensor) -> Rows:
    """Returns rows that are the directions themselves, at the length of their values on the left."""
    outer, values, inner = decompose_stack(left.mT, right)
    kept = find_energy(values, ENERGY_SHARE) & (values > 0)
    left = outer * values[:, :, None]
    return Rows(
        places,
        left,
        inner,
        torch.where(kept, 1 / values, 0.0),
        kept.float(),
        kept.sum(dim=1).clamp(min=1).float(),
        _multiply_own(left, inner),
    )


def find_energy(values: Float[Tensor, "*batch values"], share: float) -> Bool[Tensor, "*batch values"]:
    """Returns which of falling singular values are the fewest that hold ``share`` of the energy, one at least."""
    energies = values.double() ** 2
    before = torch.cumsum(energies, -1) - energies
    missing = before < share * energies.sum(dim=-1, keepdim=True)
    missing[..., 0] = True
    return missing
