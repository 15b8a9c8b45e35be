"""What stands beside one layer while it is trained, one class for each algorithm, and the table of them.

lora   W + s U D (arXiv 2106.09685, eq. 3): D begins as Kaiming uniform noise, U at zero
dora   m (W + s U D) / |W + s U D|, a norm for each output (arXiv 2402.09353, eq. 5); as in its section 4.3 no gradient
       passes through the norm
lidb   W + s (A a)(b B) with frozen orthonormal A and B (HyperDreamBooth, arXiv 2307.06949, section 3.2)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch
from conceptry.composer.lora import LoraFactors, LoraPatch, spread_channels
from conceptry.composer.tensors import from_torch
from conceptry.formats.lora import LoraModule

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One layer to adapt, the size of its adapter, and the generator of what it begins with."""

    component: ComponentName
    path: str
    layer: Layer
    rank: int
    alpha: float
    frozen_outputs: int
    frozen_inputs: int
    generator: torch.Generator


class Adapter(ABC):
    """The trained tensors of one layer."""

    def __init__(self, place: Place) -> None:
        self.component, self.path, self.layer = place.component, place.path, place.layer
        self.alpha, self.rank = place.alpha, place.rank

    @property
    def scale(self) -> float:
        """What the delta is multiplied by."""
        return self.alpha / self.rank

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by short name."""

    @property
    @abstractmethod
    def factors(self) -> tuple[Float[Tensor, "rank ..."], Float[Tensor, "out rank ..."]]:
        """The two factors of the delta as they are now; gradients reach what is trained."""

    def change(self, x: Tensor, output: Tensor) -> Tensor:
        """Returns the layer's output for ``x`` with the adapter in effect, given the ``output`` without it."""
        return output + (self.scale * apply_factors(self.layer, x, *self.factors)).to(output.dtype)

    def to_module(self) -> LoraModule:
        """Returns what is stored."""
        down, up = self.factors
        return LoraModule.of_factors(down=from_torch(down), up=from_torch(up), alpha=self.alpha)


def apply_factors(layer: Layer, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Returns ``up(down(x))`` as the layer itself would apply a weight of its shape."""
    x = x.to(down.dtype)
    if isinstance(layer, nn.Conv2d):
        low = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return F.conv2d(low, up)
    return F.linear(F.linear(x, down), up)


class LowRank(Adapter):
    """LoRA: both factors are trained."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        weight = place.layer.weight
        down = _draw_uniform((place.rank, *weight.shape[1:]), place)
        up = torch.zeros((weight.shape[0], place.rank, *[1] * (weight.ndim - 2)))
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(up.to(weight.device))

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """``down`` and ``up``."""
        return {"down": self.down, "up": self.up}

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The parameters themselves."""
        return self.down, self.up


class Decomposed(LowRank):
    """DoRA: the magnitude of each output is trained beside the factors of its direction."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        norm = _norm_of_outputs(place.layer.weight.detach().float())
        self.magnitude = nn.Parameter(norm.clone())

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """``down``, ``up`` and ``magnitude`` [outputs]."""
        return {"down": self.down, "up": self.up, "magnitude": self.magnitude}

    def change(self, x: Tensor, output: Tensor) -> Tensor:
        """Returns the output of m (W + s U D) / |W + s U D|; a bias stays as it is."""
        bias = self.layer.bias
        plain = output if bias is None else output - spread_channels(bias, self.layer)
        moved = plain + self.scale * apply_factors(self.layer, x, self.down, self.up)
        shrunk = spread_channels(self.magnitude / self._measure(), self.layer)
        return output + (shrunk * moved - plain).to(output.dtype)

    @torch.no_grad()
    def _measure(self) -> Float[Tensor, " outputs"]:
        weight = self.layer.weight.float()
        with torch.autocast(weight.device.type, enabled=False):  # use computes the norm in float32, too
            delta = (self.up.flatten(1) @ self.down.flatten(1)).reshape(weight.shape)
            norm = _norm_of_outputs(weight + self.scale * delta)
        return torch.where(norm == 0, torch.ones_like(norm), norm)

    def to_module(self) -> LoraModule:
        """Returns the factors and ``magnitude_out`` [outputs, 1, ...]."""
        magnitude = self.magnitude.reshape(-1, *[1] * (self.layer.weight.ndim - 1))
        parts = {"down": self.down, "up": self.up, "magnitude_out": magnitude}
        stored = {name: from_torch(value) for name, value in parts.items()}
        return LoraModule(algorithm="dora", parts=stored, numbers={"alpha": self.alpha})


class Lightweight(Adapter):
    """LiDB: small factors are trained between two frozen orthonormal ones; the products are stored."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        weight = place.layer.weight
        outputs, inputs = weight.shape[0], math.prod(weight.shape[1:])
        wide, narrow = min(place.frozen_outputs, outputs), min(place.frozen_inputs, inputs)
        self.basis_up = _draw_orthonormal(outputs, wide, place.generator).to(weight.device)
        self.basis_down = _draw_orthonormal(inputs, narrow, place.generator).T.contiguous().to(weight.device)
        down = torch.randn((place.rank, narrow), generator=place.generator) / math.sqrt(narrow)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros((wide, place.rank), device=weight.device))

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """``down`` [rank, b] and ``up`` [a, rank]."""
        return {"down": self.down, "up": self.up}

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The products with the frozen factors."""
        shape = self.layer.weight.shape
        with torch.autocast(self.up.device.type, enabled=False):  # the products are stored in float32, too
            down = (self.down @ self.basis_down).reshape(-1, *shape[1:])
            up = (self.basis_up @ self.up).reshape(shape[0], -1, *[1] * (len(shape) - 2))
        return down, up


def _draw_uniform(shape: tuple[int, ...], place: Place) -> Tensor:
    bound = 1 / math.sqrt(math.prod(shape[1:]))  # Kaiming uniform with a = sqrt(5), as linear layers begin
    return (torch.rand(shape, generator=place.generator) * 2 - 1) * bound


def _draw_orthonormal(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    drawn = torch.randn((rows, columns), generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn)[0]
    return basis.float()


def _norm_of_outputs(weight: Tensor) -> Float[Tensor, " outputs"]:
    norm: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norm


class AdapterPatch(Patch):
    """Lets each adapter change the output of its layer while attached; weights are not touched."""

    def __init__(self, root: nn.Module, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self._root = root
        self._adapters = tuple(adapters)

    def _put_in(self) -> None:
        for adapter in self._adapters:
            self._handles.append(adapter.layer.register_forward_hook(_make_hook(adapter)))


def _make_hook(adapter: Adapter) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def change_output(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return adapter.change(args[0], output)

    return change_output


def _patch_low_rank(root: nn.Module, adapters: Sequence[Adapter]) -> Patch:
    factors = {adapter.path: LoraFactors(*adapter.factors, adapter.scale) for adapter in adapters}
    return LoraPatch(root, factors)


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One algorithm: what it makes beside a layer, and what puts adapters into a network."""

    make: Callable[[Place], Adapter]
    patch: Callable[[nn.Module, Sequence[Adapter]], Patch]


ADAPTERS: Final[Mapping[str, AdapterRow]] = {
    "lora": AdapterRow(LowRank, _patch_low_rank),
    "dora": AdapterRow(Decomposed, AdapterPatch),
    "lidb": AdapterRow(Lightweight, AdapterPatch),
}
