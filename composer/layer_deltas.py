"""What a concept changes, layer by layer, as deltas that can be held against those of others; where there is none, why.

Where an algorithm's delta is a product of factors it stays one. Others are made dense: of their own tensors, or of the
base's weights too where these are at hand. Of a DoRA without them, the direction is compared alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import torch
from torch import Tensor

from conceptry.bases import ComponentName
from conceptry.composer.low_rank import LowRank
from conceptry.composer.low_rank_modules import find_shape, has_factors, needs_base, to_low_rank
from conceptry.composer.overlaps import find_edited_modules, list_full_names
from conceptry.composer.pipelines import Pipeline, find_tensor, list_components
from conceptry.composer.plan import PlannedMember
from conceptry.composer.spectra import Deltas
from conceptry.composer.standins import read_original
from conceptry.composer.tensors import to_torch
from conceptry.composer.unpacking import wrap_tensors
from conceptry.errors import IncompatibleError, UsageError
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.full_files import read_values
from conceptry.formats.header import read_header
from conceptry.formats.lora import read_lora
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.original_names import spell_as_diffusers
from conceptry.formats.planes import FindTensor
from conceptry.formats.tensors import RawTensor
from conceptry.kinds import AlgorithmId, KindId
from conceptry.manifest import File, Part

Weights = Callable[[str], Tensor | None]
"""Returns a base's own weight by its name (``unet.conv_in.weight``); None where it has none."""

GATED: Final = "a gate decides by the word how much it adds, so it has no delta of its own"
_STACKED: Final = "a hypernetwork works between the text and keys and values, on no weight"
_DIRECTION: Final = "its direction alone, since magnitudes depend on the base's weights: --base opens them"
_UNKNOWN: Final = "what it adds depends on the base's weights: --base opens them"
_ABSENT: Final = "the base has no such weight, or not in numbers that can be added to"
_BIASES: Final = frozenset({"diff_b", "bias", "b_norm"})
_UNDECOMPOSED: Final[Mapping[AlgorithmId, AlgorithmId]] = {"dora": "locon", "doha": "loha", "dokr": "lokr"}
_MAGNITUDES: Final = ("magnitude_in", "magnitude_out")


@dataclass(slots=True)
class LayerDeltas:
    """What one concept changes."""

    deltas: dict[str, Callable[[], LowRank]] = field(default_factory=dict)
    """``component.module`` (a bias: ``component.module.bias``) -> what reads the delta at the concept's strength."""

    reasons: dict[str, str] = field(default_factory=dict)
    """The same names -> why a layer is not compared, or not wholly."""

    everywhere: str | None = None
    """Why the concept is compared with none in any layer."""

    @property
    def names(self) -> Set[str]:
        """All that the concept changes, as far as its files tell."""
        return self.deltas.keys() | self.reasons.keys() if self.reasons else self.deltas.keys()


def list_layers(member: PlannedMember, weights: Weights | None = None) -> LayerDeltas:
    """Returns what a planned concept changes; tensors are read when a delta is asked for.

    Args:
        member: the concept at its strength, and at its shares in parts of the network.
        weights: of the base, where it is open.

    Raises:
        NotFoundError: if a file is not on this machine.
        InvalidFileError: if one is malformed.
        IncompatibleError: if it was packed against another base than this one.
    """
    found = LayerDeltas()
    for part in member.build.parts:
        read = _READERS.get(part.kind)
        for file in part.files if read else ():
            if read and file.role == "weights":
                read(found, _Source(member, part, file, weights))
    return found


def list_factors(member: PlannedMember) -> Deltas:
    """Returns the deltas of ``list_layers`` that are products of factors and nothing else."""
    found: dict[str, Callable[[], LowRank]] = {}
    for part in member.build.parts:
        for file in part.files if part.kind == "lora" else ():
            if file.role == "weights":
                source = _Source(member, part, file, None)
                modules = source.read_modules().items()
                found |= {name: source.defer(name, module) for name, module in modules if has_factors(module)}
    return found


def open_weights(pipeline: Pipeline) -> Weights:
    """Returns what finds the own weights of an open pipeline, past what stands in for them."""

    def find(name: str) -> Tensor | None:
        component, _, path = name.partition(".")
        root = list_components(pipeline).get(ComponentName(component))
        tensor = None if root is None else find_tensor(root, path)
        if tensor is None or tensor.is_meta or not tensor.is_floating_point():
            return None
        return read_original(tensor).detach()

    return find


@dataclass(frozen=True, slots=True)
class _Source:
    """One file of a concept, and what is known beside it."""

    member: PlannedMember
    part: Part
    file: File
    weights: Weights | None

    @property
    def path(self) -> Path:
        return self.member.concept.locate(self.file)

    def read_modules(self) -> dict[str, LoraModule]:
        return spell_as_diffusers(read_lora(self.path).modules, self.member.build.base.family)

    def defer(self, name: str, module: LoraModule) -> Callable[[], LowRank]:
        return partial(_read_factors, module, self.measure(name))

    def measure(self, name: str) -> float:
        """Returns the strength in a layer."""
        return self.member.strength * self.member.use.find_share(name)

    def find(self, name: str) -> Tensor | None:
        return None if self.weights is None else self.weights(name)


# --- adapters ------------------------------------------------------------------------------------------------------


