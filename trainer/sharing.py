"""Several learners on one pipeline at once: each changes the rows of the batch that are its own, and sees no others.

Learners change a network through hooks. Those of every learner are collected here while it is attached; one pair of
hooks a layer then stands for all of them and calls each with its own rows. The layers themselves compute the whole
batch. Nothing here depends on the method, so that any learner that works by hooks can share a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from conceptry.composer.lora import DeltaHook
from conceptry.composer.pipelines import list_components
from conceptry.trainer.conditioning import Conditioning
from conceptry.trainer.learners import Learner
from conceptry.trainer.stacking import add_products

_TOKENIZERS: Final = ("tokenizer", "tokenizer_2", "tokenizer_3")
_NOBODY: Final = -1


class _Hook(NamedTuple):
    call: Callable[..., Any]
    takes_options: bool


@dataclasses.dataclass(slots=True)
class _Layer:
    """The hooks of one module, by owner, in the order in which they were put in."""

    before: dict[int, list[_Hook]] = dataclasses.field(default_factory=dict)
    after: dict[int, list[_Hook]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class _Private:
    """What belongs to one learner and is looked up by name: its placeholders, what it keeps on a network."""

    placeholders: dict[str, dict[Any, Any]]
    attributes: dict[nn.Module, dict[str, Any]]


class SharedPipeline:
    """The learners that are attached to one pipeline, by number.

    ``only`` has the pipeline answer as if one learner alone were attached; after ``share`` the denoiser works on a
    batch whose rows belong to several.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._networks = list(list_components(pipeline).values())
        self._layers: dict[nn.Module, _Layer] = {}
        self._private: dict[int, _Private] = {}
        self._owner: int | None = _NOBODY
        self._rows: dict[int, slice] = {}
        self._total = 0
        self._slices: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
        self._handles: list[Any] = []

    @contextmanager
    def attached(self, learners: Mapping[int, Learner]) -> Iterator[None]:
        """Keeps all learners attached while the block runs, also when it fails."""
        entered: list[int] = []
        try:
            for number, learner in learners.items():
                self._attach(number, learner)
                entered.append(number)
            yield
        finally:
            for number in reversed(entered):
                self._give_back(number)
                learners[number].detach()
            for handle in self._handles:
                handle.remove()
            self._layers.clear()

    @contextmanager
    def only(self, number: int) -> Iterator[None]:
        """Has the pipeline answer as if this learner alone were attached, while the block runs."""
        before = self._owner
        self._owner = number
        swapped = self._swap_placeholders(self._private[number].placeholders)
        try:
            yield
        finally:
            self._swap_placeholders(swapped)
            self._owner = before

    def share(self, sizes: Mapping[int, int]) -> None:
        """From now on a batch has so many rows of each learner, in this order, until the next call."""
        start = 0
        self._rows = {}
        self._slices.clear()
        for number, size in sizes.items():
            self._rows[number] = slice(start, start + size)
            start += size
        self._total = start
        self._owner = None

    # --- attaching -------------------------------------------------------------------------------------------------

    def _attach(self, number: int, learner: Learner) -> None:
        modules = [module for network in self._networks for module in network.modules()]
        known = {module: (set(module._forward_pre_hooks), set(module._forward_hooks)) for module in modules}
        attributes = {network: set(vars(network)) for network in self._networks}
        self._owner = _NOBODY
        swapped = self._swap_placeholders({})
        try:
            learner.attach()
            self._private[number] = _Private(
                self._swap_placeholders(swapped),
                {network: _take_new(vars(network), names) for network, names in attributes.items()},
            )
        except BaseException:
            self._swap_placeholders(swapped)
            raise
        for module in modules:
            self._collect(number, module, known[module])

    def _give_back(self, number: int) -> None:
        private = self._private.pop(number)
        self._swap_placeholders(private.placeholders)
        for network, attributes in private.attributes.items():
            vars(network).update(attributes)

    def _swap_placeholders(self, wanted: Mapping[str, dict[Any, Any]]) -> dict[str, dict[Any, Any]]:
        before = {}
        for name in _TOKENIZERS:
            tokenizer: Any = getattr(self._pipeline, name, None)
            if hasattr(tokenizer, "placeholder_ids"):
                before[name] = tokenizer.placeholder_ids
                tokenizer.placeholder_ids = wanted.get(name, {})
        return before

    def _collect(self, number: int, module: nn.Module, known: tuple[set[int], set[int]]) -> None:
        before = _take_hooks(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, known[0])
        after = _take_hooks(module._forward_hooks, module._forward_hooks_with_kwargs, known[1])
        if not before and not after:
            return
        layer = self._layers.get(module)
        if layer is None:
            layer = self._layers[module] = _Layer()
            self._watch(module, layer)
        if before:
            layer.before[number] = before
        if after:
            layer.after[number] = after

    # --- calling ---------------------------------------------------------------------------------------------------

    def _watch(self, module: nn.Module, layer: _Layer) -> None:
        def change_inputs(_: nn.Module, args: Any, options: Any) -> Any:
            return self._route_inputs(module, layer, args, options)

        def change_output(_: nn.Module, args: Any, options: Any, output: Any) -> Any:
            return self._route_output(module, layer, (args, options), output)

        self._handles.append(module.register_forward_pre_hook(change_inputs, with_kwargs=True))
        self._handles.append(module.register_forward_hook(change_output, with_kwargs=True))

    def _route_inputs(self, module: nn.Module, layer: _Layer, args: Any, options: Any) -> Any:
        if self._owner is not None:
            hooks = layer.before.get(self._owner)
            return _call_before(hooks, module, args, options) if hooks else None
        if not any(number in layer.before for number in self._rows):
            return None
        parts, changed = [], False
        for number, mine in self._cut((args, options), remember=module in self._networks):
            with self._as(number):
                part = _call_before(layer.before.get(number, []), module, *mine)
            changed = changed or part[0] is not mine[0] or part[1] is not mine[1]
            parts.append(part)
        return _join(parts) if changed else None

    def _route_output(self, module: nn.Module, layer: _Layer, inputs: tuple[Any, Any], output: Any) -> Any:
        if self._owner is not None:
            hooks = layer.after.get(self._owner)
            return _call_after(hooks, module, inputs, output) if hooks else None
        if not any(number in layer.after for number in self._rows):
            return None
        joined = self._join_products(module, layer, inputs, output)
        if joined is not None:
            return joined
        parts = []
        for (number, mine), (_, answer) in zip(self._cut(inputs), self._cut(output), strict=True):
            with self._as(number):
                parts.append(_call_after(layer.after.get(number, []), module, mine, answer))
        return _join(parts)

    def _join_products(
        self, module: nn.Module, layer: _Layer, inputs: tuple[Any, Any], output: Any
    ) -> Tensor | None:
        """Returns the output where all that is added are products of factors; None where something else is."""
        hooks = [layer.after.get(number, []) for number in self._rows]
        calls = [own[0].call for own in hooks if len(own) == 1]
        products = [call for call in calls if isinstance(call, DeltaHook)]
        if len(products) < len(hooks):
            return None
        sizes = [rows.stop - rows.start for rows in self._rows.values()]
        return add_products(module, products, sizes, inputs[0][0], output)

    @contextmanager
    def _as(self, number: int) -> Iterator[None]:
        # What a hook computes with the same layers, such as the locked keys, is of its learner alone.
        self._owner = number
        try:
            yield
        finally:
            self._owner = None

    def _cut(self, values: Any, *, remember: bool = False) -> Iterator[tuple[int, Any]]:
        for number in self._rows:
            yield number, self._cut_one(values, number, remember)

    def _cut_one(self, value: Any, number: int, remember: bool) -> Any:
        if isinstance(value, Tensor):
            return self._cut_tensor(value, number, remember)
        if isinstance(value, tuple | list):
            return type(value)(self._cut_one(one, number, remember) for one in value)
        if isinstance(value, dict):
            return {name: self._cut_one(one, number, remember) for name, one in value.items()}
        return value

    def _cut_tensor(self, value: Tensor, number: int, remember: bool) -> Tensor:
        """Returns the rows; of what the whole network was given the same object each time, as learners expect."""
        if value.ndim == 0 or len(value) != self._total:
            return value
        if remember:
            self._slices.setdefault(id(value), (value, {}))  # kept with its slices, so that no id comes twice
        _, found = self._slices.get(id(value), (value, {}))
        if not found:
            # One split and not a slice for each: its gradient is written once, not filled up and added for each.
            sizes = [rows.stop - rows.start for rows in self._rows.values()]
            found.update(zip(self._rows, value.split(sizes), strict=True))  # type: ignore[no-untyped-call]
        return found[number]


