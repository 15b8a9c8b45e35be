"""Adapters in the names of a transformer's authors -> in those of diffusers, which splits what the authors join.

Queries, keys and values are one layer in the authors' code and three in diffusers. A delta whose outputs are rows of a
factor is cut into these rows and stays what it is; any other is cut as the whole difference that it makes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import ALGORITHM_BY_ID
from conceptry.formats.data_files import load_table
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.tensors import RawTensor

_PREFIX: Final = "transformer."
_ROWS: Final[Mapping[str, frozenset[str]]] = {
    "lora": frozenset({"up", "bias", "diff_b"}),
    "locon": frozenset({"up", "bias", "diff_b"}),
    "loha": frozenset({"hada_w1_a", "hada_w2_a", "diff_b"}),
    "dora": frozenset({"up", "magnitude_out", "diff_b"}),
    "doha": frozenset({"hada_w1_a", "hada_w2_a", "magnitude_out", "diff_b"}),
    "full": frozenset({"diff", "diff_b"}),
    "value": frozenset({"value"}),
}
"""Algorithm -> parts of which each row is of one output; all others are of the inputs and the rank."""

_UNSPLIT: Final = frozenset({"hada_t1", "magnitude_in"})
"""Parts with which the rows of the others are not those of the outputs, or the inputs of all outputs are measured."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of data/original_names.toml."""

    old: re.Pattern[str]
    new: tuple[str, ...]
    sizes: tuple[int, ...]
    turned: bool


@functools.cache
def _list_rows(family: str) -> tuple[_Row, ...]:
    return tuple(
        _Row(
            re.compile(row["old"], re.ASCII),
            tuple(row["new"]),
            tuple(row.get("sizes", (1,) * len(row["new"]))),
            row.get("turned", False),
        )
        for row in load_table("original_names").get(family, ())
    )


@functools.lru_cache(maxsize=65_536)
def _find(name: str, family: str) -> tuple[_Row, tuple[str, ...]] | None:
    if not name.startswith(_PREFIX):
        return None
    for row in _list_rows(family):
        match = row.old.fullmatch(name, len(_PREFIX))
        if match is not None:
            return row, tuple(_PREFIX + match.expand(new) for new in row.new)
    return None


def is_original(name: str, family: str) -> bool:
    """Returns whether the module ``transformer.{path}`` has another name, or other layers, in diffusers."""
    return _find(name, family) is not None


def spell_name(name: str, family: str) -> tuple[str, ...]:
    """Returns what diffusers calls the layers of one module; its own name alone where both call it the same."""
    place = _find(name, family)
    return (name,) if place is None else place[1]


def spell_as_diffusers(modules: Mapping[str, LoraModule], family: str) -> dict[str, LoraModule]:
    """Returns the modules by the names that diffusers has for the layers that they change; the rest as they are.

    Raises:
        IncompatibleError: if a module of several layers cannot be cut without the base's weights.
    """
    found: dict[str, LoraModule] = {}
    for name, module in modules.items():
        place = _find(name, family)
        if place is None:
            found[name] = module
            continue
        row, names = place
        pieces = _split(name, module, row.sizes) if len(names) > 1 else [module]
        if row.turned:
            pieces = [_turn(name, pieces[0])]
        found |= zip(names, pieces, strict=True)
    return found


def _split(name: str, module: LoraModule, sizes: Sequence[int]) -> list[LoraModule]:
    whole = _by_rows(name, module)
    cut = _ROWS[whole.algorithm] & whole.parts.keys()
    outputs = {whole.parts[part].shape[0] for part in cut}
    total = sum(sizes)
    if len(outputs) != 1 or next(iter(outputs)) % total:
        raise IncompatibleError(
            f"{name} has {sorted(outputs)} outputs, which are not {total} parts of one size",
            hint="concepts show tells which base the concept was made for",
        )
    unit = next(iter(outputs)) // total
    pieces, first = [], 0
    for size in sizes:
        last = first + size * unit
        rows = {part: whole.parts[part].cut_rows(first, last) for part in cut}
        pieces.append(replace(whole, parts={**whole.parts, **rows}))
        first = last
    return pieces


def _turn(name: str, module: LoraModule) -> LoraModule:
    """Returns the module with both halves of its outputs exchanged, where it makes a shift and a scale alone."""
    outputs, inputs = _measure(module)
    if outputs is not None and inputs is not None and outputs != 2 * inputs:
        return module
    if outputs is None or inputs is None or (_find_shape(module) is None and not _has_rows(module)):
        raise IncompatibleError(
            f"{name} is a {module.algorithm}, and diffusers may have its outputs in another order",
            hint="use it with the program that it was made for: concepts export --for comfyui",
        )
    whole = _by_rows(name, module)
    rows = {}
    for part in _ROWS[whole.algorithm] & whole.parts.keys():
        tensor = whole.parts[part]
        middle = tensor.shape[0] // 2
        halves = tensor.cut_rows(middle, 2 * middle).data, tensor.cut_rows(0, middle).data
        rows[part] = RawTensor(tensor.dtype, tensor.shape, b"".join(bytes(half) for half in halves))
    return replace(whole, parts={**whole.parts, **rows})


def _by_rows(name: str, module: LoraModule) -> LoraModule:
    """Returns the module, or its whole difference, as parts of which some have a row for each output."""
    if _has_rows(module):
        return module
    shape = _find_shape(module)
    if shape is None:
        raise IncompatibleError(
            f"{name} is a {module.algorithm} over several layers of diffusers, which cannot be cut apart",
            hint="use it with the program that it was made for: concepts export --for comfyui",
        )
    parts = {"diff": dense_delta(module, shape, dtype="float32"), "diff_b": dense_bias_delta(module)}
    given = {
        part: RawTensor.from_numpy(value.astype("float32"))
        for part, value in parts.items()
        if value is not None
    }
    return LoraModule(algorithm="full", parts=given, rule="none")


def _has_rows(module: LoraModule) -> bool:
    return module.algorithm in _ROWS and not _UNSPLIT & module.parts.keys()


def _measure(module: LoraModule) -> tuple[int | None, int | None]:
    """Returns the outputs and inputs of the weight that the module is for, as far as it alone tells."""
    for part in ("diff", "value"):
        if part in module.parts:
            shape = module.parts[part].shape
            return shape[0], shape[1] if len(shape) > 1 else None
    match = module.match()
    return match.sizes.product(match.form.outputs), match.sizes.product(match.form.inputs)


def _find_shape(module: LoraModule) -> tuple[int, ...] | None:
    """Returns the shape of the weight that the module is for; None where it alone does not tell or suffice."""
    if ALGORITHM_BY_ID[module.algorithm].needs_base:
        return None
    if "diff" in module.parts:
        return module.parts["diff"].shape
    match = module.match()
    outputs, inputs = (match.sizes.product(sizes) for sizes in (match.form.outputs, match.form.inputs))
    return None if outputs is None or inputs is None else (outputs, inputs, *(match.sizes.kernel or ()))
