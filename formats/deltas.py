"""What a module of an adapter adds to its base's weight, as one dense array: the arithmetic of every algorithm.

Tensors are widened to ``dtype`` first and everything is computed in it. Factors are used as they were published:

lora, locon   s up down; with a core, sum_mn core[m, n] up[:, m] down[n, :] (arXiv 2106.09685, eq. 3; 2309.14859)
loha          s (w1_a w1_b) * (w2_a w2_b), element by element (FedPara, arXiv 2108.06098, proposition 1)
lokr          s w1 (x) w2, the Kronecker product (arXiv 2309.14859, section 4)
dora ...      m (W + D) / |W + D| - W, the norm for each output or each input (arXiv 2402.09353, eq. 5)
value         V - W for a new value V (as ComfyUI's set_weight and the norms of Flux's control adapters mean it)
glora         s (W a1 a2 + b1 b2) (arXiv 2306.07967, as LyCORIS stores it)
ia3           W * w along one axis; what PEFT stores is 1 + w (arXiv 2205.05638)
oft           (R^T - 1) W by blocks of outputs, R = (1 + Q)(1 - Q)^-1, Q = B - B^T (arXiv 2306.07280)
boft          the same in butterfly stages (arXiv 2311.06243); ``oft_peft`` and ``boft_peft`` turn the inputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import Match
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.rotations import (
    rotate_butterfly,
    rotate_inputs,
    rotate_inputs_butterfly,
    rotate_outputs,
)
from conceptry.formats.shape_patterns import Shape
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import AlgorithmId

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """A module's tensors and numbers as the formulas want them, and the weight that they are for."""

    parts: Mapping[str, Array]
    numbers: Mapping[str, float]
    scale: float
    shape: Shape
    base: Array | None

    @property
    def weight(self) -> Array:
        """The base's weight, [out, everything else]."""
        if self.base is None:
            raise IncompatibleError("the delta depends on the base's weight, which is not given")
        return self.base.reshape(self.shape[0], -1)


def dense_delta(
    module: LoraModule, shape: Shape, base_weight: Array | None = None, dtype: DTypeLike = "float64"
) -> Array | None:
    """Returns what is added to a weight of ``shape`` at strength 1; None where the module has no part for the weight.

    Args:
        module: sound, as ``check_module`` leaves it.
        shape: of the base's weight.
        base_weight: the base's weight; needed where the algorithm's row says ``needs_base``.
        dtype: in which everything is computed.

    Raises:
        IncompatibleError: if the module does not fit a weight of this shape, or needs the weight and has none.
    """
    import numpy as np

    match = require_fit(module, shape)
    compute = _DELTAS[module.algorithm]
    base = None if base_weight is None else np.asarray(base_weight).astype(dtype)
    operands = Operands(
        parts={part: tensor.to_numpy().astype(dtype) for part, tensor in module.parts.items()},
        numbers=module.numbers,
        scale=module.scale,
        shape=shape,
        base=base,
    )
    delta = compute(operands)
    if delta is None:
        return None
    if match.algorithm.id in _DECOMPOSED:
        delta = _decompose(operands, delta.reshape(shape))
    return delta.reshape(shape)


def dense_bias_delta(
    module: LoraModule, base_bias: Array | None = None, dtype: DTypeLike = "float64"
) -> Array | None:
    """Returns what is added to the layer's bias at strength 1; None where nothing is."""
    import numpy as np

    total: Array | None = None
    for part in ("diff_b", "bias", "b_norm"):
        if part in module.parts:
            scale = module.scale if part == "bias" else 1.0
            value = scale * module.parts[part].to_numpy().astype(dtype)
            total = value if total is None else total + value
    if module.algorithm == "ia3_peft" and not module.numbers["on_input"] and base_bias is not None:
        factor = module.parts["ia3_l"].to_numpy().astype(dtype).reshape(-1)
        total = (factor - 1) * np.asarray(base_bias).astype(dtype)
    return total


