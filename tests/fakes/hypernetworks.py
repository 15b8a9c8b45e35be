"""Hypernetworks as A1111 trains and saves them: linear layer, activation, norm and dropout, in torch's own pickle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

ACTIVATIONS = {"linear": None, None: None, "relu": nn.ReLU, "swish": nn.Hardswish}


def make_network(width: int, structure: Sequence[float], **settings: Any) -> nn.Sequential:
    """Returns one network with random values; dropout stands behind all layers but the last two."""
    modules: list[nn.Module] = []
    sizes = [int(width * share) for share in structure]
    activation = ACTIVATIONS[settings.get("activation_func")]
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        is_last = place == len(sizes) - 2
        modules.append(nn.Linear(inputs, outputs))
        if activation is not None and (not is_last or settings.get("activate_output", True)):
            modules.append(activation())
        if settings.get("is_layer_norm"):
            norm = nn.LayerNorm(outputs)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            modules.append(norm)
        if settings.get("use_dropout") and place < len(sizes) - 3:
            modules.append(nn.Dropout(0.3))
    return nn.Sequential(*modules)


def save_hypernetwork(path: Path, **settings: Any) -> dict[int, tuple[nn.Sequential, nn.Sequential]]:
    """Returns the networks that were written to ``path``, by width: before keys, before values."""
    networks, document = make_document(**settings)
    torch.save(document, path)
    return networks


def make_document(
    *,
    widths: Sequence[int] = (320, 768),
    structure: Sequence[float] = (1.0, 2.0, 1.0),
    old: bool = False,
    **settings: Any,
) -> tuple[dict[int, tuple[nn.Sequential, nn.Sequential]], dict[Any, Any]]:
    """Returns the networks by width, and what A1111 writes of them.

    ``old`` is the first spelling, in which two layers were called linear1 and linear2 and nothing was said of them.
    """
    networks = {
        width: (make_network(width, structure, **settings), make_network(width, structure, **settings))
        for width in widths
    }

    def spell(network: nn.Sequential) -> dict[str, torch.Tensor]:
        state = nn.ModuleDict({"linear": network}).state_dict()
        if not old:
            return state
        names = {name: name.split(".") for name in state}
        return {f"linear{int(number) + 1}.{part}": state[name] for name, (_, number, part) in names.items()}

    document: dict[Any, Any] = {width: tuple(map(spell, pair)) for width, pair in networks.items()}
    if not old:
        document |= {
            "step": 10000,
            "name": "blue-imp",
            "layer_structure": list(structure),
            "activation_func": None,
            "is_layer_norm": False,
            "weight_initialization": "Normal",
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "activate_output": True,
            "optional_info": None,
            **settings,
        }
    return networks, document
