"""What a way of merging gets for one layer, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from conceptry.composer.low_rank import LowRank, add_biases, truncate, truncate_dense
from conceptry.digests import Digest
from conceptry.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSettings:
    """Numbers of the ways of merging. What is None is as the method's own paper has it.

    Raises:
        UsageError: if one is out of its range.
    """

    rank: int | None = None
    """The greatest rank of a layer of the result; None cuts nothing that is not cut by the method itself."""

    density: float | None = None
    """The share of entries that stay, by magnitude or by chance."""

    seed: int = 0
    ridge: float = 1e-3
    """How much staying at the base counts, beside the mean energy of an input."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank of {self.rank} holds nothing", hint="--rank 16")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"a density of {self.density:g} is no share", hint="--density 0.2")
        if not 0 < self.ridge < float("inf"):
            raise UsageError(f"a ridge of {self.ridge:g} holds nothing at the base", hint="--ridge 0.001")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """The deltas that several concepts make to one layer, each at its strength."""

    name: str
    deltas: tuple[LowRank, ...]
    owners: tuple[int, ...]
    """The place of each delta's concept among all that are merged."""

    settings: MergeSettings = field(default_factory=MergeSettings)
    density: float = 1.0
    inputs: tuple[Float[Tensor, "_ columns"], ...] = ()
    """Of each delta's concept, what the method asks for: the rows that the layer reads, or their second moment."""

    regular: Float[Tensor, "columns columns"] | None = None
    """The second moment of what the layer reads of ordinary captions."""

    def make_generator(self, owner: int) -> np.random.Generator:
        """Returns the generator of one concept's draws here: of seed, layer and place, equal on every machine."""
        digest = Digest.of_bytes(f"{self.settings.seed}/{owner}/{self.name}".encode())
        return np.random.default_rng(int(digest.hex[:32], 16))

    def cut(self, delta: LowRank) -> MergedLayer:
        """Returns ``delta`` at the rank that was asked for, and at no more than its layer can have."""
        rank = min(self.settings.rank or delta.rank, *delta.shape)
        return MergedLayer(delta, 1.0) if delta.rank <= rank else MergedLayer(*truncate(delta, rank))

    def cut_dense(self, dense: Float[Tensor, "out columns"]) -> MergedLayer:
        """Returns a dense delta at the rank that was asked for, else at the sum of the ranks that went in."""
        rank = self.settings.rank or sum(one.rank for one in self.deltas)
        return MergedLayer(*truncate_dense(dense, rank, self.deltas[0], add_biases(self.deltas)))


@dataclass(frozen=True, slots=True, eq=False)
class MergedLayer:
    """One layer of the result, and the share of the merged delta's energy that its rank retains."""

    delta: LowRank
    retained: float


def stack_dense(deltas: Sequence[LowRank]) -> Float[Tensor, "concepts out columns"]:
    """Returns the products, one above the other."""
    return torch.stack([one.to_dense() for one in deltas])