def fold_core(module: LoraModule) -> RawTensor:
    """Returns what ``down`` is once the core of a LoCon is multiplied into it: [rank, in, h, w], float32."""
    import numpy as np

    core, down = (module.parts[part].to_numpy().astype("float32") for part in ("core", "down"))
    folded = np.moveaxis(np.tensordot(core, _flat(down), axes=(1, 0)), -1, 1)
    return RawTensor.from_numpy(folded)


def require_fit(module: LoraModule, shape: Shape) -> Match:
    """Returns the module's row and sizes. Raises IncompatibleError if it is for no weight of ``shape``."""
    match = module.match()
    sizes, form = match.sizes, match.form
    outputs, inputs = sizes.product(form.outputs), sizes.product(form.inputs)
    rest, kernel = math.prod(shape[1:]), sizes.kernel or ()
    fits = outputs in (None, shape[0])
    if inputs is not None:
        fits = fits and inputs * math.prod(kernel) == rest
        fits = fits and (math.prod(kernel) == 1 or kernel == shape[2:])
    width = sizes.values.get("i") if "magnitude_in" in module.parts else None
    fits = fits and width in (None, shape[1] if len(shape) > 1 else None)
    if not (fits and _fits_by_rule(module, match, shape)):
        made_for = " x ".join(str(size) for size in (outputs, inputs, *kernel) if size is not None)
        raise IncompatibleError(
            f"the {match.algorithm.title} is for {made_for or 'another'} weight, the base's is {list(shape)}",
            hint="concepts show tells which base the concept was made for",
        )
    return match


def _fits_by_rule(module: LoraModule, match: Match, shape: Shape) -> bool:
    """What patterns cannot say: which axis, and which multiple."""
    sizes, rest = match.sizes.values, math.prod(shape[1:])
    whole = module.parts.get("diff", module.parts.get("value"))
    if whole is not None:
        own = whole.shape
        return own[0] == shape[0] and math.prod(own) == math.prod(shape)
    if module.algorithm == "norm":
        return len(shape) == 1
    if module.algorithm in ("ia3", "ia3_peft"):
        axis = 1 if module.numbers["on_input"] else 0
        return len(shape) > axis and sizes["e"] == shape[axis]
    if module.algorithm == "oft_peft":
        block = find_block(sizes["t"])
        return block > 0 and (rest == sizes["k"] * block or (sizes["k"] == 1 and rest % block == 0))
    if module.algorithm == "boft_peft":
        return sizes["k"] * sizes["b"] == rest
    return len(shape) > 1 or module.algorithm == "full"


def find_block(entries: int) -> int:
    """Returns the size of the skew-symmetric block whose upper triangle has ``entries`` values; 0 if none has."""
    block = (1 + math.isqrt(1 + 8 * entries)) // 2
    return block if block * (block - 1) // 2 == entries else 0


# --- additive ------------------------------------------------------------------------------------------------------


def _flat(array: Array) -> Array:
    return array.reshape(array.shape[0], -1)


def _rebuild(core: Array, left: Array, right: Array) -> Array:
    """Returns [out, in, ...] of a core [m, n, ...] with left [out, m] and right [n, in]."""
    import numpy as np

    outer = np.tensordot(left, core, axes=(1, 0))
    return np.moveaxis(np.tensordot(outer, right, axes=(1, 0)), -1, 1)


def _multiply(one: Operands) -> Array:
    parts = one.parts
    if "core" in parts:
        return one.scale * _rebuild(parts["core"], _flat(parts["up"]), _flat(parts["down"]))
    return one.scale * (_flat(parts["up"]) @ _flat(parts["down"]))


def _multiply_hadamard(one: Operands) -> Array:
    parts = one.parts

    def half(number: int) -> Array:
        first, second = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}")
        return first @ second if core is None else _flat(_rebuild(core, first.T, second))

    return one.scale * (half(1) * half(2))


def _multiply_kronecker(one: Operands) -> Array:
    import numpy as np

    parts = one.parts
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        second = _rebuild(parts["lokr_t2"], parts["lokr_w2_a"].T, parts["lokr_w2_b"])
    else:
        second = parts["lokr_w2_a"] @ _flat(parts["lokr_w2_b"])
    return one.scale * np.kron(first, _flat(second))


