"""What planned concepts bring to a merge: layers as factors, words with their rows, and what cannot be merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from conceptry.bases import ComponentName
from conceptry.composer.layer_deltas import Weights
from conceptry.composer.low_rank import LowRank
from conceptry.composer.low_rank_modules import find_shape, needs_base, to_low_rank
from conceptry.composer.plan import Plan, PlannedMember
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.composer.unpacking import wrap_tensors
from conceptry.errors import ConceptryError, IncompatibleError
from conceptry.formats.checks import Rows
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.embedding import read_embedding
from conceptry.formats.full_files import read_values
from conceptry.formats.lora import read_lora
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.original_names import spell_as_diffusers
from conceptry.formats.planes import FindTensor
from conceptry.formats.tensors import RawTensor
from conceptry.manifest import Part
from conceptry.names import Placeholder

_ATTACH: Final = "attach them together instead: concepts generate --with takes every kind"


@dataclass(slots=True)
class MergeInputs:
    """What is merged, by layer and by word, in the order of the concepts."""

    factored: dict[str, list[tuple[int, LowRank]]] = field(default_factory=dict)
    """``component.module`` -> the place of each concept and its delta at its strength."""

    whole: dict[str, LoraModule] = field(default_factory=dict)
    """``component.module`` -> the sum of deltas that are no products of factors, exactly."""

    rows: dict[tuple[ComponentName, Placeholder], RawTensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    weights: Weights | None = None
    sums: bool = False


def gather_inputs(plan: Plan, weights: Weights | None = None, *, sums: bool = False) -> MergeInputs:
    """Returns what the concepts of a plan bring to a merge, each delta at the strength that is asked for.

    Args:
        plan: the concepts and their strengths.
        weights: what returns a weight of the base by its name, None where it has none; with it new weights (kind full)
            are taken as differences from the base's, and so is what depends on them (DoRA).
        sums: whether deltas are to be summed and no more: layers that one concept changes by factors and another by a
            whole difference are then summed whole. Where weights are given and this is not so, whole differences are
            taken as factors of full rank.

    Raises:
        IncompatibleError: if a part cannot be merged, with the concept and the layer.
        InvalidFileError: if a file is malformed.
        NotFoundError: if a file is not on this machine.
    """
    found = MergeInputs(weights=weights, sums=sums)
    dense: dict[str, list[tuple[float, LoraModule]]] = {}
    for place, member in enumerate(plan.members):
        for part in member.build.parts:
            try:
                for name, module in _read_part(found, member, part):
                    _sort_module(found, dense, (place, member.strength, name), module)
            except ConceptryError as error:
                error.inside(member.concept.label)
                raise
    _check_shapes(plan, found)
    for name, rows in dense.items():
        if name in found.factored and not sums:
            raise IncompatibleError(
                f"{name}: one concept changes it by factors, another by {rows[0][1].algorithm}",
                hint="--method sum adds them up whole",
            )
        factored = [delta for _, delta in found.factored.pop(name, ())]
        found.whole[name] = _add_whole(name, rows, factored)
    return found


def _sort_module(
    found: MergeInputs,
    dense: dict[str, list[tuple[float, LoraModule]]],
    key: tuple[int, float, str],
    module: LoraModule,
) -> None:
    place, strength, name = key
    if needs_base(module):
        module = _difference(found, name, module)
    delta = to_low_rank(module)
    if delta is None and found.weights is not None and not found.sums and "diff" in module.parts:
        delta = _spread(module)
    if delta is None:
        dense.setdefault(name, []).append((strength, module))
    else:
        found.factored.setdefault(name, []).append((place, delta.scaled(strength)))


def _difference(found: MergeInputs, name: str, module: LoraModule) -> LoraModule:
    """Returns what a module makes of the base's weight, as a whole difference from it."""
    if found.weights is None:
        raise IncompatibleError(
            f"{name} is a {module.algorithm}, whose delta depends on the base's weight",
            hint="add --base with that base, and it is summed as a whole difference",
        )
    weight, bias = (
        None if tensor is None else tensor.detach().to("cpu", torch.float32).numpy()
        for tensor in (found.weights(f"{name}.weight"), found.weights(f"{name}.bias"))
    )
    if weight is None:
        raise IncompatibleError(f"the base has no weight {name}.weight to make a {module.algorithm} of")
    deltas = {
        "diff": dense_delta(module, weight.shape, weight, "float32"),
        "diff_b": dense_bias_delta(module, bias, "float32"),
    }
    parts = {part: _narrow(delta) for part, delta in deltas.items() if delta is not None}
    return LoraModule(algorithm="full", parts=parts, rule="none")


def _spread(module: LoraModule) -> LowRank:
    """Returns a whole difference as a product with ones on the diagonal."""
    whole = to_torch(module.parts["diff"], dtype=torch.float32)
    flat = whole.flatten(1)
    bias = dense_bias_delta(module)
    return LowRank(
        flat,
        torch.eye(flat.shape[1]),
        tuple(whole.shape[2:]),
        None if bias is None else torch.from_numpy(bias).float(),
    )


def _check_shapes(plan: Plan, found: MergeInputs) -> None:
    for name, rows in found.factored.items():
        first_place, first = rows[0]
        for place, delta in rows[1:]:
            if delta.shape != first.shape:
                labels = [plan.members[number].concept.label for number in (first_place, place)]
                raise IncompatibleError(
                    f"{name} is {list(first.shape)} in {labels[0]} and {list(delta.shape)} in {labels[1]}",
                    hint="they were made for different bases",
                )


