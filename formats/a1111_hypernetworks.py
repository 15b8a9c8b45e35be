"""Hypernetworks as A1111 saves them: by width, a network for keys and one for values, and their settings.

The names are those that ``conversion`` gives what the isolated process read: ``768.0.linear.0.weight``. Numbers count
layers, activations, norms and dropouts alike; a matrix is a layer, a vector the norm behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from conceptry.bases import FAMILIES, FamilyId
from conceptry.errors import InvalidFileError
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.conversion import read_values
from conceptry.formats.families import judge_claims
from conceptry.formats.header import Header
from conceptry.formats.hypernetwork import (
    ACTIVATIONS,
    TARGETS,
    HyperLayer,
    HypernetworkContents,
    Target,
    check_hypernetwork,
    parse_structure,
)
from conceptry.formats.tensors import RawTensor, read_tensors
from conceptry.kinds import ActivationId

_NAME: Final = re.compile(
    r"([1-9]\d{0,4})\.([01])\.linear(?:\.(0|[1-9]\d{0,2})|([12]))\.(weight|bias)", re.ASCII
)
_CONFIDENCE: Final = 0.9
_UNKNOWN_FAMILY: Final = 0.5
_USUAL_STRUCTURE: Final = (1.0, 2.0, 1.0)
# Settings of a fork, with which a network does something else.
_STRANGE: Final = ("skip_connection", "upsample_linear")


class _Place(NamedTuple):
    """Where a tensor belongs: which network, the number of its module, and whether it is the weight."""

    width: int
    target: Target
    number: int
    part: str


def list_hypernetwork_formats() -> tuple[Format, ...]:
    """Returns the one row for hypernetworks of A1111."""
    row = Format(
        id="hypernetwork_a1111",
        kind="hypernetwork",
        title="hypernetwork, A1111",
        detect=detect_hypernetwork,
        read=read_a1111_hypernetwork,
        stored_kind="hypernetwork",
    )
    return (row,)


def detect_hypernetwork(header: Header) -> Detection | None:
    """Returns what a file with names such as ``768.0.linear.0.weight`` is, or None where it has none."""
    places = dict(_find_places(header))
    if not places:
        return None
    widths = {place.width for place in places.values()}
    family, reason = _find_family(widths)
    claimed = judge_claims(header.metadata, family, _CONFIDENCE if family else 0.0)
    roles = {
        tensor: f"{place.part} {place.number} of the network before {place.target} of inputs {place.width} wide"
        for tensor, place in places.items()
    }
    return Detection(
        roles=roles,
        confidence=share_of(roles, len(header.tensors)) * (claimed.confidence or _UNKNOWN_FAMILY),
        family=claimed.family,
        family_is_certain=family is not None,
        reasons=(f"{len(places)} names are of a hypernetwork of A1111", *reason, *claimed.reasons),
    )


def _find_places(header: Header) -> Iterator[tuple[str, _Place]]:
    for name in header.tensors:
        match = _NAME.fullmatch(name)
        if match:
            # Before there were other structures, the two layers were called linear1 and linear2.
            number = int(match.group(3)) if match.group(3) else int(match.group(4)) - 1
            target: Target = "keys" if match.group(2) == "0" else "values"
            yield name, _Place(int(match.group(1)), target, number, match.group(5))


def _find_family(widths: set[int]) -> tuple[FamilyId | None, tuple[str, ...]]:
    """Keys of cross-attention are as wide as the text encodings; 1280 is a width of self-attention, too."""
    found = [row for row in FAMILIES if row.context_width in widths and row.id != "sdxl_refiner"]
    if len(found) != 1:
        return None, ()
    return found[0].id, (f"text encodings {found[0].context_width} wide, so {found[0].id}",)


def read_a1111_hypernetwork(request: ReadRequest) -> Reading:
    """Returns the networks with their settings, read as A1111 reads them where a file does not say one.

    Raises:
        InvalidFileError: if a tensor would be lost, a network is not what the settings say, or a setting is not known.
    """
    header = request.header
    places = dict(_find_places(header))
    lost = sorted(header.tensors.keys() - places.keys())
    if lost:
        raise InvalidFileError(
            f"{len(lost)} of {len(header.tensors)} tensors of {request.name!r} would be lost: {lost[0]!r}",
            hint=f"concepts identify {request.name} lists them",
        )
    values = read_values(header.metadata)
    values = values if isinstance(values, dict) else {}
    strange = next((name for name in _STRANGE if values.get(name)), None)
    if strange:
        raise InvalidFileError(f"{request.name!r} is of a fork: its {strange} is no setting of A1111")
    if len(set(places.values())) < len(places):
        raise InvalidFileError(f"{request.name!r} has a layer under two names, linear.0 and linear1")
    tensors = read_tensors(request.path, places)
    contents = HypernetworkContents(
        networks=_sort_layers({place: tensors[tensor] for tensor, place in places.items()}),
        structure=_read_structure(values),
        activation=_read_activation(values),
        activate_output=values.get("activate_output") is not False,
    )
    check_hypernetwork(contents)
    if contents.layer_norm != bool(values.get("is_layer_norm")):
        raise InvalidFileError(f"its layers and its setting is_layer_norm of {request.name!r} do not agree")
    shape = " x ".join(f"{share:g}" for share in contents.structure)
    note = f"networks for widths {', '.join(map(str, contents.widths))}: {shape}, {contents.activation}"
    return Reading(contents=(contents,), notes=(note, *_note_training(values)))


def _read_structure(values: Mapping[str, Any]) -> tuple[float, ...]:
    stated = values.get("layer_structure")
    structure = _USUAL_STRUCTURE if stated is None else parse_structure(stated)
    if structure is None:
        raise InvalidFileError(f"its layer_structure is {str(stated)[:80]}", where="layer_structure")
    return structure


def _read_activation(values: Mapping[str, Any]) -> ActivationId:
    stated = values.get("activation_func")
    found = next((one for one in ACTIVATIONS if one == (stated or "linear")), None)
    if found is None:
        raise InvalidFileError(
            f"its activation is {str(stated)[:80]!r}, and known are {', '.join(ACTIVATIONS)}",
            where="activation_func",
        )
    return found


def _note_training(values: Mapping[str, Any]) -> Iterator[str]:
    """What only training used, so that use has no part of it."""
    dropout = values.get("dropout_structure")
    if values.get("use_dropout") or (isinstance(dropout, list) and any(dropout)):
        yield "it was trained with dropout, which use leaves out"


def _sort_layers(
    tensors: Mapping[_Place, RawTensor],
) -> dict[tuple[int, Target], tuple[HyperLayer, ...]]:
    """Returns the layers in the order of their numbers; a vector is the weight of the norm behind a layer."""
    modules: dict[tuple[int, Target], dict[int, dict[str, RawTensor]]] = {}
    for place, tensor in tensors.items():
        numbered = modules.setdefault((place.width, place.target), {})
        numbered.setdefault(place.number, {})[place.part] = tensor
    return {
        (width, target): tuple(_join_layers(f"{width}.{TARGETS.index(target)}", modules[width, target]))
        for width, target in sorted(modules)
    }


def _join_layers(name: str, modules: Mapping[int, Mapping[str, RawTensor]]) -> Iterator[HyperLayer]:
    layer: HyperLayer | None = None
    for number, parts in sorted(modules.items()):
        where = f"{name}.linear.{number}"
        missing = next((part for part in ("weight", "bias") if part not in parts), None)
        if missing:
            raise InvalidFileError(
                "this tensor is missing; its other half is there", where=f"{where}.{missing}"
            )
        weight, bias = parts["weight"], parts["bias"]
        if len(weight.shape) != 1:
            if layer is not None:
                yield layer
            layer = HyperLayer(weight=weight, bias=bias)
        elif layer is None or layer.norm_weight is not None:
            raise InvalidFileError("a norm stands behind no layer", where=where)
        else:
            layer = HyperLayer(weight=layer.weight, bias=layer.bias, norm_weight=weight, norm_bias=bias)
    if layer is not None:
        yield layer