def _take_difference(one: Operands) -> Array | None:
    return next((one.parts[part] for part in ("diff", "w_norm") if part in one.parts), None)


# --- of the base's weight ------------------------------------------------------------------------------------------


def _replace(one: Operands) -> Array:
    replaced: Array = one.parts["value"].reshape(one.shape) - one.weight.reshape(one.shape)
    return replaced


def _decompose(one: Operands, delta: Array) -> Array:
    """Returns m V / |V| - W for V = W + delta; a row or column of V that is zero stays zero."""
    import numpy as np

    base = one.weight.reshape(one.shape)
    moved = base + delta
    axis = 0 if "magnitude_out" in one.parts else 1
    others = tuple(place for place in range(moved.ndim) if place != axis)
    norm = np.sqrt((moved * moved).sum(axis=others, keepdims=True))
    magnitude = one.parts["magnitude_out" if axis == 0 else "magnitude_in"].reshape(norm.shape)
    return moved * (magnitude / np.where(norm == 0, 1, norm)) - base


def _adapt_generalised(one: Operands) -> Array:
    parts, shape = one.parts, one.shape
    if "bm" in parts:
        added = _flat(_rebuild(parts["bm"], _flat(parts["b1"]), _flat(parts["b2"])))
    else:
        added = _flat(parts["b1"]) @ _flat(parts["b2"])
    inner = _flat(parts["a1"]) @ _flat(parts["a2"])
    base = one.weight.reshape(shape[0], shape[1], -1)
    turned: Array = (base.transpose(0, 2, 1) @ inner).transpose(0, 2, 1)
    total: Array = one.scale * (turned.reshape(shape[0], -1) + added)
    return total


def _rescale(one: Operands) -> Array:
    stored = one.parts.get("ia3_weight")
    factor = one.parts["ia3_l"] - 1 if stored is None else stored
    if one.numbers["on_input"]:
        by_input: Array = one.weight.reshape(*one.shape[:2], -1) * factor.reshape(1, -1, 1)
        return by_input
    by_output: Array = one.weight * factor.reshape(-1, 1)
    return by_output


def _rotate(one: Operands) -> Array:
    turned = rotate_outputs(one.parts["oft_blocks"], one.weight, one.numbers["constraint"])
    return _stretch(one, turned) - one.weight


def _rotate_butterfly(one: Operands) -> Array:
    turned = rotate_butterfly(one.parts["oft_blocks"], one.weight, one.numbers["constraint"])
    return _stretch(one, turned) - one.weight


def _stretch(one: Operands, turned: Array) -> Array:
    rescale = one.parts.get("rescale")
    return turned if rescale is None else turned * rescale.reshape(-1, 1)


def _rotate_inputs(one: Operands) -> Array:
    block = find_block(one.parts["oft_R"].shape[1])
    return (
        rotate_inputs(one.parts["oft_R"], block, one.weight, int(one.numbers["neumann_terms"])) - one.weight
    )


def _rotate_inputs_butterfly(one: Operands) -> Array:
    turned = rotate_inputs_butterfly(one.parts["boft_R"], one.weight)
    return turned * one.parts["boft_s"].reshape(-1, 1) - one.weight


_DELTAS: Final[Mapping[AlgorithmId, Callable[[Operands], Array | None]]] = {
    "lora": _multiply,
    "locon": _multiply,
    "dora": _multiply,
    "loha": _multiply_hadamard,
    "doha": _multiply_hadamard,
    "lokr": _multiply_kronecker,
    "dokr": _multiply_kronecker,
    "full": _take_difference,
    "norm": _take_difference,
    "value": _replace,
    "ia3": _rescale,
    "ia3_peft": _rescale,
    "glora": _adapt_generalised,
    "oft": _rotate,
    "boft": _rotate_butterfly,
    "oft_peft": _rotate_inputs,
    "boft_peft": _rotate_inputs_butterfly,
}
_DECOMPOSED: Final[frozenset[AlgorithmId]] = frozenset({"dora", "doha", "dokr"})
