"""The frozen denoiser in less memory while it is trained through: in fewer bits, in the host's memory, or both.

A layer's weight is made whole on its device for the moment of its use. Nothing of it is saved for the backward pass,
which makes it whole once more. What is trained, activations and gradients are as ever, and text encoders keep their
weights: where they are frozen, prompts are encoded once. The base's own bytes wait in the host's memory, so that this
saves memory on an accelerator, and are put back bit for bit.

int8  a scale for each output, the largest magnitude / 127, rounded to nearest
nf4   4-bit NormalFloat in blocks of 64 (QLoRA, arXiv 2305.14314, section 3), by bitsandbytes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from conceptry.errors import MissingExtraError, UsageError
from conceptry.trainer.denoisers import get_denoiser
from conceptry.trainer.learners import Learner
from conceptry.trainer.settings import BasePrecision, Settings

LEAST_NUMBERS: Final = 256
"""Smaller weights are left alone: packing them saves nothing worth an unpacking."""

_NF4_BLOCK: Final = 64

Make = Callable[[Sequence[Tensor], torch.dtype], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A weight as it is kept, and how it is made whole."""

    values: tuple[Tensor, ...]
    make: Make
    device: torch.device
    """Where it is used."""

    @property
    def size_bytes(self) -> int:
        """What it takes where it is kept."""
        return sum(value.nbytes for value in self.values)

    def unpack(self, kind: torch.dtype) -> Tensor:
        """Returns the weight in precision ``kind`` on the device where it is used."""
        return self.make([value.to(self.device, non_blocking=True) for value in self.values], kind)

    def move_to_host(self) -> Packed:
        """Returns the same, kept in the host's memory."""
        return replace(self, values=tuple(_to_host(value) for value in self.values))


def _to_host(value: Tensor) -> Tensor:
    if value.device.type == "cpu":
        return value
    host = torch.empty_like(value, device="cpu", pin_memory=value.device.type == "cuda")
    return host.copy_(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRow:
    """One way to keep frozen weights."""

    id: BasePrecision
    pack: Callable[[Tensor], Packed]
    bits: float | None
    """For each number, what belongs to its block included; None is the base's own."""


def _keep_whole(weight: Tensor) -> Packed:
    return Packed((weight,), lambda values, kind: values[0].to(kind), weight.device)


def _pack_int8(weight: Tensor) -> Packed:
    rows = weight.flatten(1).abs().amax(dim=1).float()
    scale = (rows / 127).clamp(min=torch.finfo(torch.float32).tiny).view(-1, *[1] * (weight.ndim - 1))
    whole = (weight.float() / scale).round().to(torch.int8)
    return Packed((whole, scale), lambda values, kind: values[0].to(kind) * values[1].to(kind), weight.device)


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

    def make(parts: Sequence[Tensor], kind: torch.dtype) -> Tensor:
        moved = copy(state)
        moved.absmax, moved.code = parts[1], parts[2]
        whole: Tensor = functional.dequantize_4bit(parts[0], moved)
        return whole.to(dtype=kind, memory_format=layout)

    return Packed((values, state.absmax, state.code), make, weight.device)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and not weight.is_contiguous()


PRECISIONS: Final[tuple[PrecisionRow, ...]] = (
    PrecisionRow(id="full", pack=_keep_whole, bits=None),
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
        answer: Tensor = _Product.apply(x, self, kind)  # type: ignore[no-untyped-call]
        return answer


class _PackedLinear(_PackedLayer, nn.Linear):  # type: ignore[override]
    pass


class _PackedConv2d(_PackedLayer, nn.Conv2d):  # type: ignore[override]
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
            flat = gradient.reshape(-1, gradient.shape[-1])
            inputs = (flat @ weight).reshape(ctx.shape)
        else:
            inputs = conv2d_input(  # type: ignore[no-untyped-call]
                ctx.shape, weight, gradient, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        return inputs.to(ctx.like), None, None


_CLASSES: Final[Mapping[type[nn.Module], type[_PackedLayer]]] = {
    nn.Linear: _PackedLinear,
    nn.Conv2d: _PackedConv2d,
}


@contextmanager
def packed_base(pipeline: Any, settings: Settings, learners: Sequence[Learner] = ()) -> Iterator[None]:
    """Keeps the frozen weights of the denoiser as ``settings`` say while the block runs; then all is as before.

    Args:
        pipeline: prepared for training.
        settings: with ``base_precision`` and ``offload_base``.
        learners: those at work. What they train of the base itself is left alone.

    Raises:
        UsageError: if they leave nothing of the denoiser frozen.
        MissingExtraError: if the package that packs is not installed.
    """
    if not _is_asked(settings):
        yield
        return
    trained = {id(value) for learner in learners for value in learner.parameters.values()}
    layers = [layer for layer in iter_packable(pipeline) if id(layer.weight) not in trained]
    if not layers:
        raise UsageError(
            "nothing of the denoiser stays frozen that could be packed",
            where="settings.base_precision" if settings.base_precision != "full" else "settings.offload_base",
            hint="train a LoRA, or leave this setting as it is",
        )
    kept: list[tuple[Any, nn.Parameter]] = []
    try:
        for layer in layers:
            kept.append((layer, layer.weight))
            _pack_layer(layer, PRECISION_BY_ID[settings.base_precision], offload=settings.offload_base)
        yield
    finally:
        for layer, weight in kept:
            _restore_layer(layer, weight)


def _is_asked(settings: Settings) -> bool:
    return settings.offload_base or settings.base_precision != "full"


def iter_packable(pipeline: Any) -> Iterator[Any]:
    """Returns the layers of the denoiser whose weights can be packed."""
    for layer in get_denoiser(pipeline).modules():
        usual = not isinstance(layer, nn.Conv2d) or (
            layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        )
        if type(layer) in _CLASSES and usual and layer.weight.numel() >= LEAST_NUMBERS:
            yield layer


def count_packed_bytes(pipeline: Any, settings: Settings) -> int:
    """Returns how many bytes fewer the denoiser has on its device in the loop; what is trained is not told apart."""
    if not _is_asked(settings):
        return 0
    weights = [(layer.weight.numel(), layer.weight.element_size()) for layer in iter_packable(pipeline)]
    if settings.offload_base:
        sizes = [int(count * size) for count, size in weights]
        return sum(sizes) - max(sizes, default=0)  # one layer's is there while it is used
    bits = PRECISION_BY_ID[settings.base_precision].bits or 0
    return sum(int(count * (size - bits / 8)) for count, size in weights)


def _pack_layer(layer: Any, row: PrecisionRow, *, offload: bool) -> None:
    weight: nn.Parameter = layer.weight
    if offload:
        packed = row.pack(weight.data).move_to_host()
        whole = packed.values[0] if row.bits is None else _to_host(weight.data)
    else:
        packed, whole = row.pack(weight.data), _to_host(weight.data)
    layer.kind = weight.dtype
    del layer._parameters["weight"]
    layer.packed = packed
    layer.__class__ = _CLASSES[type(layer)]
    weight.data = whole


def _restore_layer(layer: Any, weight: nn.Parameter) -> None:
    if not isinstance(layer, _PackedLayer):
        return
    weight.data = weight.data.to(layer.packed.device)
    own: Any = next(own for own, packed in _CLASSES.items() if type(layer) is packed)
    layer.__class__ = own
    for name in ("packed", "kind"):
        vars(layer).pop(name)
    # In its old place among the parameters, so that every listing has its old order.
    others = dict(layer._parameters)
    layer._parameters.clear()
    layer._parameters.update({"weight": weight, **others})
