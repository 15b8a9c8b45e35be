"""Low-rank deltas beside linear and convolution layers (LoRA, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import find_module, unwrap_layer
from conceptry.composer.standins import Addition, Contribution, LowRankProduct
from conceptry.composer.walks import Walk, walk_to
from conceptry.errors import IncompatibleError


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """``scale * up @ down``; ``down`` is [rank, in] or [rank, in, kh, kw], ``up`` [out, rank] or [out, rank, 1, 1]."""

    down: Float[Tensor, "rank ..."]
    up: Float[Tensor, "out rank ..."]
    scale: float
    bias: Float[Tensor, " out"] | None = None
    """Added to the output beside the delta, whatever the scale."""

    @property
    def rank(self) -> int:
        """The rank of the delta."""
        return int(self.down.shape[0])

    def to_delta(self) -> Float[Tensor, "out ..."]:
        """Returns the delta as one tensor of the layer's shape, for strength 1."""
        flat = self.up.flatten(1) @ self.down.flatten(1)
        return self.scale * flat.reshape(self.up.shape[0], *self.down.shape[1:])


_Known = tuple[MutableMapping[int, Callable[..., Any]], int, Callable[..., Any]]
"""The hooks of a layer, the number that torch gave to ours, and our hook: it takes its place again without a search."""


class LoraPatch(Patch):
    """Adds ``strength * scale * up(down(x))`` to the output of each named layer while attached.

    Weights are not touched. At strength 0 the output keeps its bits. Gradients reach the factors and ``x``.

    Args:
        root: the component, such as the UNet.
        factors: by module path inside ``root``.
        strength: linear; 1 is as trained. It may be set while attached.

    Raises:
        IncompatibleError: at ``attach``, for a path or a shape that the component lacks; nothing is then changed.
    """

    def __init__(self, root: nn.Module, factors: Mapping[str, LoraFactors], *, strength: float = 1.0) -> None:
        super().__init__()
        self._root = root
        self._factors = dict(factors)
        self.strength = strength
        self._walk: Walk | None = None
        self._known: list[_Known] = []

    def _put_in(self) -> None:
        if self._walk is not None and self._walk.leads_there():
            for hooks, number, hook in self._known:
                hooks[number] = hook
            return
        layers = {path: require_layer(self._root, path, one) for path, one in self._factors.items()}
        self._walk = None
        self._known = [
            (
                layer._forward_hooks,
                RemovableHandle(layer._forward_hooks).id,
                DeltaHook(self._factors[path], self),
            )
            for path, layer in layers.items()
        ]
        self._walk = walk_to(self._root, self._factors)
        for hooks, number, hook in self._known:
            hooks[number] = hook

    def _take_out(self) -> None:
        for hooks, number, _ in self._known:
            hooks.pop(number, None)

    def come_last(self) -> None:
        """Adds to outputs after all others from now on: sums are rounded in the order in which they are made."""
        for hooks, number, _ in self._known:
            if number in hooks:
                hooks[number] = hooks.pop(number)


def to_contributions(factors: Mapping[str, LoraFactors]) -> dict[str, Contribution]:
    """Returns what factors add to weights and biases, by name in the component's state dict."""
    found: dict[str, Contribution] = {}
    for path, one in factors.items():
        found[f"{path}.weight"] = LowRankProduct(one.up, one.down, one.scale)
        if one.bias is not None:
            found[f"{path}.bias"] = Addition(one.bias)
    return found


def require_layer(root: nn.Module, path: str, factors: LoraFactors) -> nn.Linear | nn.Conv2d:
    """Returns the layer at ``path`` that ``factors`` fit. Raises IncompatibleError."""
    layer = find_module(root, path)
    if layer is None or not isinstance(unwrap_layer(layer), nn.Linear | nn.Conv2d):
        raise IncompatibleError(f"the base has no linear or convolution layer {path!r}")
    weight = unwrap_layer(layer).weight
    expected = (factors.up.shape[0], *factors.down.shape[1:])
    shapes = tuple(weight.shape[2:]) == tuple(factors.down.shape[2:]) and factors.up.shape[1] == factors.rank
    if tuple(weight.shape) != expected or not shapes:
        raise IncompatibleError(
            f"the delta of {path!r} is {list(expected)}, the base's weight is {list(weight.shape)}",
            hint="concepts show tells which base the concept was made for",
        )
    return unwrap_layer(layer)  # type: ignore[no-any-return]  # its own hooks stay where others wrap and unwrap it


def spread_channels(bias: Float[Tensor, " out"], layer: nn.Module) -> Tensor:
    """Returns ``bias`` in the shape that is added to the output of ``layer``."""
    kernel = getattr(layer, "kernel_size", ())
    return bias.reshape(-1, *(1 for _ in kernel))


class DeltaHook:
    """Adds the product of one layer's factors to its output, at the strength that the patch has at that moment."""

    def __init__(self, factors: LoraFactors, patch: LoraPatch) -> None:
        self.down, self.up, self.bias = factors.down, factors.up, factors.bias
        self._scale, self._patch = factors.scale, patch

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self._scale * self._patch.strength

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Returns the output with the delta in it; None at strength 0."""
        if self._patch.strength == 0:
            return None
        if self.down.device != output.device and not self.down.requires_grad:
            self.down, self.up = self.down.to(output.device), self.up.to(output.device)
            self.bias = None if self.bias is None else self.bias.to(output.device)
        result = _add_product(layer, args[0].to(self.down.dtype), output, (self.down, self.up), self.scale)
        if self.bias is None:
            return result
        return result + (spread_channels(self.bias, layer) * self._patch.strength).to(result)


def _add_product(
    layer: nn.Module, x: Tensor, output: Tensor, factors: tuple[Tensor, Tensor], scale: float
) -> Tensor:
    down, up = factors
    if isinstance(layer, nn.Conv2d):
        low = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return output + (F.conv2d(low, up) * scale).to(output.dtype)
    low = F.linear(x, down)
    if not torch.is_grad_enabled() and low.dtype == up.dtype == output.dtype and output.is_contiguous():
        # The product is added where it is made: no tensor of the output's size in between.
        output.view(-1, up.shape[0]).addmm_(low.reshape(-1, up.shape[1]), up.T, alpha=scale)
        return output
    return output + (F.linear(low, up) * scale).to(output.dtype)
