"""Random modules of every form of every algorithm, for a weight of a given shape."""

from __future__ import annotations

import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from conceptry.formats.algorithms import ALGORITHMS, Algorithm, Form
from conceptry.formats.lora_modules import USUAL_RULES, LoraModule, check_module
from conceptry.formats.tensors import RawTensor

Shape = tuple[int, ...]
DTYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F64": np.float64,
}
FORMS = [
    (f"{row.id} {'+'.join(part for part in form.required)}", row, form)
    for row in ALGORITHMS
    for form in row.forms
]


def make_module(
    row: Algorithm, form: Form, shape: Shape, *, rank: int = 2, dtype: str = "F32", seed: int = 0
) -> LoraModule:
    """Returns a module with random values for a weight of ``shape``, checked.

    Magnitudes are near the norms of a weight with entries of a tenth; optional parts are there.
    """
    generator = np.random.default_rng(seed)
    wide = len(shape) == 4 and any("*k" in pattern for pattern in form.required.values())
    numbers = _numbers(row, form, rank, seed)
    sizes = _solve(row, shape, rank, wide=wide)
    sizes["e"] = sizes["i"] if numbers.get("on_input") else shape[0]
    parts = {}
    for part, pattern in {**form.required, **form.optional}.items():
        own = _shape_of(pattern, sizes, shape, flat=part.startswith(("lokr_w1", "hada_w")))
        values = generator.standard_normal(own) * 0.2
        if part.startswith("magnitude"):
            values = 0.1 * math.sqrt(math.prod(shape) / math.prod(own)) * (1 + values)
        elif part in ("rescale", "ia3_l", "boft_s"):
            values = 1 + values
        parts[part] = RawTensor.from_numpy(values.astype(DTYPES[dtype]))
    module = LoraModule(algorithm=row.id, parts=parts, numbers=numbers, rule=USUAL_RULES[form.scale])
    check_module("unet.conv_in", module)
    return module


def _numbers(row: Algorithm, form: Form, rank: int, seed: int) -> dict[str, float]:
    number = {"ranked": {"alpha": 0.7 * rank}, "stored": {"scale": 0.7}, "constraint": {"constraint": 0.05}}
    found = dict(number.get(form.scale, {}))
    for name in row.numbers:
        two_sided = form.required.get("ia3_l") != "e 1"
        found[name] = {"on_input": float(seed % 2 and two_sided), "neumann_terms": 5.0 * (seed % 2)}[name]
    return found


def _solve(row: Algorithm, shape: Shape, rank: int, *, wide: bool) -> dict[str, int]:
    outputs, inputs = shape[0], shape[1] if len(shape) > 1 else 1
    rest = math.prod(shape[1:])
    if not wide:
        inputs = rest if row.id in ("lokr", "dokr") else inputs
    first, second = _split(outputs), _split(inputs)
    sizes = {"r": rank, "o": outputs, "i": shape[1] if len(shape) > 1 else 1, "n": rest}
    sizes |= {"a": first, "c": outputs // first, "b": second, "d": inputs // second}
    if row.id in ("oft", "boft"):
        sizes |= {"b": 4, "k": outputs // 4, "m": 2}
    if row.id in ("oft_peft", "boft_peft"):
        sizes |= {"b": 4, "k": rest // 4, "m": 2, "t": 6}
    return sizes


def _split(size: int) -> int:
    return next((one for one in (4, 2, 3, 5) if size % one == 0), 1)


def _shape_of(pattern: str, sizes: dict[str, int], shape: Shape, *, flat: bool) -> Shape:
    tails = {
        "*k": () if flat else shape[2:],
        "*1": tuple(1 for _ in shape[2:]),
        "*u": tuple(1 for _ in shape[2:]),
        "*w": shape[1:],
    }
    found: list[int] = []
    for letter in pattern.split():
        if letter in tails:
            found += tails[letter]
        else:
            found.append(int(letter) if letter.isdigit() else sizes[letter])
    return tuple(found)


def fits_layer(row: Algorithm, form: Form, shape: Shape) -> bool:
    """Returns whether a form is one that programs write for a weight of ``shape``."""
    core = {"core", "hada_t1", "lokr_t2", "bm"} & form.required.keys()
    if len(shape) == 1:
        return row.id in ("norm", "full", "value")
    if row.id == "norm" or (core and len(shape) == 2):
        return False
    if row.id == "lora":
        return math.prod(shape[2:]) == 1
    if row.id == "locon":
        return math.prod(shape[2:]) > 1
    four = form.required.get("ia3_weight", form.required.get("ia3_l", "")).startswith("1")
    return row.id not in ("ia3", "ia3_peft") or four == (len(shape) == 4)


def iter_modules(shape: Shape) -> Iterator[tuple[str, LoraModule]]:
    """Yields a module of every form that fits a weight of ``shape``, by a name for it."""
    for seed, (name, row, form) in enumerate(FORMS):
        if fits_layer(row, form, shape):
            for side in range(1 + bool(row.numbers)):
                yield f"{name} {side}", make_module(row, form, shape, seed=2 * seed + side)
