"""One module of an adapter as a value: the tensors of one algorithm, byte for byte, and the scale it is meant to have.

What files say about scales in five ways (alpha, nothing, a config beside it, ...) becomes one number here, with the
rule that gave it, so that the meaning no longer depends on the program that reads it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from conceptry.errors import InvalidFileError
from conceptry.formats.algorithms import ALGORITHM_BY_ID, Match, ScaleMeaning, list_parts, match_algorithm
from conceptry.formats.checks import MAX_RANK, check_numbers
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import AlgorithmId, ScaleRule

_SUFFIXES: Final[Mapping[str, str]] = {
    "down": ".lora_A.weight",
    "up": ".lora_B.weight",
    "core": ".lora_mid.weight",
    "bias": ".lora_B.bias",
}
NUMBERS: Final = ("alpha", "scale", "constraint", "on_input", "neumann_terms")
_SCALE_NUMBER: Final[Mapping[ScaleMeaning, str]] = {
    "ranked": "alpha",
    "stored": "scale",
    "constraint": "constraint",
}
MAX_NEUMANN_TERMS: Final = 64
USUAL_RULES: Final[Mapping[ScaleMeaning, ScaleRule]] = {
    "ranked": "alpha/rank",
    "stored": "one",
    "none": "none",
    "constraint": "constraint",
}
_RULES: Final[Mapping[ScaleMeaning, frozenset[ScaleRule]]] = {
    "ranked": frozenset({"alpha/rank", "alpha/sqrt(rank)", "one"}),
    "stored": frozenset({"alpha/rank", "alpha/sqrt(rank)", "one"}),
    "none": frozenset({"none"}),
    "constraint": frozenset({"constraint"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """What one module of an adapter holds. ``of_factors`` and ``read_module`` make it.

    Numbers are rounded to float32, as the file holds them, so that the scale in memory is the scale that is stored.
    """

    algorithm: AlgorithmId
    parts: Mapping[str, RawTensor]
    """Part of the algorithm's row -> tensor."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    rule: ScaleRule = "alpha/rank"

    def __post_init__(self) -> None:
        rounded = {name: _round_to_float32(value) for name, value in self.numbers.items()}
        object.__setattr__(self, "numbers", rounded)

    @classmethod
    def of_factors(
        cls, *, down: RawTensor, up: RawTensor, alpha: float, rule: ScaleRule = "alpha/rank"
    ) -> LoraModule:
        """Returns plain factors ``down`` [rank, in(, h, w)] and ``up`` [out, rank(, 1, 1)] as a module."""
        wide = any(size != 1 for size in down.shape[2:])
        return cls(
            algorithm="locon" if wide else "lora",
            parts={"down": down, "up": up},
            numbers={"alpha": alpha},
            rule=rule,
        )

    def match(self) -> Match:
        """Returns its row of the table and its sizes. Raises InvalidFileError if the tensors do not fit."""
        return match_algorithm({part: tensor.shape for part, tensor in self.parts.items()})

    @property
    def rank(self) -> int:
        """The inner dimension of the factors; 0 where the algorithm has none."""
        return self.match().rank

    @property
    def scale(self) -> float:
        """The effective scale: alpha / rank, or the number that is stored, or 1."""
        alpha = self.numbers.get("alpha")
        return self.numbers.get("scale", 1.0) if alpha is None else alpha / self.rank

    @property
    def alpha(self) -> float:
        """The alpha for which alpha / rank is the scale; the scale itself where there is no rank."""
        return self.numbers.get("alpha", self.scale)

    @property
    def down(self) -> RawTensor:
        """The factor that reads the input; only of algorithms that have one."""
        return self.parts["down"]

    @property
    def up(self) -> RawTensor:
        """The factor that writes the output; only of algorithms that have one."""
        return self.parts["up"]


def _round_to_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


# --- out of and into tensors ---------------------------------------------------------------------------------------


def write_module(module: LoraModule) -> dict[str, RawTensor]:
    """Returns the tensors of the canonical form by what stands behind the module's name (``.lora_A.weight``)."""
    import numpy as np

    tensors = {suffix_of(part): tensor for part, tensor in module.parts.items()}
    for name, value in module.numbers.items():
        tensors[f".{name}"] = RawTensor.from_numpy(np.array(value, np.float32))
    return tensors


def suffix_of(part: str) -> str:
    """Returns what the canonical form writes behind a module's name for a part."""
    return _SUFFIXES.get(part, f".{part}")


