"""The canonical form of kind ``lora`` (arXiv 2106.09685): factors and alpha of each module, the scale explicit.

``{component}.{module}.lora_A.weight`` [rank, in(, h, w)], ``.lora_B.weight`` [out, rank(, 1, 1)] and ``.alpha`` [];
the module's delta is alpha / rank times B A. Module names are those of published diffusers folders, so those of every
text encoder begin with ``text_model.``
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.errors import InvalidFileError
from conceptry.formats.checks import (
    MAX_RANK,
    add_schema,
    check_numbers,
    read_canonical_header,
    split_component,
)
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors

LORA_NAME: Final = "lora.safetensors"
DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"
ALPHA: Final = ".alpha"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """The factors of one module: ``down`` [rank, in(, h, w)], ``up`` [out, rank(, 1, 1)].

    ``alpha`` is rounded to float32, as the file holds it, so that the scale in memory is the scale that is stored.
    """

    down: RawTensor
    up: RawTensor
    alpha: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _round_to_float32(self.alpha))

    @property
    def rank(self) -> int:
        """The inner dimension of the factors."""
        return self.down.shape[0] if self.down.shape else 0

    @property
    def scale(self) -> float:
        """The effective scale, alpha / rank."""
        return self.alpha / self.rank


def _round_to_float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraContents:
    """Low-rank deltas by ``{component}.{module path}``."""

    modules: Mapping[str, LoraModule]


def check_module(name: str, module: LoraModule) -> None:
    """Raises InvalidFileError where the halves do not fit, a value is not finite, or the rank is impossible."""
    check_numbers(f"{name}{DOWN}", module.down)
    check_numbers(f"{name}{UP}", module.up)
    down, up = module.down.shape, module.up.shape
    linear = len(down) == 2 and len(up) == 2
    convolution = len(down) == 4 and len(up) == 4 and up[2:] == (1, 1)
    if not (linear or convolution):
        raise InvalidFileError(
            f"factors {list(down)} and {list(up)} are of no linear layer or convolution", where=name
        )
    if up[1] != down[0]:
        raise InvalidFileError(f"the ranks of the factors {list(down)} and {list(up)} differ", where=name)
    if down[0] > MAX_RANK:
        raise InvalidFileError(f"rank {down[0]} is greater than {MAX_RANK}", where=name)
    if not math.isfinite(module.alpha):
        raise InvalidFileError(f"alpha is {module.alpha}", where=f"{name}{ALPHA}")


def check_lora(contents: LoraContents) -> None:
    """Raises InvalidFileError as ``check_module``, or where there is no module at all."""
    if not contents.modules:
        raise InvalidFileError("there is no module with low-rank factors")
    for name, module in contents.modules.items():
        split_component(name, ".")
        check_module(name, module)


def write_lora(path: Path, contents: LoraContents, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the canonical file. Raises InvalidFileError, StoreError; nothing is left behind."""
    import numpy as np

    check_lora(contents)
    tensors = {}
    for name, module in contents.modules.items():
        tensors[name + DOWN] = module.down
        tensors[name + UP] = module.up
        tensors[name + ALPHA] = RawTensor.from_numpy(np.array(module.alpha, np.float32))
    write_tensors(path, tensors, add_schema("lora", metadata))


def read_lora(path: Path) -> LoraContents:
    """Returns what a canonical file holds, checked. Raises NotFoundError, InvalidFileError."""
    read_canonical_header(path, "lora")
    tensors = read_tensors(path)
    modules = {}
    for name in sorted(name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN)):
        module = LoraModule(
            down=tensors.pop(name + DOWN),
            up=_take(tensors, name + UP),
            alpha=_parse_alpha(name, _take(tensors, name + ALPHA)),
        )
        modules[name] = module
    if tensors:
        raise InvalidFileError("it belongs to no module with low-rank factors", where=next(iter(tensors)))
    contents = LoraContents(modules=modules)
    check_lora(contents)
    return contents


def _take(tensors: dict[str, RawTensor], name: str) -> RawTensor:
    if name not in tensors:
        raise InvalidFileError("this tensor is missing; its other half is there", where=name)
    return tensors.pop(name)


def _parse_alpha(name: str, tensor: RawTensor) -> float:
    if tensor.dtype != "F32" or tensor.shape != ():
        raise InvalidFileError(
            f"it is {tensor.dtype} {list(tensor.shape)}, not one F32 number", where=f"{name}{ALPHA}"
        )
    return float(tensor.to_numpy())
