"""Weights that every other algorithm of the LoRA family makes of the base's own, put in their place and out again.

Strength s gives W + s (W' - W) with W' what the algorithm makes of the base's own weight W at strength 1: for additive
algorithms s times the delta, for DoRA (arXiv 2402.09353) W' = m (W + D) / |W + D|, for OFT and BOFT W' = R W. Deltas of
several concepts on one weight add up, each made of the base's own weight, so that their order does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from conceptry.composer.full import WeightPatch
from conceptry.composer.lora import LoraFactors
from conceptry.composer.pipelines import find_module, unwrap_layer
from conceptry.composer.standins import Addition, Contribution, Replacement, read_original
from conceptry.composer.tensors import to_torch
from conceptry.errors import IncompatibleError
from conceptry.formats.deltas import dense_bias_delta, dense_delta, fold_core, require_fit
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.tensors import RawTensor

_FACTORED = frozenset({"lora", "locon"})


class DeltaPatch(WeightPatch):
    """Puts the weights that ``modules`` make of the base's own in their place while attached.

    What they add is computed once, at the first ``attach``, in float32; the base's own bytes come back at ``detach``.

    Args:
        root: the component, such as the UNet.
        modules: by module path inside ``root``.
        strength: linear; 1 is as trained. It may be set while attached.

    Raises:
        IncompatibleError: at ``attach``, for a path or a shape that the component lacks; nothing is then changed.
    """

    def __init__(self, root: nn.Module, modules: Mapping[str, LoraModule], *, strength: float = 1.0) -> None:
        super().__init__(root, {}, strength=strength)
        self._modules = dict(modules)

    def _put_in(self) -> None:
        layers = {path: require_place(self._root, path, module) for path, module in self._modules.items()}
        for path, layer in layers.items():
            self._contributions |= _find_additions(path, self._modules[path], layer)
        super()._put_in()


def _find_additions(path: str, module: LoraModule, layer: Any) -> dict[str, Contribution]:
    if "value" in module.parts:
        # Alone at strength 1 it is there bit for bit, as a sum of the weight and a difference would not be.
        value = to_torch(module.parts["value"], dtype=torch.float32).reshape(layer.weight.shape)
        return {f"{path}.weight": Replacement(value)}
    own = getattr(layer, "bias", None)
    found = {
        "weight": dense_delta(module, tuple(layer.weight.shape), _widen(layer.weight), "float32"),
        "bias": dense_bias_delta(module, None if own is None else _widen(own), "float32"),
    }
    return {
        f"{path}.{leaf}": Addition(torch.from_numpy(delta))
        for leaf, delta in found.items()
        if delta is not None
    }


def _widen(tensor: Tensor) -> Any:
    return read_original(tensor).detach().to("cpu", torch.float32).numpy()


# --- what goes where -----------------------------------------------------------------------------------------------


def is_factored(module: LoraModule, layer: nn.Module) -> bool:
    """Returns whether factors beside ``layer`` do what ``module`` says, so that no weight is touched."""
    return module.algorithm in _FACTORED and isinstance(unwrap_layer(layer), nn.Linear | nn.Conv2d)


def require_place(root: nn.Module, path: str, module: LoraModule) -> Any:
    """Returns the layer at ``path`` that ``module`` fits. Raises IncompatibleError, naming the layer."""
    found = find_module(root, path)
    layer = None if found is None else unwrap_layer(found)
    weight = getattr(layer, "weight", None)
    if layer is None or not isinstance(weight, Tensor):
        raise IncompatibleError(f"the base has no layer {path!r} with a weight")
    if not weight.is_floating_point():
        raise IncompatibleError(
            f"the weight of {path!r} is stored as {str(weight.dtype).removeprefix('torch.')}, which cannot be changed",
            hint="open the base without quantisation",
        )
    try:
        require_fit(module, tuple(weight.shape))
    except IncompatibleError as error:
        raise IncompatibleError(f"{path!r}: {error.message}", hint=error.hint) from error
    _check_bias(layer, path, module)
    return layer


def _check_bias(layer: Any, path: str, module: LoraModule) -> None:
    parts = [part for part in ("diff_b", "bias", "b_norm") if part in module.parts]
    for part in parts:
        found, outputs = module.parts[part].shape, layer.weight.shape[0]
        if found != (outputs,):
            raise IncompatibleError(f"{path!r}: its {part} is {list(found)}, the layer has {outputs} outputs")
    hookable = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if parts and getattr(layer, "bias", None) is None and not hookable:
        raise IncompatibleError(f"{path!r} of the base has no bias to add {parts[0]} to")


def load_factors(module: LoraModule, layer: Any) -> LoraFactors:
    """Returns the factors in the shape, precision and place of ``layer``; a core is folded into the first of them."""
    weight = unwrap_layer(layer).weight
    rank, shape = module.rank, tuple(weight.shape)
    # What is offloaded has no place of its own; the factors go where the layer's output is.
    place = {"device": "cpu" if weight.is_meta else weight.device, "dtype": weight.dtype}
    down = fold_core(module) if "core" in module.parts else module.down
    bias = dense_bias_delta(module, dtype="float32")
    return LoraFactors(
        to_torch(down.reshape((rank, *shape[1:])), **place),
        to_torch(module.up.reshape((shape[0], rank, *(1 for _ in shape[2:]))), **place),
        module.scale,
        None if bias is None else to_torch(RawTensor.from_numpy(bias), **place),
    )
