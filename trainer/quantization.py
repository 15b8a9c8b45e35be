"""The frozen denoiser in fewer bits while it is trained through: weights are made whole layer by layer and dropped.

Text encoders keep theirs: where they are frozen, prompts are encoded once. What is trained, activations and gradients
keep their precision, and a layer with packed weights saves nothing for the backward pass: it unpacks once more. The
base's own bytes wait in the host's memory, so that this saves memory on an accelerator, and are put back bit for bit.

int8  a scale for each output, the largest magnitude / 127, rounded to nearest
nf4   4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314, section 3), by bitsandbytes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptry.errors import MissingExtraError, UsageError
from conceptry.trainer.denoisers import get_denoiser
from conceptry.trainer.learners import Learner
from conceptry.trainer.settings import BasePrecision

LEAST_NUMBERS: Final = 256
"""Smaller weights are left alone: packing them saves nothing worth an unpacking."""

_NF4_BLOCK: Final = 64

Unpack = Callable[[torch.dtype], Tensor]


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight in fewer bits, and how it is made whole in a given precision."""

    size_bytes: int
    unpack: Unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRow:
    """One way to store frozen weights."""

    id: BasePrecision
    pack: Callable[[Tensor], Packed]
    bits: float
    """For each number, what belongs to its block or row included."""


def _pack_int8(weight: Tensor) -> Packed:
    rows = weight.flatten(1).abs().amax(dim=1).float()
    scale = (rows / 127).clamp(min=torch.finfo(torch.float32).tiny).view(-1, *[1] * (weight.ndim - 1))
    values = (weight.float() / scale).round().to(torch.int8)

    def unpack(kind: torch.dtype) -> Tensor:
        return values.to(kind) * scale.to(kind)

    return Packed(values.nbytes + scale.nbytes, unpack)


def _pack_nf4(weight: Tensor) -> Packed:
    try:
        functional: Any = import_module("bitsandbytes.functional")
    except ImportError as error:
        raise MissingExtraError(
            f"4-bit weights need the package bitsandbytes, which cannot be imported: {error}",
            where="settings.base_precision",
            hint="pip install 'conceptry[optimizers]', or --set base_precision=int8",
        ) from error
    values, state = functional.quantize_4bit(
        weight.float().contiguous(), quant_type="nf4", blocksize=_NF4_BLOCK
    )
    layout = torch.channels_last if _is_channels_last(weight) else torch.contiguous_format

    def unpack(kind: torch.dtype) -> Tensor:
        whole: Tensor = functional.dequantize_4bit(values, state)
        return whole.to(dtype=kind, memory_format=layout)

    return Packed(values.nbytes + state.absmax.nbytes, unpack)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and not weight.is_contiguous()


PRECISIONS: Final[tuple[PrecisionRow, ...]] = (
    PrecisionRow(id="int8", pack=_pack_int8, bits=8.0),
    PrecisionRow(id="nf4", pack=_pack_nf4, bits=4.5),
)
PRECISION_BY_ID: Final[Mapping[str, PrecisionRow]] = {row.id: row for row in PRECISIONS}


class _PackedLayer(nn.Module):
    """A layer whose weight is made whole whenever somebody reads it. It is of its own class as well."""

    packed: Packed
    kind: torch.dtype

    @property
    def weight(self) -> Tensor:
        """The weight as it is used, for whoever looks at shapes or values."""
        return self.packed.unpack(self.kind)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer answers with its unpacked weight."""
        kind = (
            torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        )
        answer: Tensor = _Product.apply(x, self, kind)
        return answer


class _PackedLinear(_PackedLayer, nn.Linear):
    pass


class _PackedConv2d(_PackedLayer, nn.Conv2d):
    pass


class _Product(torch.autograd.Function):
    """x -> layer(x) with a weight and a bias that are frozen; only the shape of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, kind: torch.dtype) -> Tensor:
        ctx.layer, ctx.shape, ctx.like = layer, x.shape, x.dtype
        weight = layer.packed.unpack(kind)
        bias = None if layer.bias is None else layer.bias.to(kind)
        if isinstance(layer, nn.Linear):
            return F.linear(x.to(kind), weight, bias)
        return F.conv2d(x.to(kind), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,), layer = gradients, ctx.layer
        weight = layer.packed.unpack(gradient.dtype)
        if isinstance(layer, nn.Linear):
            inputs = gradient @ weight
        else:
            inputs = nn.grad.conv2d_input(
                ctx.shape, weight, gradient, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        return inputs.to(ctx.like), None, None


_CLASSES: Final[Mapping[type[nn.Module], type[_PackedLayer]]] = {
    nn.Linear: _PackedLinear,
    nn.Conv2d: _PackedConv2d,
}


@contextmanager
def packed_base(pipeline: Any, precision: BasePrecision, learners: Mapping[int, Learner]) -> Iterator[None]:
    """Keeps the frozen weights of the denoiser packed while the block runs; then all is as before.

    Args:
        pipeline: prepared for training.
        precision: how to pack; ``full`` changes nothing.
        learners: those at work. What they train of the base itself is left alone.

    Raises:
        UsageError: if they leave nothing of the base frozen.
        MissingExtraError: if the package that packs is not installed.
    """
    if precision == "full":
        yield
        return
    trained = {id(value) for learner in learners.values() for value in learner.parameters.values()}
    layers = [layer for layer in iter_packable(pipeline) if id(layer.weight) not in trained]
    if not layers:
        raise UsageError(
            "nothing of the denoiser stays frozen that could be packed",
            where="settings.base_precision",
            hint="train a LoRA, or leave base_precision as it is",
        )
    kept: list[tuple[Any, nn.Parameter]] = []
    try:
        for layer in layers:
            kept.append((layer, layer.weight))
            _pack_layer(layer, PRECISION_BY_ID[precision])
        yield
    finally:
        for layer, weight in kept:
            _restore_layer(layer, weight)


def iter_packable(pipeline: Any) -> Iterator[Any]:
    """Returns the layers of the denoiser whose weights can be packed."""
    for layer in get_denoiser(pipeline).modules():
        usual = not isinstance(layer, nn.Conv2d) or (
            layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        )
        if type(layer) in _CLASSES and usual and layer.weight.numel() >= LEAST_NUMBERS:
            yield layer


def count_packed_bytes(pipeline: Any, precision: BasePrecision) -> int:
    """Returns how many bytes fewer the base has on its device while it is packed; what is trained is not told apart."""
    if precision == "full":
        return 0
    bits = PRECISION_BY_ID[precision].bits
    sizes = [(layer.weight.numel(), layer.weight.element_size()) for layer in iter_packable(pipeline)]
    return sum(int(count * (size - bits / 8)) for count, size in sizes)


def _pack_layer(layer: Any, row: PrecisionRow) -> None:
    weight: nn.Parameter = layer.weight
    packed = row.pack(weight.data)
    layer.kind = weight.dtype
    layer.device_of_weight = weight.device
    del layer._parameters["weight"]
    layer.packed = packed
    layer.__class__ = _CLASSES[type(layer)]
    if weight.device.type != "cpu":
        weight.data = weight.data.to("cpu")


def _restore_layer(layer: Any, weight: nn.Parameter) -> None:
    if not isinstance(layer, _PackedLayer):
        return
    weight.data = weight.data.to(layer.device_of_weight)
    layer.__class__ = next(own for own, packed in _CLASSES.items() if type(layer) is packed)
    for name in ("packed", "kind", "device_of_weight"):
        vars(layer).pop(name)
    # In its old place among the parameters, so that every listing has its old order.
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer._parameters.update({"weight": weight, **others})