def _add_whole(
    name: str, rows: list[tuple[float, LoraModule]], factored: Sequence[LowRank] = ()
) -> LoraModule:
    """Returns the sum as a plain difference, of a weight or of a norm, and of a bias."""
    modules = [module for _, module in rows]
    norm = all(module.algorithm == "norm" for module in modules)
    shapes = {_find_shape(module) for module in modules} - {None} or {
        (one.shape[0], one.shape[1] // math.prod(one.kernel), *one.kernel) for one in factored[:1]
    }
    if len(shapes) > 1 or any(
        one.shape != (shape[0], math.prod(shape[1:])) for one in factored for shape in shapes if shape
    ):
        raise IncompatibleError(
            f"{name} has several shapes: {sorted({*map(str, shapes), *(str(one.shape) for one in factored)})}",
            hint="they were made for different bases",
        )
    parts: dict[str, RawTensor] = {}
    for shape in shapes:
        weights = [
            strength * delta
            for strength, module in rows
            if shape is not None and (delta := dense_delta(module, shape)) is not None
        ]
        weights += [one.to_dense().double().numpy().reshape(shape or ()) for one in factored]
        parts["w_norm" if norm else "diff"] = _narrow(sum(weights))
    biases = [strength * bias for strength, module in rows if (bias := dense_bias_delta(module)) is not None]
    biases += [one.bias.double().numpy() for one in factored if one.bias is not None]
    if biases:
        parts["b_norm" if norm else "diff_b"] = _narrow(sum(biases))
    return LoraModule(algorithm="norm" if norm else "full", parts=parts, rule="none")


def _find_shape(module: LoraModule) -> tuple[int, ...] | None:
    """Returns the shape of the weight that a module changes; None where it changes a bias alone."""
    shape = find_shape(module)
    if shape is None and module.algorithm not in ("full", "norm"):
        raise IncompatibleError(f"nothing tells the shape that a {module.algorithm} is for", hint=_ATTACH)
    return shape


def _narrow(array: object) -> RawTensor:
    return RawTensor.from_numpy(np.asarray(array, np.float32))


# --- one part ------------------------------------------------------------------------------------------------------

_Modules = Iterator[tuple[str, LoraModule]]


def _read_part(found: MergeInputs, member: PlannedMember, part: Part) -> _Modules:
    read = None if part.kind == "full" and found.weights is None else _READERS.get(part.kind)
    if read is None:
        hint = "add --base with the base that it was made for" if part.kind == "full" else _ATTACH
        raise IncompatibleError(f"a part of kind {part.kind} cannot be merged with others", hint=hint)
    return read(found, member, part)


def _iter_files(member: PlannedMember, part: Part) -> Iterator[Path]:
    return (member.concept.locate(file) for file in part.files if file.role == "weights")


def _read_modules(found: MergeInputs, member: PlannedMember, part: Part) -> _Modules:
    for path in _iter_files(member, part):
        yield from spell_as_diffusers(read_lora(path).modules, member.build.base.family).items()


def _read_rows(found: MergeInputs, member: PlannedMember, part: Part) -> _Modules:
    """Takes the rows of words over under the words of the plan; there is nothing in them to merge."""
    for path in _iter_files(member, part):
        contents = read_embedding(path)
        if contents.layers is not None:
            raise IncompatibleError("rows for each cross-attention layer cannot be merged", hint=_ATTACH)
        rows: Rows = contents.rows
        for (component, placeholder), raw in rows.items():
            word = member.words.get(Placeholder(placeholder), Placeholder(placeholder))
            found.rows[component, word] = raw
    if member.strength != 1.0:
        found.warnings.append(
            f"{member.concept.label}: its word is kept as it is; strength {member.strength:g} is for its layers"
        )
    return iter(())


def _read_differences(found: MergeInputs, member: PlannedMember, part: Part) -> _Modules:
    """Returns new weights as whole differences from the base's."""

    def find_bases(component: ComponentName) -> Iterator[FindTensor]:
        if (weights := found.weights) is not None:
            yield wrap_tensors(lambda tensor: weights(f"{component}.{tensor}"))

    for path in _iter_files(member, part):
        contents = read_values(path, part.method, find_bases)
        for tensor, raw in contents.tensors.items():
            name = f"{contents.component}.{tensor}"
            own = None if found.weights is None else found.weights(name)
            if own is None or tuple(own.shape) != raw.shape:
                raise IncompatibleError(f"the base has no weight {name} of {list(raw.shape)}")
            module, _, leaf = name.rpartition(".")
            value = to_torch(raw, dtype=torch.float32)
            difference = from_torch(value - own.detach().to("cpu", torch.float32))
            if leaf not in ("weight", "bias") or (leaf == "weight" and difference.shape[1:] == ()):
                raise IncompatibleError(
                    f"{name} is no weight of a linear layer or a convolution", hint=_ATTACH
                )
            yield (
                module,
                LoraModule(
                    algorithm="full",
                    parts={"diff" if leaf == "weight" else "diff_b": difference},
                    rule="none",
                ),
            )


_READERS: Final[Mapping[str, Callable[[MergeInputs, PlannedMember, Part], _Modules]]] = {
    "lora": _read_modules,
    "embedding": _read_rows,
    "full": _read_differences,
}
