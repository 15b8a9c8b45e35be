"""The tensors of one module, in the parts that programs write, as a module with one meaning.

What is settled here: which axis a magnitude is for, which way round GLoRA's factors are, and the effective scale with
the rule that gave it. What cannot be settled is refused, and the tensor named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conceptry.errors import InvalidFileError
from conceptry.formats.algorithms import Match, match_algorithm
from conceptry.formats.lora_modules import LoraModule, check_module, suffix_of
from conceptry.formats.shape_patterns import Shape
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import ScaleRule

VALUE_PARTS: Final = ("alpha", "on_input")
"""Parts that hold one number."""

_MAGNITUDES: Final = ("dora_scale", "magnitude_vector")
_GLORA_TURNED: Final = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}

Parts = Mapping[str, tuple[str, Shape]]
"""Part of the table -> the part that programs write, and its shape in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is said of a module beside its tensors, by a config or in metadata."""

    alpha: float | None = None
    rank: int | None = None
    rank_stabilised: bool = False
    on_input: bool | None = None
    """IA3: whether inputs are rescaled, not outputs."""

    neumann_terms: int | None = None
    """OFT of PEFT: terms of the series in place of an inverse, 0 for the exact one."""


NOTHING_SAID: Final = Said()


def match_parts(shapes: Mapping[str, Shape]) -> tuple[Match, Parts]:
    """Returns the algorithm of a module as programs write it, and its parts as the table has them.

    Raises:
        InvalidFileError: if the parts are of no algorithm together or do not fit; ``where`` is the part.
    """
    weights = {part: shape for part, shape in shapes.items() if part not in VALUE_PARTS}
    parts = {part: (part, shape) for part, shape in weights.items() if part not in _MAGNITUDES}
    parts |= _turn_glora(parts)
    magnitudes = [part for part in _MAGNITUDES if part in weights]
    if not magnitudes:
        return match_algorithm(_shapes_of(parts)), parts
    plain = match_algorithm(_shapes_of(parts))
    for part in magnitudes:
        name, shape = _settle_magnitude(part, weights[part], plain)
        parts[name] = (part, shape)
    return match_algorithm(_shapes_of(parts)), parts


def _shapes_of(parts: Parts) -> dict[str, Shape]:
    return {part: shape for part, (_, shape) in parts.items()}


def _turn_glora(parts: Parts) -> Parts:
    """Early LyCORIS had the factors of GLoRA the other way round; their shapes tell, the newer order comes first."""
    if not parts.keys() >= _GLORA_TURNED.keys():
        return {}
    try:
        match_algorithm(_shapes_of(parts))
    except InvalidFileError:
        return {part: parts[other] for part, other in _GLORA_TURNED.items()}
    return {}


def _settle_magnitude(part: str, shape: Shape, plain: Match) -> tuple[str, Shape]:
    """Returns the axis and the shape of a DoRA magnitude.

    LyCORIS and OneTrainer write [out, 1, ...] or [1, in, ...], PEFT [out] or for convolutions [1, out, 1, 1].
    """
    outputs, inputs = plain.sizes.product(plain.form.outputs), plain.sizes.product(plain.form.inputs)
    size = math.prod(shape)
    if part == "magnitude_vector":
        return "magnitude_out", shape if len(shape) == 1 else (size, *(1 for _ in shape[1:]))
    if len(shape) > 1:
        return ("magnitude_out" if shape[0] == outputs and size == outputs else "magnitude_in"), shape
    if size == outputs == inputs or size not in (outputs, inputs):
        raise InvalidFileError(f"its shape {list(shape)} does not tell the axis that it is for", where=part)
    return ("magnitude_out", shape) if size == outputs else ("magnitude_in", (1, size))


# --- values --------------------------------------------------------------------------------------------------------


def read_module(
    name: str,
    tensors: Mapping[str, RawTensor],
    said: Said = NOTHING_SAID,
    *,
    names: Mapping[str, str] | None = None,
) -> LoraModule:
    """Returns the module that ``tensors`` are, checked, with its effective scale.

    Args:
        name: ``{component}.{module path}``.
        tensors: by part, as data/suffixes.toml calls them.
        said: beside the tensors.
        names: the tensor's name in its file, by part, for messages.

    Raises:
        InvalidFileError: if parts are missing, do not fit, are not finite, or do not say enough; the tensor is named.
    """
    known = names or {}
    try:
        match, parts = match_parts({part: tensor.shape for part, tensor in tensors.items()})
        values = {part: _parse_value(part, tensors[part]) for part in VALUE_PARTS if part in tensors}
        numbers, rule = settle_scale(match, values, said)
        if match.algorithm.id in ("ia3", "ia3_peft"):
            numbers["on_input"] = _settle_side(match, tensors, values, said)
        if match.algorithm.id == "oft_peft":
            numbers["neumann_terms"] = _settle_terms(said)
    except InvalidFileError as error:
        part = str(error.where or "")
        where = known.get(part, f"{name}{suffix_of(part)}" if part else name)
        raise InvalidFileError(error.message, where=where, hint=error.hint) from error
    module = LoraModule(
        algorithm=match.algorithm.id,
        parts={part: tensors[raw].reshape(shape) for part, (raw, shape) in parts.items()},
        numbers=numbers,
        rule=rule,
    )
    check_module(name, module)
    return module


def _parse_value(part: str, tensor: RawTensor) -> float:
    if tensor.elements != 1:
        raise InvalidFileError(f"{part} has the shape {list(tensor.shape)}, not one number", where=part)
    value = float(tensor.to_numpy().reshape(()))
    if not math.isfinite(value):
        raise InvalidFileError(f"{part} is {value}", where=part)
    return value


def settle_scale(match: Match, values: Mapping[str, float], said: Said) -> tuple[dict[str, float], ScaleRule]:
    """Returns the number that holds a module's scale, and the rule that gave it.

    A tensor comes before what is said beside it. Programs write alpha 0 where nobody said any, and read nothing as 1.

    Raises:
        InvalidFileError: if there is an alpha that means nothing to the algorithm.
    """
    meaning, alpha = match.form.scale, values.get("alpha")
    if meaning == "constraint":
        return {"constraint": max(alpha or 0.0, 0.0)}, "constraint"
    if meaning == "none":
        if alpha not in (None, 0.0, 1.0):
            raise InvalidFileError(f"alpha {alpha:g} means nothing to {match.algorithm.title}", where="alpha")
        return {}, "none"
    scale, rule = _find_scale(match, alpha, said)
    if meaning == "stored":
        return {"scale": scale}, rule
    if rule == "alpha/rank" and alpha:
        return {"alpha": alpha}, rule
    if rule == "alpha/rank" and said.alpha is not None:
        return {"alpha": said.alpha}, rule
    return {"alpha": scale * match.rank}, rule


def _find_scale(match: Match, alpha: float | None, said: Said) -> tuple[float, ScaleRule]:
    rank = match.rank or said.rank
    # Both factors of LoKr whole: its alpha tensor is the rank that it does not have, so its programs take 1.
    if alpha and match.rank:
        return alpha / match.rank, "alpha/rank"
    if said.alpha is not None and rank and not alpha:
        # arXiv 2312.03732: the scale is alpha / sqrt(rank).
        if said.rank_stabilised:
            return said.alpha / math.sqrt(rank), "alpha/sqrt(rank)"
        return said.alpha / rank, "alpha/rank"
    return 1.0, "one"


def _settle_side(
    match: Match, tensors: Mapping[str, RawTensor], values: Mapping[str, float], said: Said
) -> float:
    if match.algorithm.id == "ia3":
        if "on_input" not in values:
            raise InvalidFileError(
                "it does not say whether inputs or outputs are rescaled", where="ia3_weight"
            )
        return values["on_input"]
    shape = tensors["ia3_l"].shape
    if len(shape) == 2:
        return float(shape[0] == 1 and (shape[1] != 1 or bool(said.on_input)))
    if said.on_input is None:
        raise InvalidFileError(
            "it does not say whether inputs or outputs are rescaled",
            where="ia3_l",
            hint="put the adapter_config.json of the adapter beside the file: its feedforward_modules say it",
        )
    return float(said.on_input)


def _settle_terms(said: Said) -> float:
    if said.neumann_terms is None:
        raise InvalidFileError(
            "it does not say how its rotations are computed",
            where="oft_R",
            hint="put the adapter_config.json of the adapter beside the file",
        )
    return float(said.neumann_terms)
