"""LiDB files (HyperDreamBooth, arXiv 2307.06949, section 3.2), multiplied out to the low-rank factors that they mean.

A layer has frozen orthonormal factors A [out, a] and B [b, in] and a few numbers of the concept, [rank b + a rank]:
first those of the reading factor D [rank, b], then those of the writing factor U [a, rank]; its delta is (A U)(D B).
Two forms are known, both of the public implementation (MFaceTech/HyperDreamBooth): names beside each layer while one
concept is trained, and positions, where the numbers of several concepts lie in one file. Its hypernetwork is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from conceptry.errors import InvalidFileError
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.data_files import load_table
from conceptry.formats.families import Seen, judge_family
from conceptry.formats.header import Header
from conceptry.formats.lora import LoraContents, LoraModule, check_lora
from conceptry.formats.module_names import find_layout, spell_canonical
from conceptry.formats.positional import Layer, list_unet_layers
from conceptry.formats.tensors import RawTensor, read_tensors
from conceptry.formats.triggers import find_triggers

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

_NAMED: Final = re.compile(
    r"(unet|text_encoder)\.(.+)\.(?:lora|lora_linear_layer)\.(weight_embedding|down_aux|up_aux|aux_seed)",
    re.ASCII,
)
_NUMBERED: Final = re.compile(r"(aux_seed|down_aux|up_aux)_(0|[1-9]\d{0,3})", re.ASCII)
_CONCEPT: Final = re.compile(r"pre_optimized\.weights\.\d{1,4}", re.ASCII)
_NUMBERS: Final = "weight_embedding"
_ROLES: Final[Mapping[str, str]] = {
    _NUMBERS: "numbers of the concept",
    "down_aux": "frozen factor that reads the input",
    "up_aux": "frozen factor that writes the output",
    "aux_seed": "what the frozen factors were drawn by",
}
_UNKNOWN_FAMILY: Final = 0.3


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors of each layer by part, and the role of every tensor; where positions are used, their numbers."""

    layers: Mapping[str, Mapping[str, str]]
    roles: Mapping[str, str]
    positions: Mapping[str, int]
    concepts: int = 1


def list_lidb_formats() -> tuple[Format, ...]:
    """Returns the one row for LiDB files of a concept."""
    row = Format(
        id="lora_lidb",
        kind="lora",
        title="low-rank adapter, LiDB (HyperDreamBooth)",
        detect=detect_lidb,
        read=read_lidb,
        stored_kind="lora",
    )
    return (row,)


def detect_lidb(header: Header) -> Detection | None:
    """Returns what a LiDB file is, or None where nothing in it holds the numbers of a concept."""
    found = _find(header)
    if found is None:
        return None
    seen = [
        Seen(name, header.tensors[parts["down_aux"]].shape[-1])
        for name, parts in found.layers.items()
        if "down_aux" in parts and header.tensors[parts["down_aux"]].shape
    ]
    verdict = judge_family(seen, header.metadata)
    reasons = [f"{len(found.roles)} names are of LiDB; it is kept as the factors that come of them"]
    if found.concepts > 1:
        reasons.append(f"it holds {found.concepts} concepts, by number")
    if not found.layers:
        reasons.append("the positions are of no network that is known; its modules cannot be told")
    return Detection(
        roles=found.roles,
        confidence=share_of(found.roles, len(header.tensors)) * (verdict.confidence or _UNKNOWN_FAMILY),
        family=verdict.family,
        family_is_certain=verdict.certain,
        reasons=(*reasons, *verdict.reasons),
        triggers=find_triggers(header.metadata),
        algorithms=("lora",),
        ranks=dict(sorted(Counter(_iter_ranks(header, found)).items())),
    )