def _read_adapter(found: LayerDeltas, source: _Source) -> None:
    for name, module in source.read_modules().items():
        if not source.measure(name):
            continue
        parts = module.parts.keys()
        if parts & _BIASES or module.algorithm == "ia3_peft":
            _defer_bias(found, source, name, module)
        if parts <= _BIASES:
            continue
        if has_factors(module):
            found.deltas[name] = source.defer(name, module)
        elif needs_base(module):
            _defer_by_base(found, source, name, module)
        else:
            found.deltas[name] = partial(_read_dense, module, source.measure(name), find_shape(module), None)


def _defer_by_base(found: LayerDeltas, source: _Source, name: str, module: LoraModule) -> None:
    if source.weights is not None:
        weight = source.weights(f"{name}.weight")
        if weight is None:
            found.reasons[name] = _ABSENT
            return
        strength = source.measure(name)
        found.deltas[name] = partial(_read_dense, module, strength, tuple(weight.shape), weight)
        return
    algorithm = _UNDECOMPOSED.get(module.algorithm)
    if algorithm is None:
        found.reasons[name] = _UNKNOWN
        return
    parts = {part: tensor for part, tensor in module.parts.items() if part not in _MAGNITUDES}
    direction = replace(module, algorithm=algorithm, parts=parts)
    found.reasons[name] = _DIRECTION
    if has_factors(direction):
        found.deltas[name] = source.defer(name, direction)
    else:
        found.deltas[name] = partial(
            _read_dense, direction, source.measure(name), find_shape(direction), None
        )


def _defer_bias(found: LayerDeltas, source: _Source, name: str, module: LoraModule) -> None:
    place = f"{name}.bias"
    own = source.find(place)
    if module.algorithm == "ia3_peft":
        if module.numbers["on_input"]:
            return
        if own is None:
            if source.weights is None:
                found.reasons[place] = _UNKNOWN
            return
    found.deltas[place] = partial(_read_bias, module, source.measure(name), own)


def _read_factors(module: LoraModule, strength: float) -> LowRank:
    delta = to_low_rank(module)
    if delta is None:
        raise UsageError(f"a {module.algorithm} of these parts has no factors")
    return delta.scaled(strength)


def _read_dense(
    module: LoraModule, strength: float, shape: tuple[int, ...] | None, weight: Tensor | None
) -> LowRank:
    if shape is None:
        raise IncompatibleError(f"nothing tells the shape that a {module.algorithm} is for")
    own = None if weight is None else weight.to("cpu", torch.float32).numpy()
    return spread(_scale(strength, dense_delta(module, shape, own, "float32")))


def _read_bias(module: LoraModule, strength: float, own: Tensor | None) -> LowRank:
    bias = None if own is None else own.to("cpu", torch.float32).numpy()
    return spread(_scale(strength, dense_bias_delta(module, bias, "float32")))


def _scale(strength: float, delta: object) -> Tensor:
    return strength * torch.as_tensor(delta, dtype=torch.float32)


def spread(delta: Tensor) -> LowRank:
    """Returns a dense delta as a product with ones on the diagonal, of the least rank that this takes."""
    flat = delta.reshape(len(delta), -1)
    kernel = tuple(delta.shape[2:])
    if flat.shape[0] < flat.shape[1]:
        return LowRank(torch.eye(flat.shape[0]), flat, kernel)
    return LowRank(flat, torch.eye(flat.shape[1]), kernel)


# --- other kinds ---------------------------------------------------------------------------------------------------


def _read_full(found: LayerDeltas, source: _Source) -> None:
    """New values, also of Custom Diffusion: deltas are their differences from the base's own."""
    component = PurePosixPath(source.file.path).stem
    if (weights := source.weights) is None:
        for name in list_full_names(source.path):
            place = f"{component}.{name}".removesuffix(".weight")
            if source.measure(place):
                found.reasons[place] = _UNKNOWN
        return

    def find_bases(component: ComponentName) -> Iterator[FindTensor]:
        yield wrap_tensors(lambda tensor: weights(f"{component}.{tensor}"))

    contents = read_values(source.path, source.part.method, find_bases)
    for tensor, raw in contents.tensors.items():
        place = f"{contents.component}.{tensor}".removesuffix(".weight")
        own = weights(f"{contents.component}.{tensor}")
        if not source.measure(place):
            continue
        if own is None or tuple(own.shape) != raw.shape or not raw.shape:
            found.reasons[place] = _ABSENT
        else:
            found.deltas[place] = partial(_read_difference, raw, own, source.measure(place))


def _read_difference(raw: RawTensor, own: Tensor, strength: float) -> LowRank:
    return spread(strength * (to_torch(raw, dtype=torch.float32) - own.to("cpu", torch.float32)))


def _read_edit(found: LayerDeltas, source: _Source) -> None:
    names = find_edited_modules("unet", read_header(source.path).tensors)
    found.reasons |= dict.fromkeys(names, GATED)


def _read_network(found: LayerDeltas, source: _Source) -> None:
    found.everywhere = _STACKED


# An embedding changes no layer: its rows are compared as words.
_READERS: Final[Mapping[KindId, Callable[[LayerDeltas, _Source], None]]] = {
    "lora": _read_adapter,
    "full": _read_full,
    "rank_one": _read_edit,
    "hypernetwork": _read_network,
}
