"""Low-rank deltas beside linear and convolution layers (LoRA, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import find_module
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


class LoraPatch(Patch):
    """Adds ``strength * scale * up(down(x))`` to the output of each named layer while attached.

    Weights are not touched; at strength 0 the layers are not even watched. Gradients reach the factors and ``x``.

    Args:
        root: the component, such as the UNet.
        factors: by module path inside ``root``.
        strength: linear; 1 is as trained.

    Raises:
        IncompatibleError: at ``attach``, for a path or a shape that the component lacks; nothing is then changed.
    """

    def __init__(self, root: nn.Module, factors: Mapping[str, LoraFactors], *, strength: float = 1.0) -> None:
        super().__init__()
        self._root = root
        self._factors = dict(factors)
        self.strength = strength

    def _put_in(self) -> None:
        layers = {path: require_layer(self._root, path, factors) for path, factors in self._factors.items()}
        if self.strength == 0:
            return
        for path, layer in layers.items():
            hook = _make_hook(self._factors[path], self)
            self._handles.append(layer.register_forward_hook(hook))


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
    return layer  # type: ignore[return-value]


def spread_channels(bias: Float[Tensor, " out"], layer: nn.Module) -> Tensor:
    """Returns ``bias`` in the shape that is added to the output of ``layer``."""
    kernel = getattr(layer, "kernel_size", ())
    return bias.reshape(-1, *(1 for _ in kernel))


def unwrap_layer(layer: nn.Module) -> Any:
    """Returns the layer itself: peft puts its own adapters around a layer and keeps the layer inside."""
    inner = getattr(layer, "base_layer", None)
    return inner if isinstance(inner, nn.Module) else layer


def _make_hook(factors: LoraFactors, patch: LoraPatch) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    down, up, scale, bias = factors.down, factors.up, factors.scale, factors.bias

    def add_delta(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal down, up, bias
        if down.device != output.device and not down.requires_grad:
            down, up = down.to(output.device), up.to(output.device)
            bias = None if bias is None else bias.to(output.device)
        x = args[0].to(down.dtype)
        inner = unwrap_layer(layer)
        if isinstance(inner, nn.Conv2d):
            low = F.conv2d(x, down, None, inner.stride, inner.padding, inner.dilation)
            delta = F.conv2d(low, up)
        else:
            delta = F.linear(F.linear(x, down), up)
        added = delta * (scale * patch.strength)
        if bias is not None:
            added = added + spread_channels(bias, inner) * patch.strength
        return output + added.to(output.dtype)

    return add_delta
