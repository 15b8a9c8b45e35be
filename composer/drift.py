"""How far another model has drifted from the base that a concept was made for, in the layers that the concept changes.

A fine-tune W' of W takes an adapter for W as far as it left alone what the adapter builds on. Three shares say it by
layer: how much of the weight changed, how much in the directions that the adapter reads, and the change beside the
adapter's own delta. Where the base itself is not at hand, the values of its published fingerprint are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conceptry.bases import BaseIdentity, ComponentName
from conceptry.composer.directions import ENERGY_SHARE
from conceptry.composer.layer_deltas import list_factors
from conceptry.composer.low_rank import Spectrum, decompose, one_thread
from conceptry.composer.overlaps import list_changed_modules
from conceptry.composer.pipelines import Pipeline, find_tensor, list_components
from conceptry.composer.plan import PlannedMember
from conceptry.composer.spectra import keep_energy


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrift:
    """One layer that a concept changes."""

    module: str
    drift: float
    """|W' - W| / |W|."""

    read_drift: float | None
    """The same in the directions that the concept reads, |(W' - W) V| / |W V|; None where it has no factors."""

    beside_concept: float | None
    """|W' - W| / |D|: how many times as large as the concept's own change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A concept on another model than its own."""

    concept: str
    layers: tuple[LayerDrift, ...]
    """The most drifted first; empty where the base was not at hand."""

    components: Mapping[ComponentName, float]
    """By component, the relative difference of the values that the base's fingerprint holds; sampled, not complete."""

    missing: tuple[str, ...] = ()
    """Layers that the concept changes and one of the two models lacks, or has in another shape."""

    @property
    def mean(self) -> float | None:
        """The mean drift of the layers; None where they were not read."""
        return math.fsum(one.drift for one in self.layers) / len(self.layers) if self.layers else None


def read_weights(pipeline: Pipeline, modules: Iterable[str]) -> dict[str, Tensor]:
    """Returns copies of the weights of the named ``component.module``; those that are not there are left out."""
    parts = list_components(pipeline)
    found = {}
    for module in modules:
        component, _, path = module.partition(".")
        root = parts.get(ComponentName(component))
        weight = None if root is None else find_tensor(root, f"{path}.weight")
        if weight is not None:
            found[module] = weight.detach().to("cpu", torch.float32, copy=True)
    return found


def measure_drift(
    member: PlannedMember,
    offered: BaseIdentity,
    theirs: Mapping[str, Tensor],
    mine: Mapping[str, Tensor] | None = None,
) -> Drift:
    """Returns how far a model has drifted from the base of a planned concept.

    Args:
        member: the concept and the build that is used.
        offered: what is known of the other model.
        theirs: its weights, by ``component.module``, as ``read_weights`` returns them.
        mine: those of the base that the concept was made for, where it is at hand.

    Raises:
        NotFoundError, InvalidFileError: if the concept's files cannot be read.
    """
    changed = list_changed_modules(member)
    rows, missing = [], []
    if mine is not None:
        deltas = list_factors(member)
        with one_thread(), torch.no_grad():
            for module in changed:
                before, after = mine.get(module), theirs.get(module)
                if before is None or after is None or before.shape != after.shape:
                    missing.append(module)
                    continue
                read = deltas.get(module)
                rows.append(_compare(module, before, after, None if read is None else decompose(read())))
    declared = member.build.base.identity.fingerprints
    components = {
        name: _compare_samples(declared[name].weights, found.weights)
        for name, found in offered.fingerprints.items()
        if name in declared and len(declared[name].weights) == len(found.weights)
    }
    return Drift(
        concept=member.concept.label,
        layers=tuple(sorted(rows, key=lambda row: -row.drift)),
        components=components,
        missing=tuple(missing),
    )


def _compare(module: str, before: Tensor, after: Tensor, delta: Spectrum | None) -> LayerDrift:
    weight, change = before.flatten(1), (after - before).flatten(1)
    read = beside = None
    if delta is not None and delta.right.shape[1] == weight.shape[1]:
        directions = keep_energy(delta, ENERGY_SHARE).right.T
        read = _divide(change @ directions, weight @ directions)
        beside = float(change.norm()) / max(delta.energy**0.5, 1e-30)
    return LayerDrift(module=module, drift=_divide(change, weight), read_drift=read, beside_concept=beside)


def _divide(change: Tensor, whole: Tensor) -> float:
    return float(change.norm()) / max(float(whole.norm()), 1e-30)


def _compare_samples(declared: Iterable[float], found: Iterable[float]) -> float:
    pairs = list(zip(declared, found, strict=True))
    total = math.fsum(a * a for a, _ in pairs)
    return math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs) / total) if total else 0.0
