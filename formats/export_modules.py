"""Modules of an adapter as one program can apply them: as they are, multiplied out, approximated, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import ALGORITHM_BY_ID, match_algorithm
from conceptry.formats.data_files import load_table
from conceptry.formats.deltas import dense_delta
from conceptry.formats.export_approximation import approximate, approximate_product
from conceptry.formats.export_contract import Loss
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.tensors import RawTensor

_BIASES: Final = frozenset({"bias", "diff_b"})
# The parts to clear for a delta of zero, by algorithm; programs read an alpha of 0 as "not said".
_FACTORS: Final = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "a1", "b1")
_WIDE: Final = re.compile(r"(^|\.)(conv[12]?|conv_in|conv_out|op)$", re.ASCII)
_POINTWISE: Final = re.compile(r"(^|\.)(conv_shortcut|proj_in|proj_out)$", re.ASCII)
_LINEAR_PROJECTIONS: Final = frozenset({"sd2", "sdxl", "sdxl_refiner"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """The modules that a program can apply, what was lost on the way, and what was rounded, in words."""

    modules: Mapping[str, LoraModule]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]


def prepare_modules(program: str, modules: Mapping[str, LoraModule], family: str, *, lossy: bool) -> Prepared:
    """Returns ``modules`` as the row ``program`` of data/spellings.toml reads them.

    Without ``lossy`` nothing is computed for what would be lost: the losses then name modules with the error 1.

    Raises:
        IncompatibleError: for a module whose delta depends on the base's weight in a way that the program lacks.
    """
    kept: dict[str, LoraModule] = {}
    losses: list[Loss] = []
    rounded = cleared = 0
    for name, module in modules.items():
        made = _prepare(program, name, module, family, lossy)
        losses += made.losses
        rounded += made.rounded
        if made.module is not None:
            zero = made.module.numbers.get("alpha") == 0
            kept[name] = _clear(made.module) if zero else made.module
            cleared += zero
    if not kept and not losses:
        raise IncompatibleError(f"nothing is left that {program} reads", where=next(iter(modules), None))
    notes = []
    if rounded:
        notes.append(f"{rounded} modules were multiplied out, to the precision of float32")
    if cleared:
        notes.append(
            f"{cleared} modules have alpha 0, which other programs read as 'not said'; a factor is 0 instead"
        )
    return Prepared(kept, tuple(losses), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Made:
    module: LoraModule | None
    losses: tuple[Loss, ...] = ()
    rounded: bool = False


def _prepare(program: str, name: str, module: LoraModule, family: str, lossy: bool) -> _Made:
    row = load_table("spellings")[program]
    keeps = row.get("keeps", {})
    lacking = {
        part for part in module.parts if part in row["lacks"] and module.algorithm not in keeps.get(part, ())
    }
    needed = row.get("needs", {}).get(module.algorithm, ())
    title = ALGORITHM_BY_ID[module.algorithm].title
    readable = module.algorithm in row["algorithms"] and all(part in module.parts for part in needed)
    if readable and not lacking:
        return _fold_scale(name, module)
    if "core" in lacking and module.algorithm in row["algorithms"]:
        return replace(_prepare(program, name, _contract(module), family, lossy), rounded=True)
    if readable and lacking <= _BIASES:
        rest = {part: tensor for part, tensor in module.parts.items() if part not in lacking}
        return _Made(
            replace(module, parts=rest), (Loss(name, 1.0, f"{program} reads no bias beside {title}"),)
        )
    if not ALGORITHM_BY_ID[module.algorithm].additive:
        raise IncompatibleError(
            f"{program} cannot hold {title}{_name_parts(lacking)}, whose effect depends on the base's weight",
            where=name,
        )
    return _approximate(program, name, module, family, lossy)


def _name_parts(lacking: set[str]) -> str:
    words = {"magnitude_out": "a magnitude for each output", "magnitude_in": "a magnitude for each input"}
    named = sorted(words.get(part, part) for part in lacking)
    return f" with {', '.join(named)}" if named else ""


# --- exact ---------------------------------------------------------------------------------------------------------


def _contract(module: LoraModule) -> LoraModule:
    """Returns a core multiplied into the factor that reads: the same delta, as a plain LoCon of the same rank."""
    import numpy as np

    core, down = (module.parts[part].to_numpy().astype(np.float64) for part in ("core", "down"))
    wide = np.einsum("mnkl,ni->mikl", core, down.reshape(down.shape[0], -1)).astype(np.float32)
    parts = {part: tensor for part, tensor in module.parts.items() if part != "core"}
    parts["down"] = RawTensor.from_numpy(wide)
    found = match_algorithm({part: tensor.shape for part, tensor in parts.items()})
    return replace(module, algorithm=found.algorithm.id, parts=parts)


def _fold_scale(name: str, module: LoraModule) -> _Made:
    """LoKr with two whole factors has no rank, and every program takes its scale for 1: it goes into a factor."""
    import numpy as np

    scale = module.numbers.get("scale", 1.0)
    if scale == 1.0:
        return _Made(module)
    stored = module.parts["lokr_w1"]
    exact = stored.to_numpy().astype(np.float64) * scale
    same = exact.astype(stored.to_numpy().dtype)
    folded = same if np.array_equal(same.astype(np.float64), exact) else exact.astype(np.float32)
    parts = {**module.parts, "lokr_w1": RawTensor.from_numpy(folded)}
    numbers = {**module.numbers, "scale": 1.0}
    return _Made(replace(module, parts=parts, numbers=numbers, rule="one"), rounded=folded is not same)


def _clear(module: LoraModule) -> LoraModule:
    parts = {
        part: RawTensor(tensor.dtype, tensor.shape, bytes(tensor.size_bytes)) if part in _FACTORS else tensor
        for part, tensor in module.parts.items()
    }
    return replace(module, parts=parts, numbers={**module.numbers, "alpha": float(module.rank)})


# --- approximate ---------------------------------------------------------------------------------------------------


def _approximate(program: str, name: str, module: LoraModule, family: str, lossy: bool) -> _Made:
    title = ALGORITHM_BY_ID[module.algorithm].title
    biases = [part for part in (*_BIASES, "b_norm") if part in module.parts]
    losses = [Loss(name, 1.0, f"{program} reads no bias beside {title}") for _ in biases[:1]]
    if module.algorithm == "norm" or set(module.parts) <= set(biases):
        return _Made(None, (Loss(name, 1.0, f"{program} reads no {title}"),))
    if not lossy:
        return _Made(
            None, (Loss(name, 1.0, f"{program} reads no {title}, low-rank factors come near it"), *losses)
        )
    matrix = _flatten(module)
    nearest = approximate_product(*matrix) if isinstance(matrix, tuple) else approximate(matrix)
    shape = _choose_shape(name, family, module, nearest.down.shape[1])
    rank = nearest.up.shape[1]
    made = LoraModule.of_factors(
        down=RawTensor.from_numpy(nearest.down.reshape(rank, *shape)),
        up=RawTensor.from_numpy(nearest.up.reshape(-1, rank, *(1 for _ in shape[1:]))),
        alpha=float(rank),
    )
    why = f"low-rank factors of rank {rank} in place of {title}"
    return _Made(made, (Loss(name, nearest.relative_error, why), *losses))


def _flatten(module: LoraModule) -> Any:
    """Returns the delta as one matrix, or as two factors where those are known: LoHa of rank r is one of rank r**2."""
    import numpy as np

    if module.algorithm == "loha" and "hada_t1" not in module.parts:
        first, second, third, fourth = (
            module.parts[part].to_numpy().astype(np.float64)
            for part in ("hada_w1_a", "hada_w2_a", "hada_w1_b", "hada_w2_b")
        )
        # Row by row the Kronecker product: (AB) * (CD) = (A row-kron C) (B column-kron D).
        up = np.einsum("or,os->ors", first, second).reshape(first.shape[0], -1)
        down = np.einsum("rn,sn->rsn", third, fourth).reshape(-1, third.shape[1])
        if up.shape[1] < min(up.shape[0], down.shape[1]):
            return module.scale * up, down
    shape = _find_shape(module)
    delta = dense_delta(module, shape)
    if delta is None:
        raise IncompatibleError(f"{module.algorithm} has no delta of a weight")
    return delta.reshape(shape[0], -1)


def _find_shape(module: LoraModule) -> tuple[int, ...]:
    """Returns a shape that the tensors fit: outputs by inputs, the kernel flattened where they do not tell it."""
    if "diff" in module.parts:
        return module.parts["diff"].shape
    match = module.match()
    outputs = match.sizes.product(match.form.outputs) or 0
    inputs = match.sizes.product(match.form.inputs) or 0
    return (outputs, inputs, *(match.sizes.kernel or ()))


def _choose_shape(name: str, family: str, module: LoraModule, inputs: int) -> tuple[int, ...]:
    """Returns the shape of one row of the reading factor: a kernel for a convolution, told by the module's name."""
    known = _find_shape(module)[2:]
    if known:
        return (inputs // math.prod(known), *known)
    if name.startswith("unet.") and _WIDE.search(name) and inputs % 9 == 0:
        return (inputs // 9, 3, 3)
    if name.startswith("unet.") and _POINTWISE.search(name):
        return (inputs,) if family in _LINEAR_PROJECTIONS and "shortcut" not in name else (inputs, 1, 1)
    return (inputs,)