def _take_hooks(hooks: dict[int, Any], with_options: dict[int, bool], known: set[int]) -> list[_Hook]:
    """Returns the hooks that are new, and takes them out of the module; their handles then remove nothing."""
    new = [number for number in hooks if number not in known]
    return [_Hook(hooks.pop(number), with_options.pop(number, False)) for number in new]


def _take_new(attributes: dict[str, Any], known: set[str]) -> dict[str, Any]:
    return {name: attributes.pop(name) for name in [*attributes] if name not in known}


def _call_before(hooks: Sequence[_Hook], module: nn.Module, args: Any, options: Any) -> tuple[Any, Any]:
    for hook in hooks:
        if hook.takes_options:
            args, options = hook.call(module, args, options) or (args, options)
        else:
            changed = hook.call(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    return args, options


def _call_after(hooks: Sequence[_Hook], module: nn.Module, inputs: tuple[Any, Any], output: Any) -> Any:
    args, options = inputs
    for hook in hooks:
        given = (args, options, output) if hook.takes_options else (args, output)
        changed = hook.call(module, *given)
        output = output if changed is None else changed
    return output


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return first if first.ndim == 0 or all(part is first for part in parts) else torch.cat(list(parts))
    if isinstance(first, tuple | list):
        return type(first)(_join(column) for column in zip(*parts, strict=True))
    if isinstance(first, dict):
        return {name: _join([part[name] for part in parts]) for name in first}
    return first


def join_conditionings(parts: Sequence[Conditioning]) -> Conditioning:
    """Returns the encodings of all prompts as one; gradients flow through."""
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(Conditioning):
        values = [getattr(part, field.name) for part in parts]
        joined[field.name] = None if values[0] is None else _join(values)
    return Conditioning(**joined)