def read_lidb(request: ReadRequest) -> Reading:
    """Returns the factors of each layer, computed in float64 and stored in float32; their scale is 1.

    Raises:
        InvalidFileError: if there are several concepts, a tensor would be lost, or those of a layer do not fit.
    """
    header, found = request.header, _find(request.header)
    lost = sorted(header.tensors.keys() - (found.roles.keys() if found else ()))
    if found is None or lost:
        raise InvalidFileError(
            f"{len(lost)} of {len(header.tensors)} tensors of {request.name!r} would be lost: {lost[0]!r}",
            hint=f"concepts identify {request.name} lists them",
        )
    if found.concepts > 1 or not found.layers:
        raise InvalidFileError(
            f"{request.name!r} holds {found.concepts} concepts, and nothing says which is meant"
            if found.concepts > 1
            else f"the positions in {request.name!r} are of no network that is known",
            hint="it can be exported by the program that wrote it (export_preoptnet_weight.py)",
        )
    tensors = read_tensors(request.path, found.roles)
    modules = {name: _read_layer(name, parts, tensors, found) for name, parts in sorted(found.layers.items())}
    contents = LoraContents(modules=modules)
    check_lora(contents)
    note = (
        f"{len(modules)} layers were multiplied out; the frozen factors and their seeds are in the file alone"
    )
    return Reading(contents=(contents,), notes=(note,))


def _read_layer(
    name: str, parts: Mapping[str, str], tensors: Mapping[str, RawTensor], found: _Found
) -> LoraModule:
    missing = next((part for part in (_NUMBERS, "down_aux", "up_aux") if part not in parts), None)
    if missing:
        raise InvalidFileError(f"its {missing} is missing; others of its tensors are there", where=name)
    stored, down_aux, up_aux = (tensors[parts[part]] for part in (_NUMBERS, "down_aux", "up_aux"))
    numbers = stored.to_numpy()
    if name in found.positions:
        numbers = numbers.reshape(numbers.shape[-2], -1)[found.positions[name]]
    try:
        down, up = expand_lidb(numbers, down_aux.to_numpy(), up_aux.to_numpy())
    except InvalidFileError as error:
        raise InvalidFileError(error.message, where=parts[_NUMBERS]) from error
    return LoraModule.of_factors(
        down=RawTensor.from_numpy(down), up=RawTensor.from_numpy(up), alpha=float(down.shape[0]), rule="one"
    )


def expand_lidb(numbers: Array, down_aux: Array, up_aux: Array) -> tuple[Array, Array]:
    """Returns D B [rank, in] and A U [out, rank] in float32, computed in float64.

    Raises:
        InvalidFileError: if the numbers are not those of a whole rank.
    """
    import numpy as np

    flat = numbers.reshape(-1).astype(np.float64)
    rank = _find_rank(flat.size, down_aux.shape, up_aux.shape)
    if not rank:
        raise InvalidFileError(
            f"{flat.size} numbers do not fit frozen factors of {list(down_aux.shape)} and {list(up_aux.shape)}"
        )
    inner = rank * down_aux.shape[0]
    down = flat[:inner].reshape(rank, -1) @ down_aux.astype(np.float64)
    up = up_aux.astype(np.float64) @ flat[inner:].reshape(-1, rank)
    return down.astype(np.float32), up.astype(np.float32)


def _find_rank(numbers: int, down_aux: tuple[int, ...], up_aux: tuple[int, ...]) -> int:
    """Returns the rank of a layer; 0 where its sizes are of none."""
    if len(down_aux) != 2 or len(up_aux) != 2:
        return 0
    rank, left = divmod(numbers, down_aux[0] + up_aux[1]) if down_aux[0] + up_aux[1] else (0, 0)
    return 0 if left else rank


# --- which layer? --------------------------------------------------------------------------------------------------


def _find(header: Header) -> _Found | None:
    return _find_named(header) or _find_numbered(header)


