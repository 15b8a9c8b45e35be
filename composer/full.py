"""New values in place of a component's own (DreamBooth, UniTune), and the old ones back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import find_place, find_tensor, read_place
from conceptry.composer.standins import (
    Contribution,
    Replacement,
    come_last,
    forget,
    is_made,
    is_wanted,
    mark_made,
    read_original,
    want,
)
from conceptry.composer.undoing import run_all
from conceptry.errors import IncompatibleError

__all__ = ["FullPatch", "WeightPatch", "read_original", "require_tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A weight that is changed, and the module that holds it."""

    module: nn.Module
    leaf: str
    target: Tensor


class WeightPatch(Patch):
    """Adds ``strength`` times each contribution to the named weights while attached, inside the weights themselves.

    Nothing is computed beside the layers, so pictures cost what the base's cost, and compiled code sees the change. The
    base's own bytes are kept aside and come back at ``detach``. Several patches on one weight add up and may come out
    in any order.

    Args:
        root: the component, such as the UNet.
        contributions: by name in the component's state dict; a bias that the layer lacks is made.
        strength: linear; 1 is as trained. It may be set while attached.

    Raises:
        IncompatibleError: at ``attach``, for a name that the component lacks; nothing is then changed.
    """

    def __init__(
        self, root: nn.Module, contributions: Mapping[str, Contribution], *, strength: float = 1.0
    ) -> None:
        super().__init__()
        self._root = root
        self._contributions = dict(contributions)
        self._strength = strength
        self._places: dict[str, _Place] = {}
        self._mark = object()

    @property
    def strength(self) -> float:
        """How much of each contribution is added."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if value != self._strength:
            # Like no other until every weight knows the new one: an exception may come in between.
            self._strength = math.nan
            self._note_strength()
            self._want(value)
            self._strength = value

    def _put_in(self) -> None:
        found = {name: self._find(name) for name in self._contributions}
        for name, (module, leaf, target) in found.items():
            place = self._places[name] = _Place(
                module, leaf, _make_bias(module) if target is None else target
            )
            if target is None:
                module._parameters[leaf] = place.target  # type: ignore[assignment]
        self._want(self._strength)

    def _find(self, name: str) -> tuple[nn.Module, str, Tensor | None]:
        place = find_place(self._root, name)
        if place is None:
            raise IncompatibleError(f"the base has no tensor {name!r}")
        target = read_place(*place)
        if target is not None and target.is_meta:
            raise IncompatibleError(
                f"the weight {name!r} is not in memory: it was put elsewhere until it is used",
                hint="attach first, then offload; or call pipeline.remove_all_hooks()",
            )
        return *place, target

    def _want(self, strength: float) -> None:
        for name, place in self._places.items():
            want(place.target, self._mark, strength, self._contributions[name])

    def _take_out(self) -> None:
        run_all([partial(self._give_back, name) for name in self._places])

    def come_last(self) -> None:
        """Adds to each weight after all others from now on."""
        for place in self._places.values():
            come_last(place.target, self._mark)

    def _give_back(self, name: str) -> None:
        place = self._places[name]
        original = read_original(place.target)
        forget(place.target, self._mark)
        if not is_wanted(place.target):
            current = read_place(place.module, place.leaf)
            if current is not None and current is not place.target:
                _restore_elsewhere(place.module, place.leaf, current, original)
            if is_made(place.target):
                place.module._parameters[place.leaf] = None
        del self._places[name]


class FullPatch(WeightPatch):
    """Puts ``original + strength * (new - original)`` in place of each named tensor while attached.

    Args:
        root: the component, such as the UNet.
        values: by name in the component's state dict.
        strength: linear; 1 is as trained.

    Raises:
        IncompatibleError: at ``attach``, for a name or a shape that the component lacks; nothing is then changed.
    """

    def __init__(self, root: nn.Module, values: Mapping[str, Tensor], *, strength: float = 1.0) -> None:
        contributions = {name: Replacement(value) for name, value in values.items()}
        super().__init__(root, contributions, strength=strength)
        self._values = dict(values)

    def _put_in(self) -> None:
        for name, value in self._values.items():
            require_tensor(self._root, name, value)
        super()._put_in()


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


def _make_bias(module: nn.Module) -> Tensor:
    weight = module.weight
    bias = nn.Parameter(torch.zeros(weight.shape[0]).to(weight), requires_grad=False)  # type: ignore[arg-type, index]
    mark_made(bias)
    return bias


def find_made(root: nn.Module) -> str | None:
    """Returns the name of a bias that a concept brought to a layer without one; None where there is none."""
    return next((name for name, value in root.named_parameters() if is_made(value)), None)


@torch.no_grad()
def _restore_elsewhere(module: nn.Module, leaf: str, current: Tensor, original: Tensor) -> None:
    """Gives a weight its bytes back where another tensor has taken its place since, as accelerate's offloading does."""
    if not current.is_meta:
        current.data.copy_(original)
        return
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        kept = getattr(one, "weights_map", None)
        if kept is not None and leaf in kept:
            kept[leaf].copy_(original)
            return
    raise IncompatibleError(
        f"the base's {leaf} of a {type(module).__name__} was put where it cannot be given back",
        hint="open the base again; detach before its weights are offloaded",
    )
