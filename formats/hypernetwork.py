"""The canonical form of kind ``hypernetwork``: small networks before the keys and values of attention.

``{width}.{keys|values}.{layer}.weight`` [out, in] and ``.bias`` [out] for each linear layer, ``.norm.weight`` and
``.norm.bias`` [out] where it has a layer norm; settings are in the metadata. A layer is linear, activation and norm, in
this order; what attention reads, x [..., width], becomes x + s h(x) before its keys, and likewise before its values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from conceptry.documents import load_strict_json
from conceptry.errors import InvalidFileError, InvalidManifestError
from conceptry.formats.checks import MAX_WIDTH, add_schema, check_numbers, read_canonical_header
from conceptry.formats.tensors import RawTensor, Written, read_tensors, write_tensors
from conceptry.kinds import ActivationId

HYPERNETWORK_NAME: Final = "hypernetwork.safetensors"
SETTINGS_KEY: Final = "conceptry.hypernetwork"
ACTIVATIONS: Final[tuple[ActivationId, ...]] = get_args(ActivationId)
TARGETS: Final = ("keys", "values")
MAX_LAYERS: Final = 64
_NAME: Final = re.compile(
    r"([1-9]\d{0,4})\.(keys|values)\.(0|[1-9]\d?)\.(weight|bias|norm\.weight|norm\.bias)", re.ASCII
)

Target = Literal["keys", "values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperLayer:
    """One linear layer, and the layer norm behind it where there is one."""

    weight: RawTensor
    bias: RawTensor
    norm_weight: RawTensor | None = None
    norm_bias: RawTensor | None = None

    def list_parts(self) -> Iterator[tuple[str, RawTensor]]:
        """Gives its tensors by what stands behind the name of the layer."""
        rows = (("weight", self.weight), ("bias", self.bias))
        norm = (("norm.weight", self.norm_weight), ("norm.bias", self.norm_bias))
        yield from rows
        yield from ((part, tensor) for part, tensor in norm if tensor is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetworkContents:
    """A network for the keys and one for the values of each width, all of one structure."""

    networks: Mapping[tuple[int, Target], tuple[HyperLayer, ...]]
    structure: tuple[float, ...]
    """How wide the input and each layer's output are, as shares of the width."""

    activation: ActivationId = "linear"
    activate_output: bool = True
    """The last layer has the activation, too."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of what is read, rising."""
        return tuple(sorted({width for width, _ in self.networks}))

    @property
    def layer_norm(self) -> bool:
        """Whether the layers have norms."""
        return any(layer.norm_weight is not None for layers in self.networks.values() for layer in layers)


def check_hypernetwork(contents: HypernetworkContents) -> None:
    """Raises InvalidFileError where a network is missing, a shape is not the structure's, or a value is not finite."""
    structure = contents.structure
    if not contents.networks:
        raise InvalidFileError("there is no network for any width")
    if not 2 <= len(structure) <= MAX_LAYERS or (structure[0], structure[-1]) != (1, 1):
        raise InvalidFileError(
            f"the structure {list(structure)} does not begin and end with 1", where=SETTINGS_KEY
        )
    if not all(math.isfinite(share) and 0 < share <= MAX_LAYERS for share in structure):
        raise InvalidFileError(f"the structure {list(structure)} is of no network", where=SETTINGS_KEY)
    if contents.activation not in ACTIVATIONS:
        raise InvalidFileError(f"no activation is called {contents.activation!r}", where=SETTINGS_KEY)
    for width in contents.widths:
        for target in TARGETS:
            layers = contents.networks.get((width, target))
            if layers is None:
                raise InvalidFileError(f"there is no network for {target}; the other one of {width} is there")
            _check_network(f"{width}.{target}", layers, measure_layers(width, structure), contents.layer_norm)


def measure_layers(width: int, structure: Sequence[float]) -> tuple[int, ...]:
    """Returns how wide the input and each layer's output are; shares are cut to whole numbers, as A1111 does it."""
    return tuple(int(width * share) for share in structure)


