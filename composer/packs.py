"""Files of plain low-rank factors in one piece of memory, read and checked once, kept for the next time.

Almost every adapter is factors and alphas and nothing else. Such a file is looked through once for values that are not
finite. One that nobody may write, as all blobs of a store are, stays where it lies and is mapped; another is copied
into aligned memory. One that holds anything else is left to ``read_lora``.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from conceptry.composer.lora import LoraFactors
from conceptry.composer.mapped import MappedFile, map_file
from conceptry.errors import InvalidFileError
from conceptry.formats.checks import MAX_RANK, read_canonical_header, split_component
from conceptry.formats.header import Header, TensorInfo, open_binary
from conceptry.formats.lora import RULES_KEY

KEPT_BYTES: Final = 1 << 30
"""Packs beyond this are let go, the longest unused first."""

_ALIGNMENT: Final = 64
_BLOCK: Final = 4096
_DOWN, _UP, _ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
_ALPHA_BYTES: Final = 4
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a factor lies in its pack, in elements, and its shape."""

    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PlainModule:
    """Where the factors of one module lie, and their scale."""

    name: str
    down: Place
    up: Place
    scale: float


@dataclass(slots=True, eq=False)
class Pack:
    """All factors of a file in one dtype, one piece of memory on each device where they are used."""

    data: Tensor
    modules: tuple[PlainModule, ...]
    file: MappedFile | None = None
    """What ``data`` is mapped from; None where it is a copy."""

    _moved: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    def view(self, place: Place, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns one factor on a device and in a precision; the whole pack goes there at once, the first time."""
        flat = self.data
        if (device, dtype) != (flat.device, flat.dtype):
            found = self._moved.get((device, dtype))
            if found is None:
                found = self._moved[device, dtype] = flat.to(device=device, dtype=dtype)
            flat = found
        return flat[place.first : place.first + math.prod(place.shape)].view(place.shape)


def cut_factors(pack: Pack, module: PlainModule, layer: nn.Linear | nn.Conv2d) -> LoraFactors | None:
    """Returns a module's factors in the place, precision and shape of ``layer``; None where they do not fit it."""
    weight = layer.weight
    shape, rank = tuple(weight.shape), module.down.shape[0]
    fits = module.up.shape[0] == shape[0] and math.prod(module.down.shape[1:]) == math.prod(shape[1:])
    if not fits or (module.down.shape[2:] not in ((), (1, 1)) and module.down.shape[2:] != shape[2:]):
        return None
    # What is offloaded has no place of its own; the factors go where the layer's output is.
    device = torch.device("cpu") if weight.is_meta else weight.device
    down, up = (pack.view(place, device, weight.dtype) for place in (module.down, module.up))
    if len(shape) != len(module.down.shape):
        down, up = down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *(1 for _ in shape[2:]))
    return LoraFactors(down, up, module.scale)


_PACKS: Final[OrderedDict[tuple[object, ...], Pack | None]] = OrderedDict()


