"""What concepts do to one another when they are used together, by pair and by layer, with advice.

Independent adapters have a cosine near 0 even where the picture suffers: what tells is how far the directions that they
read and write overlap beyond chance; the sign of the cosine then says whether they reinforce or cancel.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations, repeat
from typing import Final, NamedTuple

import torch

from conceptry.composer.layer_deltas import GATED, LayerDeltas, Weights, list_layers
from conceptry.composer.plan import Plan, PlannedMember
from conceptry.composer.spectra import LayerTable, iter_layer_tables
from conceptry.composer.word_conflicts import (
    GateConflict,
    WordConflict,
    find_gate_conflicts,
    find_word_conflicts,
)

# How many times chance an overlap is before it is worth a look, and before it is a conflict (composition.md 6.1).
NOTICEABLE: Final = 3.0
STRONG: Final = 8.0
# One concept's energy beside another's from which it drowns it.
_DROWNING: Final = 4.0


class LayerConflict(NamedTuple):
    """Two concepts on one layer."""

    module: str
    cosine: float
    """Between the two deltas: above 0 they reinforce, below they cancel."""

    energy_ratio: float
    """|D1 + D2|^2 / (|D1|^2 + |D2|^2): 1 where they are orthogonal, 2 where equal, 0 where opposite."""

    input_overlap: float
    """How many times as much of what they read they share as random directions would."""

    output_overlap: float
    """The same of what they write."""

    balance: float
    """The energy of the first by that of the second; 1 where one has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Two concepts: their layers in common, the worst first, and the same measures over all of these."""

    first: str
    second: str
    layers: tuple[LayerConflict, ...]
    cosine: float
    energy_ratio: float
    input_overlap: float
    output_overlap: float
    balance: float
    gates: tuple[GateConflict, ...]
    words: tuple[WordConflict, ...]
    not_compared: tuple[str, ...] = ()
    """What of them could not be held against one another, or not wholly, and why; a sentence each."""

    advice: tuple[str, ...]

    @property
    def overlap(self) -> float:
        """The greater of the two overlaps, in units of chance."""
        return max(self.input_overlap, self.output_overlap)

    @property
    def severity(self) -> str:
        """``none``, ``noticeable`` or ``strong``."""
        crossing = any(gate.fires for gate in self.gates)
        if self.overlap >= STRONG or crossing:
            return "strong"
        return "noticeable" if self.overlap >= NOTICEABLE or self.words else "none"


def find_conflicts(plan: Plan, weights: Weights | None = None) -> tuple[Conflict, ...]:
    """Returns every pair of a plan's concepts, in the order of the plan: compared, or why not.

    Concepts of strength 0 take no part.

    Args:
        plan: the concepts at their strengths.
        weights: of the base, where it is open: what depends on them, or is stored as new values, is then compared too.

    Raises:
        NotFoundError: if a file is not on this machine.
        InvalidFileError: if one is malformed.
        IncompatibleError: if new values were packed against another base.
    """
    members = [member for member in plan.members if member.strength]
    changes = [list_layers(member, weights) for member in members]
    with _without_collector():
        rows = collect_layers(iter_layer_tables([one.deltas for one in changes]))
        return tuple(
            _join(
                (members[first], members[second]),
                (changes[first], changes[second]),
                rows.get((first, second), []),
            )
            for first, second in combinations(range(len(members)), 2)
        )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Gives a block in which Python looks for no garbage: it would walk through millions of rows again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


# --- tables to pairs -----------------------------------------------------------------------------------------------

_Row = tuple[LayerConflict, float, float, float]
"""A layer, the inner product, and both squared norms."""


def collect_layers(tables: Iterator[LayerTable]) -> Mapping[tuple[int, int], list[_Row]]:
    """Returns the rows of each pair of places."""
    found: dict[tuple[int, int], list[_Row]] = {}
    places: dict[tuple[int, ...], list[list[_Row]]] = {}
    with _without_collector():
        for table in tables:
            if table.members not in places:
                pairs = combinations(table.members, 2)
                places[table.members] = [found.setdefault(pair, []) for pair in pairs]
            for rows, row in zip(places[table.members], _iter_rows(table), strict=True):
                rows.append(row)
    return found


def _iter_rows(table: LayerTable) -> Iterator[_Row]:
    """Returns the row of every pair of a layer: all measures are computed together, since there may be thousands."""
    first, second = torch.triu_indices(len(table.members), len(table.members), 1)
    energies = table.inner.diagonal()
    mine, theirs, both = energies[first], energies[second], table.inner[first, second]
    total, product = mine + theirs, (mine * theirs).sqrt()
    silent = product == 0
    measures = (
        torch.where(silent, 0.0, both / product).clamp(-1, 1),
        torch.where(total == 0, 1.0, (total + 2 * both) / total).clamp(min=0),
        (table.shared_inputs / table.chance_inputs)[first, second],
        (table.shared_outputs / table.chance_outputs)[first, second],
        torch.where(silent, 1.0, mine / theirs),
    )
    layers = map(LayerConflict, repeat(table.name), *(column.tolist() for column in measures))
    return zip(layers, both.tolist(), mine.tolist(), theirs.tolist(), strict=True)


def _compare(both: float, mine: float, theirs: float) -> dict[str, float]:
    total, product = mine + theirs, math.sqrt(mine * theirs)
    return {
        "cosine": max(-1.0, min(1.0, both / product)) if product else 0.0,
        "energy_ratio": max(0.0, (total + 2 * both) / total) if total else 1.0,
        "balance": mine / theirs if mine and theirs else 1.0,
    }


def _join(
    pair: tuple[PlannedMember, PlannedMember],
    changes: tuple[LayerDeltas, LayerDeltas],
    rows: Sequence[_Row],
) -> Conflict:
    gates, words = find_gate_conflicts(*pair), find_word_conflicts(*pair)
    both, mine, theirs = (
        (math.fsum(column) for column in zip(*(row[1:] for row in rows), strict=True))
        if rows
        else (0.0, 0.0, 0.0)
    )
    weights = [math.sqrt(row[2] * row[3]) for row in rows]
    whole = math.fsum(weights) or 1.0
    measures = _compare(both, mine, theirs)
    inputs, outputs = (
        math.fsum(weight * getattr(row[0], name) for weight, row in zip(weights, rows, strict=True)) / whole
        for name in ("input_overlap", "output_overlap")
    )
    layers = sorted((row[0] for row in rows), key=lambda row: -max(row.input_overlap, row.output_overlap))
    advice = _iter_advice(pair, {**measures, "overlap": max(inputs, outputs)}, gates, words)
    return Conflict(
        first=pair[0].concept.label,
        second=pair[1].concept.label,
        layers=tuple(layers),
        **measures,
        input_overlap=inputs,
        output_overlap=outputs,
        gates=gates,
        words=words,
        not_compared=tuple(_iter_reasons(pair, changes, layers, gates)),
        advice=tuple(advice) if rows or gates or words else (),
    )


def _iter_reasons(
    pair: tuple[PlannedMember, PlannedMember],
    changes: tuple[LayerDeltas, LayerDeltas],
    layers: Sequence[LayerConflict],
    gates: tuple[GateConflict, ...],
) -> Iterator[str]:
    """Returns what of a pair is not compared, or not wholly, and why."""
    labels = [member.concept.label for member in pair]
    for label, change in zip(labels, changes, strict=True):
        if change.everywhere is not None:
            yield f"{label}: {change.everywhere}"
    shared = changes[0].names & changes[1].names
    unsaid: Set[str] = (
        shared - {layer.module for layer in layers} if len(shared) > len(layers) else frozenset()
    )
    for label, change in zip(labels, changes, strict=True):
        said: dict[str, list[str]] = {}
        for name in sorted(shared & change.reasons.keys()):
            said.setdefault(change.reasons[name], []).append(name)
        for reason, names in said.items():
            unsaid = unsaid - frozenset(names)
            if not (gates and reason == GATED):  # what a gate does is said by the gates
                yield f"{label} in {_count(names)}: {reason}"
    if unsaid:
        yield f"{_count(sorted(unsaid))}: other shapes in {labels[0]} than in {labels[1]}"


def _count(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers, such as {names[0]}"


# --- advice --------------------------------------------------------------------------------------------------------


def _iter_advice(
    pair: tuple[PlannedMember, PlannedMember],
    measures: Mapping[str, float],
    gates: tuple[GateConflict, ...],
    words: tuple[WordConflict, ...],
) -> Iterator[str]:
    names = [str(member.concept.manifest.name) for member in pair]
    overlap, balance = measures["overlap"], measures["balance"]
    if overlap >= NOTICEABLE and measures["energy_ratio"] > 1:
        # The factor with which the sum has the energy that two independent deltas would have.
        factor = 1 / math.sqrt(measures["energy_ratio"])
        if factor < 0.97:
            strengths = [
                f"{name}*{member.strength * factor:.2f}" for name, member in zip(names, pair, strict=True)
            ]
            yield f"they reinforce one another: try {' '.join(strengths)}"
    if overlap >= NOTICEABLE and measures["cosine"] < -0.05:
        yield "they cancel in part: let one give way with concepts merge --method orthogonal, or take turns"
    if overlap >= STRONG:
        yield "they use the same directions: draw them in regions of their own, or by turns"
    if not 1 / _DROWNING < balance < _DROWNING:
        loud = 0 if balance > 1 else 1
        factor = (1 / balance if loud == 0 else balance) ** 0.25
        yield (
            f"{names[loud]} is {max(balance, 1 / balance):.1f} times as strong in its layers: "
            f"try {names[loud]}*{pair[loud].strength * factor:.2f}"
        )
    for gate in gates:
        if gate.fires:
            yield f"{gate.word} opens the gate of {gate.opens}: raise its gate's bias, or do not use both in one prompt"
    yield from (word.advice for word in words if word.advice)