def _check_network(name: str, layers: Sequence[HyperLayer], sizes: Sequence[int], layer_norm: bool) -> None:
    if sizes[0] > MAX_WIDTH or len(layers) != len(sizes) - 1:
        raise InvalidFileError(
            f"it has {len(layers)} layers, the structure says {len(sizes) - 1}", where=name
        )
    for place, layer in enumerate(layers):
        inputs, outputs = sizes[place : place + 2]
        found = dict(layer.list_parts())
        if len(found) != (4 if layer_norm else 2):
            raise InvalidFileError(
                "its layer norm is not whole, or another layer has none", where=f"{name}.{place}"
            )
        for part, tensor in found.items():
            where = f"{name}.{place}.{part}"
            check_numbers(where, tensor)
            expected = (outputs, inputs) if part == "weight" else (outputs,)
            if tensor.shape != expected:
                raise InvalidFileError(
                    f"its shape is {list(tensor.shape)}, the structure says {list(expected)}", where=where
                )


def write_hypernetwork(
    path: Path, contents: HypernetworkContents, metadata: Mapping[str, str] | None = None
) -> Written:
    """Writes the canonical file and returns its digests, or leaves nothing. Raises InvalidFileError, StoreError."""
    check_hypernetwork(contents)
    tensors = {
        f"{width}.{target}.{place}.{part}": tensor
        for (width, target), layers in contents.networks.items()
        for place, layer in enumerate(layers)
        for part, tensor in layer.list_parts()
    }
    settings = {
        "activate_output": contents.activate_output,
        "activation": contents.activation,
        "structure": list(contents.structure),
    }
    merged = add_schema("hypernetwork", metadata)
    merged[SETTINGS_KEY] = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return write_tensors(path, tensors, merged)


def read_hypernetwork(path: Path) -> HypernetworkContents:
    """Returns what a canonical file holds, checked. Raises NotFoundError, InvalidFileError."""
    header = read_canonical_header(path, "hypernetwork")
    groups: dict[tuple[int, Target], dict[int, dict[str, RawTensor]]] = {}
    for name, tensor in read_tensors(path).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidFileError("it belongs to no layer of a hypernetwork", where=name)
        target: Target = "keys" if match.group(2) == "keys" else "values"
        layers = groups.setdefault((int(match.group(1)), target), {})
        layers.setdefault(int(match.group(3)), {})[match.group(4)] = tensor
    settings = _parse_settings(header.metadata.get(SETTINGS_KEY, ""))
    contents = HypernetworkContents(
        networks={key: tuple(_make_layers(key, groups[key])) for key in sorted(groups)}, **settings
    )
    check_hypernetwork(contents)
    return contents


def _make_layers(
    key: tuple[int, Target], groups: Mapping[int, Mapping[str, RawTensor]]
) -> Iterator[HyperLayer]:
    for place, (number, parts) in enumerate(sorted(groups.items())):
        missing = next((part for part in ("weight", "bias") if part not in parts), None)
        if number != place or missing:
            raise InvalidFileError(
                "this tensor is missing; others of its network are there",
                where=f"{key[0]}.{key[1]}.{place}.{missing or 'weight'}",
            )
        yield HyperLayer(
            weight=parts["weight"],
            bias=parts["bias"],
            norm_weight=parts.get("norm.weight"),
            norm_bias=parts.get("norm.bias"),
        )


def _parse_settings(text: str) -> dict[str, Any]:
    try:
        found = load_strict_json(text.encode())
    except InvalidManifestError as error:
        raise InvalidFileError(f"its settings cannot be read: {error.message}", where=SETTINGS_KEY) from error
    if not isinstance(found, dict) or found.keys() != {"activate_output", "activation", "structure"}:
        raise InvalidFileError("its settings are not those of a hypernetwork", where=SETTINGS_KEY)
    structure = parse_structure(found["structure"])
    if structure is None or not isinstance(found["activate_output"], bool):
        raise InvalidFileError("its settings have values of another type", where=SETTINGS_KEY)
    return {**found, "structure": structure}


def parse_structure(value: object) -> tuple[float, ...] | None:
    """Returns a list of numbers as they are; None where ``value`` is none."""
    if not isinstance(value, list) or not all(
        isinstance(share, int | float) and not isinstance(share, bool) for share in value
    ):
        return None
    return tuple(float(share) for share in value)
