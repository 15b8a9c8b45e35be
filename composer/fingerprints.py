"""Which base an open pipeline is: layout and 64 values of each component, read in milliseconds."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from conceptry.base_locations import detect_family
from conceptry.bases import (
    BaseIdentity,
    FamilyId,
    Fingerprint,
    choose_probes,
    digest_layout,
)
from conceptry.composer.pipelines import (
    Pipeline,
    iter_state,
    list_components,
    list_text_encoders,
    spell_published,
)
from conceptry.composer.standins import is_made, read_original
from conceptry.digests import Digest
from conceptry.errors import IncompatibleError

# What changes the meaning of weights without changing a name or a shape.
_SETTINGS: Final = (
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "center_input_sample",
    "class_embed_type",
    "flip_sin_to_cos",
    "freq_shift",
    "hidden_act",
    "layer_norm_eps",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "resnet_time_scale_shift",
)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Values of one tensor: where it hangs in the component, and two of its elements."""

    path: tuple[str, ...]
    tensor: weakref.ref[Tensor]
    indices: tuple[tuple[int, ...], ...]

    def find(self, root: nn.Module) -> Tensor | None:
        """Returns the tensor that hangs there now."""
        module: nn.Module | None = root
        for part in self.path[:-1]:
            module = module._modules.get(part) if module is not None else None
        if module is None:
            return None
        leaf = self.path[-1]
        return module._parameters.get(leaf, module._buffers.get(leaf))


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What is kept of a component between calls: all but the values, which are read anew each time."""

    layout: Digest
    places: tuple[_Place, ...]

    def find_tensors(self, root: nn.Module) -> list[Tensor] | None:
        """Returns the probed tensors; None if one of them was replaced since."""
        found = [place.find(root) for place in self.places]
        kept = [place.tensor() for place in self.places]
        same = all(tensor is not None and tensor is old for tensor, old in zip(found, kept, strict=True))
        return [tensor for tensor in found if tensor is not None] if same else None


_READINGS: Final[weakref.WeakKeyDictionary[nn.Module, _Reading]] = weakref.WeakKeyDictionary()


def identify_pipeline(pipeline: Pipeline) -> BaseIdentity:
    """Returns the family, the prediction type and the fingerprints of the denoiser and the text encoders.

    Values are read anew each time, so a changed weight is seen at once; names, shapes and places are kept on the
    component. While patches stand in for weights, the base's own values are read.

    Raises:
        IncompatibleError: if the pipeline is of no known family.
    """
    parts = list_components(pipeline)
    return BaseIdentity(
        family=find_pipeline_family(pipeline),
        prediction_type=read_prediction_type(pipeline),
        fingerprints={name: fingerprint_component(module) for name, module in parts.items()},
    )


def find_pipeline_family(pipeline: Pipeline) -> FamilyId:
    """Returns the family that the components' configurations tell. Raises IncompatibleError."""
    denoiser = next(iter(list_components(pipeline).values()))
    widths = {str(encoder.component): encoder.table.embedding_dim for encoder in list_text_encoders(pipeline)}
    config = {"_class_name": type(denoiser).__name__, **_read_settings(denoiser)}
    family = detect_family(config, widths)
    if family is None:
        raise IncompatibleError(f"{type(pipeline).__name__} is a base of no family that is known here")
    return family


def read_prediction_type(pipeline: Pipeline) -> str:
    """Returns epsilon, v_prediction, sample or flow."""
    scheduler = pipeline.scheduler
    found = scheduler.config.get("prediction_type")
    return "flow" if found is None or str(found).startswith("flow") else str(found)


def fingerprint_component(module: nn.Module) -> Fingerprint:
    """Returns the layout and the probed values of a denoiser or a text encoder."""
    reading = _READINGS.get(module)
    tensors = reading.find_tensors(module) if reading is not None else None
    if reading is None or tensors is None:
        reading = _READINGS[module] = _make_reading(module)
        tensors = reading.find_tensors(module) or []
    originals = [read_original(tensor) for tensor in tensors]
    if any(tensor.is_meta for tensor in originals):
        raise IncompatibleError(
            f"the weights of {type(module).__name__} are not in memory, so that the base cannot be told",
            hint="attach before enable_sequential_cpu_offload(), or call pipeline.remove_all_hooks() first",
        )
    values = [
        original[index]
        for place, original in zip(reading.places, originals, strict=True)
        for index in place.indices
    ]
    return Fingerprint(reading.layout, tuple(_to_floats(values)))


def _to_floats(values: list[Tensor]) -> list[float]:
    # One transfer for all values of a precision: on an accelerator each transfer waits for the queue.
    found: dict[int, float] = {}
    for dtype in {value.dtype for value in values}:
        which = [number for number, value in enumerate(values) if value.dtype == dtype]
        found.update(zip(which, torch.stack([values[number] for number in which]).tolist(), strict=True))
    return [float(found[number]) for number in range(len(values))]


def _make_reading(module: nn.Module) -> _Reading:
    names, tensors = {}, {}
    for name, tensor in iter_state(module):
        if not is_made(tensor):
            published = spell_published(module, name)
            names[published], tensors[published] = name, tensor
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    indices: dict[str, list[tuple[int, ...]]] = {}
    for probe in choose_probes(shapes):
        indices.setdefault(probe.tensor, []).append(_unravel(probe.index, shapes[probe.tensor]))
    settings = {name: value for name, value in _read_settings(module).items() if name in _SETTINGS}
    places = tuple(
        _Place(tuple(names[name].split(".")), weakref.ref(tensors[name]), tuple(found))
        for name, found in indices.items()
    )
    return _Reading(digest_layout(shapes, settings), places)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    places = []
    for size in reversed(shape):
        places.append(index % size)
        index //= size
    return tuple(reversed(places))


def _read_settings(module: nn.Module) -> Mapping[str, Any]:
    """Returns the component's configuration without what is unset; a list of equal values is that value."""
    config: Any = getattr(module, "config", {})
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    return {name: _simplify(value) for name, value in values.items() if value is not None}


def _simplify(value: Any) -> Any:
    if isinstance(value, list | tuple):
        items = [_simplify(item) for item in value]
        return items[0] if items and all(item == items[0] for item in items) else items
    return value
