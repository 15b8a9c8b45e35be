"""Small networks before keys and values of attention (hypernetworks, as A1111 defines them).

With x what an attention reads (its own states in self-attention, the text encoding in cross-attention)::

    k = W_K (x + s h_k(x))        v = W_V (x + s h_v(x))

where h is a stack of linear layers, each followed by the activation and the layer norm that the concept names. Several
of them on one layer follow one another in the order of attaching, each reading what the one before made. Low-rank
deltas beside the same layer read the outcome, as weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.composer.hooks import Patch, Probing
from conceptry.composer.pipelines import find_module, iter_cross_attention, unwrap_layer
from conceptry.composer.presence import find_source, mark_source
from conceptry.composer.tables import Tables, describe_mode
from conceptry.composer.tensors import to_torch
from conceptry.errors import IncompatibleError
from conceptry.formats.hypernetwork import HyperLayer, HypernetworkContents
from conceptry.kinds import ActivationId

# A1111 builds them without arguments, so that they have torch's default ones; rrelu draws nothing outside of training.
ACTIVATIONS: Final[Mapping[ActivationId, Callable[[Tensor], Tensor]]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "elu": F.elu,
    "swish": F.hardswish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "tanhshrink": F.tanhshrink,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "relu6": F.relu6,
    "rrelu": F.rrelu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
}


class Network:
    """One network h, computed in float32; its tensors follow what they are applied to from device to device."""

    def __init__(
        self, layers: Sequence[HyperLayer], activation: ActivationId, *, activate_output: bool
    ) -> None:
        self._layers = [_load_layer(layer) for layer in layers]
        self._activate = ACTIVATIONS[activation]
        self._activate_output = activate_output
        self._placed = {torch.device("cpu"): self._layers}

    @property
    def width(self) -> int:
        """How wide what it reads is, and what it makes."""
        return int(self._layers[0]["weight"].shape[1])

    @property
    def tensors(self) -> int:
        """How many tensors it has."""
        return sum(map(len, self._layers))

    def compute(self, x: Float[Tensor, "*places width"]) -> Float[Tensor, "*places width"]:
        """Returns h(x) in float32."""
        with torch.autocast(x.device.type, enabled=False):
            found = x.float()
            layers = self._place(x.device)
            for number, layer in enumerate(layers):
                found = F.linear(found, layer["weight"], layer["bias"])
                if number < len(layers) - 1 or self._activate_output:
                    found = self._activate(found)
                if "norm.weight" in layer:
                    size = (found.shape[-1],)
                    found = F.layer_norm(found, size, layer["norm.weight"], layer["norm.bias"])
            return found

    def _place(self, device: torch.device) -> list[dict[str, Tensor]]:
        placed = self._placed.get(device)
        if placed is None:
            placed = [{part: value.to(device) for part, value in layer.items()} for layer in self._layers]
            self._placed[device] = placed
        return placed


def _load_layer(layer: HyperLayer) -> dict[str, Tensor]:
    return {part: to_torch(tensor, dtype=torch.float32) for part, tensor in layer.list_parts()}


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """What stands before the keys of an attention, and before its values."""

    keys: Network
    values: Network

    @property
    def tensors(self) -> int:
        """How many tensors both have."""
        return self.keys.tensors + self.values.tensors


def load_pairs(contents: HypernetworkContents) -> dict[int, Pair]:
    """Returns the networks by the width of what they read."""

    def load(layers: Sequence[HyperLayer]) -> Network:
        return Network(layers, contents.activation, activate_output=contents.activate_output)

    return {
        width: Pair(load(contents.networks[width, "keys"]), load(contents.networks[width, "values"]))
        for width in contents.widths
    }


def find_attention(root: nn.Module) -> dict[str, int]:
    """Returns the width of what keys and values are made of, by path of each attention."""
    found = {}
    for path, module in root.named_modules():
        layers = [_find_projection(module, name) for name in ("to_k", "to_v")]
        widths = {int(layer.weight.shape[-1]) for layer in layers if layer is not None}
        if None not in layers and len(widths) == 1:
            found[path] = widths.pop()
    return found


def _find_projection(attention: nn.Module, name: str) -> Any:
    layer = attention._modules.get(name)
    inner = None if layer is None else unwrap_layer(layer)
    return inner if isinstance(getattr(inner, "weight", None), Tensor) else None


class HypernetworkPatch(Patch):
    """Lets keys and values of attention read what networks make of their inputs, while attached; no weight is touched.

    At strength 0 the inputs keep their bits. Gradients reach the inputs.

    Args:
        root: the UNet.
        pairs: by path of the attention inside ``root``.
        strength: linear in h; 1 is as trained. It may be set while attached.

    Raises:
        IncompatibleError: at ``attach``, for a path or a width that the UNet lacks; nothing is then changed.
    """

    def __init__(self, root: nn.Module, pairs: Mapping[str, Pair], *, strength: float = 1.0) -> None:
        super().__init__()
        self._root = root
        self._pairs = dict(pairs)
        self._tables = Tables()
        self.strength = strength

    def _put_in(self) -> None:
        rows = []
        readers = {id(attention) for _, attention in iter_cross_attention(self._root)}
        for path, pair in self._pairs.items():
            attention = find_module(self._root, path)
            for name, network in (("to_k", pair.keys), ("to_v", pair.values)):
                layer = None if attention is None else _find_projection(attention, name)
                if layer is None or layer.weight.shape[-1] != network.width:
                    raise IncompatibleError(
                        f"the base has no attention {path!r} that reads {network.width} values",
                        hint="concepts show tells which base the concept was made for",
                    )
                # Self-attention reads something else in each step: to keep that would be memory for nothing.
                rows.append((layer, network, self._tables if id(attention) in readers else None))
        for layer, network, tables in rows:
            hook = _make_hook(network, self, tables)
            self._handles.append(layer.register_forward_pre_hook(hook))

    def _take_out(self) -> None:
        self._tables.clear()


def _make_hook(
    network: Network, patch: HypernetworkPatch, tables: Tables | None
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
    def change_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # What a layer makes of vectors that are no prompt's is asked of the layer alone.
        if patch.strength == 0 or Probing.active:
            return None
        x: Tensor = args[0]
        state = describe_mode() if tables is not None else None
        known = tables.find(id(layer), x, state) if tables is not None else None
        if known is None:
            known = (x.float() + patch.strength * network.compute(x)).to(x.dtype)
            mark_source(known, find_source(x))
            if tables is not None:
                tables.keep(id(layer), x, state, known)
        return (known, *args[1:])

    return change_input