def _find_named(header: Header) -> _Found | None:
    layers: dict[str, dict[str, str]] = {}
    roles = {}
    for tensor in header.tensors:
        match = _NAMED.fullmatch(tensor)
        layout = find_layout(match.group(2)) if match else None
        if match is None or layout is None or (layout.component == "unet") != (match.group(1) == "unet"):
            continue
        path = spell_canonical(match.group(2), layout, None)
        if path is None:
            continue
        name = f"{match.group(1)}.{path}"
        layers.setdefault(name, {}).setdefault(match.group(3), tensor)
        roles[tensor] = f"{_ROLES[match.group(3)]}, for {name}"
    return _Found(layers, roles, {}) if any(_NUMBERS in parts for parts in layers.values()) else None


def _find_numbered(header: Header) -> _Found | None:
    concepts = [name for name in header.tensors if _CONCEPT.fullmatch(name)]
    if not concepts:
        return None
    numbered: dict[int, dict[str, str]] = {}
    roles = dict.fromkeys(concepts, "numbers of one concept for all layers")
    for tensor in header.tensors:
        match = _NUMBERED.fullmatch(tensor)
        if match:
            numbered.setdefault(int(match.group(2)), {})[match.group(1)] = tensor
            roles[tensor] = f"{_ROLES[match.group(1)]} of layer {match.group(2)}"
    shape = header.tensors[concepts[0]].shape
    order = next((order for order in _list_orders(len(numbered)) if _fits(numbered, order, header)), ())
    if len(shape) != 3 or shape[:2] != (1, len(numbered)):
        order = ()
    layers = {layer.path: {**numbered[number], _NUMBERS: concepts[0]} for number, layer in enumerate(order)}
    positions = {layer.path: number for number, layer in enumerate(order)}
    return _Found(layers, roles, positions, len(concepts))


def _list_orders(count: int) -> Iterator[tuple[Layer, ...]]:
    """Gives the orders that ``count`` layers could have: those of the UNet, then text with or without its MLP."""
    unet = [
        Layer(f"unet.{one.path}", one.outputs, one.inputs) for one in list_unet_layers(("attn1", "attn2"))
    ]
    table = load_table("positional")["lidb"]
    rest = count - len(unet)
    if rest == 0:
        yield tuple(unet)
    for groups in (("attention",), ("attention", "mlp")):
        depth, left = divmod(rest, sum(len(table[group]) for group in groups))
        if rest > 0 and not left:
            stem = "text_encoder.text_model.encoder.layers"
            paths = (
                f"{stem}.{number}.{path}"
                for group in groups
                for number in range(depth)
                for path in table[group]
            )
            yield (*unet, *(Layer(path, None, None) for path in paths))


def _fits(numbered: Mapping[int, Mapping[str, str]], order: tuple[Layer, ...], header: Header) -> bool:
    if numbered.keys() != set(range(len(order))):
        return False
    return all(_fits_layer(numbered[number], layer, header) for number, layer in enumerate(order))


def _fits_layer(parts: Mapping[str, str], layer: Layer, header: Header) -> bool:
    if not {"down_aux", "up_aux"} <= parts.keys():
        return False
    down, up = (header.tensors[parts[part]].shape for part in ("down_aux", "up_aux"))
    if len(down) != 2 or len(up) != 2:
        return False
    # Of text, the layer of the MLP that widens tells both orders apart.
    widens = layer.path.endswith(".fc1")
    narrows = layer.path.endswith(".fc2")
    if layer.outputs is None and layer.inputs is None:
        return (up[0] > down[1]) == widens and (up[0] < down[1]) == narrows
    return layer.outputs in (None, up[0]) and layer.inputs in (None, down[1])


def _iter_ranks(header: Header, found: _Found) -> Iterator[int]:
    for parts in found.layers.values():
        if {_NUMBERS, "down_aux", "up_aux"} <= parts.keys():
            shapes = {part: header.tensors[tensor].shape for part, tensor in parts.items()}
            numbers = shapes[_NUMBERS][-1] if shapes[_NUMBERS] else 0
            yield _find_rank(numbers, shapes["down_aux"], shapes["up_aux"])