def split_canonical(name: str) -> tuple[str, str] | None:
    """Returns module and part (or number) of a canonical tensor name; None where it is of neither."""
    for suffix, part in _list_suffixes():
        if name.endswith(suffix) and len(name) > len(suffix):
            return name.removesuffix(suffix), part
    return None


@functools.cache
def _list_suffixes() -> tuple[tuple[str, str], ...]:
    # The longest first, so that `.lora_B.bias` is not taken for another part that ends in the same way.
    parts = sorted((*list_parts(), *NUMBERS), key=lambda part: -len(suffix_of(part)))
    return tuple((suffix_of(part), part) for part in parts)


def read_canonical_module(
    name: str, tensors: Mapping[str, RawTensor], rule: ScaleRule | None = None
) -> LoraModule:
    """Returns the module of which ``tensors`` are the parts and numbers, checked. Raises InvalidFileError."""
    parts = {part: tensor for part, tensor in tensors.items() if part not in NUMBERS}
    try:
        match = match_algorithm({part: tensor.shape for part, tensor in parts.items()})
    except InvalidFileError as error:
        raise _place(error, name) from error
    numbers = {part: _parse_number(name, part, tensors[part]) for part in NUMBERS if part in tensors}
    module = LoraModule(
        algorithm=match.algorithm.id,
        parts=parts,
        numbers=numbers,
        rule=rule or USUAL_RULES[match.form.scale],
    )
    check_module(name, module)
    return module


def _parse_number(name: str, part: str, tensor: RawTensor) -> float:
    if tensor.dtype != "F32" or tensor.shape != ():
        raise InvalidFileError(
            f"it is {tensor.dtype} {list(tensor.shape)}, not one F32 number", where=f"{name}.{part}"
        )
    return float(tensor.to_numpy())


def _place(error: InvalidFileError, name: str) -> InvalidFileError:
    where = f"{name}{suffix_of(str(error.where))}" if error.where else name
    return InvalidFileError(error.message, where=where, hint=error.hint)


# --- rules ---------------------------------------------------------------------------------------------------------


def check_module(name: str, module: LoraModule) -> None:
    """Raises InvalidFileError where tensors do not fit, a value is not finite, or a rank or number is impossible."""
    for part, tensor in module.parts.items():
        check_numbers(f"{name}{suffix_of(part)}", tensor)
    try:
        match = module.match()
    except InvalidFileError as error:
        raise _place(error, name) from error
    if match.algorithm.id != module.algorithm:
        raise InvalidFileError(f"its tensors are {match.algorithm.id}, not {module.algorithm}", where=name)
    if match.rank > MAX_RANK:
        raise InvalidFileError(f"rank {match.rank} is greater than {MAX_RANK}", where=name)
    _check_numbers(name, module, match)
    if module.rule not in _RULES[match.form.scale]:
        raise InvalidFileError(f"no scale of {module.algorithm} comes from {module.rule!r}", where=name)


def list_numbers(match: Match) -> tuple[str, ...]:
    """Returns the names of the numbers that a module of this row and form has, all of them."""
    own = _SCALE_NUMBER.get(match.form.scale)
    return ((own,) if own else ()) + ALGORITHM_BY_ID[match.algorithm.id].numbers


def _check_numbers(name: str, module: LoraModule, match: Match) -> None:
    expected = set(list_numbers(match))
    missing, extra = sorted(expected - module.numbers.keys()), sorted(module.numbers.keys() - expected)
    if missing:
        raise InvalidFileError(
            "this tensor is missing; the module's other tensors are there", where=f"{name}.{missing[0]}"
        )
    if extra:
        raise InvalidFileError(f"{module.algorithm} has no such number", where=f"{name}.{extra[0]}")
    for number, value in module.numbers.items():
        if not math.isfinite(value):
            raise InvalidFileError(f"{number} is {value}", where=f"{name}.{number}")
    if module.numbers.get("on_input", 0.0) not in (0.0, 1.0):
        raise InvalidFileError("it is neither 0 nor 1", where=f"{name}.on_input")
    terms = module.numbers.get("neumann_terms", 0.0)
    if not (terms == int(terms) and 0 <= terms <= MAX_NEUMANN_TERMS):
        raise InvalidFileError(f"{terms:g} is no number of terms", where=f"{name}.neumann_terms")
    if module.numbers.get("constraint", 0.0) < 0:
        raise InvalidFileError("a bound of a rotation is not negative", where=f"{name}.constraint")
