"""COMBINATIONS: each way of putting several concepts into one pipeline that the benchmark compares."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.layer_deltas import list_factors
from conceptry.composer.low_rank import LowRank, add_biases
from conceptry.composer.merge_inputs import MergeInputs, gather_inputs
from conceptry.composer.merge_layers import MergedLayer, stack_dense
from conceptry.composer.merge_methods import METHODS, find_merge_method
from conceptry.composer.merge_signs import elect, trim
from conceptry.composer.merging import MergeRequest, merge_layers, write_merge
from conceptry.composer.plan import Plan, make_plan
from conceptry.composer.spectra import iter_layer_tables
from conceptry.composer.ways import WAYS
from conceptry.concepts import Concept
from conceptry.errors import UsageError
from conceptry.names import ConceptName, parse_version

_MERGED: Final = ConceptName("toybench", "merged")
_MOST_CONFLICTS: Final = 0.25
"""The share of entries of opposite signs up to which the public optimiser averages a layer."""

_DENSITY: Final = 0.5

Words = Mapping[str, Mapping[str, str]]
"""The words of each concept as they are written meanwhile, by its label."""

_Layers = Callable[[Plan, MergeInputs], dict[str, MergedLayer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One way of putting concepts together."""

    id: str
    title: str
    combine: Callable[[Sequence[Concept], Any], Any]


def find_combination(id: str) -> Combination:
    """Returns the row called ``id``. Raises UsageError."""
    row = COMBINATION_BY_ID.get(id)
    if row is None:
        raise UsageError(
            f"concepts are put together in no way called {id[:80]!r}",
            hint=f"known: {', '.join(COMBINATION_BY_ID)}",
        )
    return row


@contextmanager
def _attach(concepts: Sequence[Concept], pipeline: Any, way: Any) -> Iterator[Words]:
    with attach(Composition(*concepts, way=way), pipeline) as report:
        yield {one.label: {str(k): str(v) for k, v in one.words.items()} for one in report.concepts}


@contextmanager
def _attach_evened(concepts: Sequence[Concept], pipeline: Any) -> Iterator[Words]:
    """Strengths from norms and pairwise cosines alone."""
    factor = even_out(make_plan(Composition(*concepts), identify_pipeline(pipeline)))
    with attach(Composition(*(concept * factor for concept in concepts)), pipeline) as report:
        yield {one.label: {str(k): str(v) for k, v in one.words.items()} for one in report.concepts}


@contextmanager
def _merge(concepts: Sequence[Concept], pipeline: Any, method: str, layers: _Layers) -> Iterator[Words]:
    plan = make_plan(Composition(*concepts), identify_pipeline(pipeline))
    request = MergeRequest(name=_MERGED, version=parse_version("1.0.0"), method=find_merge_method(method))
    with tempfile.TemporaryDirectory(prefix="conceptry-bench-") as name:
        inputs = gather_inputs(plan)
        merged = write_merge(plan, inputs, layers(plan, inputs), request, Path(name) / "merged").concept
        with attach(Composition(merged), pipeline):
            yield {one.concept.label: {str(k): str(v) for k, v in one.words.items()} for one in plan.members}


def even_out(plan: Plan) -> float:
    """Returns the factor with which the sum of a plan's deltas has the energy of the strongest of them, 1 at most.

    |sum D_i|^2 = sum |D_i|^2 + 2 sum |D_i| |D_j| cos_ij, as ComfyUI-LoRA-Optimizer's automatic strength describes it.
    """
    total: Tensor | None = None
    for table in iter_layer_tables([list_factors(member) for member in plan.members]):
        own = torch.zeros(len(plan.members), len(plan.members))
        own[torch.tensor(table.members)[:, None], torch.tensor(table.members)] = table.inner
        total = own if total is None else total + own
    if total is None or float(total.sum()) <= 0:
        return 1.0
    return min(1.0, math.sqrt(float(total.diagonal().max()) / float(total.sum())))


def _choose_layers(plan: Plan, inputs: MergeInputs) -> dict[str, MergedLayer]:
    """Returns each layer by the rules of ComfyUI-LoRA-Optimizer: few conflicts of sign are averaged, many elected.

    A layer of one concept stays as it is. The rules are those of its README; the density, which it derives from
    magnitudes, is fixed here.
    """
    factor, found = even_out(plan), {}
    for name, rows in inputs.factored.items():
        deltas = [delta.scaled(factor) for _, delta in rows]
        if len(deltas) == 1:
            found[name] = MergedLayer(deltas[0], 1.0)
            continue
        dense = stack_dense(deltas)
        whole = (
            dense.mean(dim=0) if count_conflicts(dense) <= _MOST_CONFLICTS else elect(trim(dense, _DENSITY))
        )
        found[name] = MergedLayer(_keep_whole(whole, deltas), 1.0)
    return found


def count_conflicts(dense: Tensor) -> float:
    """Returns the share of entries in which two deltas have opposite signs, the mean over pairs."""
    signs = torch.sign(dense)
    shares = []
    for first, second in combinations(range(len(signs)), 2):
        product = signs[first] * signs[second]
        shares.append(float((product < 0).sum() / (product != 0).sum().clamp(min=1)))
    return sum(shares) / len(shares) if shares else 0.0


def _keep_whole(dense: Tensor, deltas: Sequence[LowRank]) -> LowRank:
    """Returns a dense delta as a product with ones on the diagonal: nothing is cut from it."""
    rows, columns = dense.shape
    up, down = (torch.eye(rows), dense) if rows < columns else (dense, torch.eye(columns))
    return LowRank(up, down, deltas[0].kernel, add_biases(deltas))


def _merge_by(method: str) -> _Layers:
    def merge(plan: Plan, inputs: MergeInputs) -> dict[str, MergedLayer]:
        request = MergeRequest(name=_MERGED, version=parse_version("1.0.0"), method=find_merge_method(method))
        return merge_layers(inputs, request)

    return merge


def _attaching(id: str, way: str, title: str) -> Combination:
    return Combination(
        id=id, title=title, combine=lambda concepts, pipeline: _attach(concepts, pipeline, way)
    )


def _merging(id: str, method: str, title: str, layers: _Layers) -> Combination:
    return Combination(
        id=id, title=title, combine=lambda concepts, pipeline: _merge(concepts, pipeline, method, layers)
    )


COMBINATIONS: Final[tuple[Combination, ...]] = (
    *(_attaching("attached" if row.id == "sum" else row.id, row.id, row.title) for row in WAYS),
    Combination(id="cosine", title="summed at strengths from pairwise cosines", combine=_attach_evened),
    _merging(
        "optimiser",
        "ties",
        "strengths from cosines, layers averaged or elected by conflicts of sign",
        _choose_layers,
    ),
    *(
        _merging(f"merge-{row.id}", row.id, f"merged: {row.title}", _merge_by(row.id))
        for row in METHODS
        if row.reads == "nothing"
    ),
)
COMBINATION_BY_ID: Final[dict[str, Combination]] = {row.id: row for row in COMBINATIONS}