def load_pack(path: Path) -> Pack | None:
    """Returns the factors of a canonical file, from memory where it was read before; None where it holds more.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if the file is malformed.
    """
    with open_binary(path):
        found = path.stat()
    key = (path, found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in _PACKS:
        _PACKS[key] = _read_pack(path)
    _PACKS.move_to_end(key)
    while len(_PACKS) > 1 and sum(_count_bytes(pack) for pack in _PACKS.values()) > KEPT_BYTES:
        _PACKS.popitem(last=False)
    return _PACKS[key]


def forget_packs() -> None:
    """Lets all packs go; what is attached keeps its own."""
    _PACKS.clear()


def _count_bytes(pack: Pack | None) -> int:
    if pack is None:
        return 0
    return sum(one.numel() * one.element_size() for one in (pack.data, *pack._moved.values()))


def _read_pack(path: Path) -> Pack | None:
    header = read_canonical_header(path, "lora")
    dtypes = {info.dtype for name, info in header.tensors.items() if not name.endswith(_ALPHA)}
    dtype = _DTYPES.get(dtypes.pop()) if len(dtypes) == 1 else None
    if dtype is None or RULES_KEY in header.metadata:
        return None
    groups = _group(header)
    if groups is None:
        return None
    file = map_file(path) if groups and _lies_evenly(groups, header, dtype) else None
    if file is None:
        modules, flat = _read_modules(path, groups, header, dtype)
    else:
        modules, flat = _find_modules(file, groups, header, dtype)
    sound = all(math.isfinite(module.scale) for module in modules) and _is_finite(flat)
    if file is not None:
        file.check()
    return Pack(flat, modules, file) if sound else None  # the thorough way names the tensor


def _lies_evenly(names: list[str], header: Header, dtype: torch.dtype) -> bool:
    """Returns whether all factors of a file can be seen as elements of one tensor."""
    factors = _list_factors(names, header)
    spread = max(one.end for one in factors) - min(one.start for one in factors)
    gapless = sum(one.end - one.start for one in factors) == spread
    aligned = all((header.data_start + one.start) % dtype.itemsize == 0 for one in factors)
    return aligned and (gapless or dtype == torch.float32)  # alphas are single numbers of that size


def _list_factors(names: list[str], header: Header) -> list[TensorInfo]:
    return [header.tensors[name + suffix] for name in names for suffix in (_DOWN, _UP)]


def _find_modules(
    file: MappedFile, names: list[str], header: Header, dtype: torch.dtype
) -> tuple[tuple[PlainModule, ...], Tensor]:
    """Returns the modules and all factors of a mapped file, with what lies between them."""
    tensors, start = header.tensors, header.data_start
    if len(file.data) != header.size_bytes:
        raise InvalidFileError(f"{file.path.name!r} changed while it was read")
    factors = _list_factors(names, header)
    begin, end = min(one.start for one in factors), max(one.end for one in factors)
    flat = file.data[start + begin : start + end].view(dtype)

    def place(name: str) -> Place:
        return Place((tensors[name].start - begin) // dtype.itemsize, tensors[name].shape)

    modules = []
    for name in names:
        first = start + tensors[name + _ALPHA].start
        (alpha,) = struct.unpack("<f", bytes(file.data[first : first + _ALPHA_BYTES].tolist()))
        down, up = place(name + _DOWN), place(name + _UP)
        modules.append(PlainModule(name, down, up, alpha / down.shape[0]))
    return tuple(modules), flat


def _read_modules(
    path: Path, names: list[str], header: Header, dtype: torch.dtype
) -> tuple[tuple[PlainModule, ...], Tensor]:
    """Returns the modules and their factors, each at an address as torch's own memory would have it.

    Kernels round differently on other addresses, and what was trained is compared with what was saved.
    """
    places, size = _lay_out(names, header, _ALIGNMENT // dtype.itemsize)
    flat = torch.empty(size, dtype=dtype)
    raw = flat.view(torch.uint8).numpy()
    alphas: dict[str, float] = {}
    end = 0
    with open_binary(path) as file:
        file.seek(header.data_start)
        for name, info in header.tensors.items():  # in the order of the file
            place = places.get(name)
            if place is None:
                alphas[name] = struct.unpack("<f", file.read(_ALPHA_BYTES).ljust(_ALPHA_BYTES, b"\0"))[0]
                continue
            first = place.first * dtype.itemsize
            last = first + info.end - info.start
            if file.readinto(raw.data[first:last]) != last - first:  # type: ignore[attr-defined]
                raise InvalidFileError(f"{path.name!r} became shorter while it was read")
    for place in places.values():
        end = place.first + math.prod(place.shape)
        flat[end : end + -end % (_ALIGNMENT // dtype.itemsize)] = 0
    flat[end:] = 0
    modules = []
    for name in names:
        down, up = places[name + _DOWN], places[name + _UP]
        modules.append(PlainModule(name, down, up, alphas[name + _ALPHA] / down.shape[0]))
    return tuple(modules), flat


def _lay_out(names: list[str], header: Header, unit: int) -> tuple[dict[str, Place], int]:
    """Returns where each factor goes, at multiples of ``unit`` elements, and how many elements that takes."""
    places: dict[str, Place] = {}
    first = 0
    for name in names:
        for suffix in (_DOWN, _UP):
            shape = header.tensors[name + suffix].shape
            places[name + suffix] = Place(first, shape)
            first += -(-math.prod(shape) // unit) * unit
    return places, -(-first // _BLOCK) * _BLOCK


def _group(header: Header) -> list[str] | None:
    """Returns the names of modules with two factors and an alpha; None where there is anything else."""
    tensors, names = header.tensors, []
    for name, info in tensors.items():
        if name.endswith((_UP, _ALPHA)):
            continue
        module = name.removesuffix(_DOWN)
        up, alpha = tensors.get(module + _UP), tensors.get(module + _ALPHA)
        if module == name or up is None or alpha is None:
            return None
        rank = info.shape[0] if info.shape else 0
        shaped = (
            len(up.shape) == len(info.shape) in (2, 4)
            and up.shape[1] == rank
            and not any(size != 1 for size in up.shape[2:])
        )
        if not shaped or not 0 < rank <= MAX_RANK or alpha.dtype != "F32" or alpha.shape != ():
            return None
        split_component(module, ".")
        names.append(module)
    return sorted(names) if 3 * len(names) == len(tensors) else None


def _is_finite(flat: Tensor) -> bool:
    # Nought times any number is nought, and times NaN or infinity it is NaN: one pass at the memory's speed.
    whole = len(flat) // _BLOCK * _BLOCK
    zeros = torch.zeros(_BLOCK, dtype=flat.dtype)
    products = torch.mv(flat[:whole].view(-1, _BLOCK), zeros)
    return not bool(torch.isnan(products).any()) and bool(torch.isfinite(flat[whole:]).all())
