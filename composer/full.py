"""New values in place of a component's own (DreamBooth, UniTune), and the old ones back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import find_tensor
from conceptry.errors import IncompatibleError


@dataclass(slots=True, eq=False)
class _Layers:
    """The values that stand in for one tensor: the base's own, kept aside, and what each patch wants instead."""

    original: Tensor
    wanted: dict[object, tuple[float, Tensor]] = field(default_factory=dict)
    """Strength and new values by a mark of the patch, not the patch: it would keep the whole component alive."""

    def combine(self) -> Tensor:
        """Returns original + sum of strength * (new - original); one patch at strength 1 gives exactly its values."""
        if not self.wanted:
            return self.original
        rows = list(self.wanted.values())
        if len(rows) == 1 and rows[0][0] == 1.0:
            return rows[0][1].to(self.original)
        base = self.original.float()
        total = base.clone()
        for strength, value in rows:
            total += strength * (value.to(base) - base)
        return total.to(self.original.dtype)


# By the tensor itself, so that patches of several attachments to one pipeline know of each other.
_LAYERS: Final[MutableMapping[Tensor, _Layers]] = WeakTensorKeyDictionary()


class FullPatch(Patch):
    """Puts ``original + strength * (new - original)`` in place of each named tensor while attached.

    The tensors' memory is exchanged, not overwritten, so that detaching gives the base's own bytes back. Several
    patches on one tensor add up and may come out in any order.

    Args:
        root: the component, such as the UNet.
        values: by name in the component's state dict.
        strength: linear; 1 is as trained.

    Raises:
        IncompatibleError: at ``attach``, for a name or a shape that the component lacks; nothing is then changed.
    """

    def __init__(self, root: nn.Module, values: Mapping[str, Tensor], *, strength: float = 1.0) -> None:
        super().__init__()
        self._root = root
        self._values = dict(values)
        self.strength = strength
        self._targets: list[Tensor] = []
        self._mark = object()

    def _put_in(self) -> None:
        targets = {name: require_tensor(self._root, name, value) for name, value in self._values.items()}
        for name, target in targets.items():
            layers = _LAYERS.get(target)
            if layers is None:
                layers = _LAYERS[target] = _Layers(target.data)
            layers.wanted[self._mark] = (self.strength, self._values[name])
            self._targets.append(target)
            _show(target, layers)

    def _take_out(self) -> None:
        for target in self._targets:
            layers = _LAYERS[target]
            layers.wanted.pop(self._mark, None)
            _show(target, layers)
            if not layers.wanted:
                del _LAYERS[target]
        self._targets.clear()


def read_original(tensor: Tensor) -> Tensor:
    """Returns the base's own values of a parameter or buffer, also while patches stand in for it."""
    layers = _LAYERS.get(tensor)
    return tensor.data if layers is None else layers.original


def require_tensor(root: nn.Module, name: str, value: Tensor) -> Tensor:
    """Returns the parameter or buffer ``name`` that ``value`` can replace. Raises IncompatibleError."""
    target = find_tensor(root, name)
    if target is None:
        raise IncompatibleError(f"the base has no tensor {name!r}")
    if target.shape != value.shape:
        raise IncompatibleError(
            f"{name!r} has shape {list(value.shape)}, the base's has {list(target.shape)}",
            hint="concepts show tells which base the concept was made for",
        )
    return target


def _show(target: Tensor, layers: _Layers) -> None:
    # A pipeline that was moved or converted meanwhile keeps its new device and precision.
    layers.original = layers.original.to(device=target.device, dtype=target.dtype)
    with torch.no_grad():
        target.data = layers.combine()
