"""Adapters that name their modules by position (cloneofsimo): which layer of SD1 or SD2 each number stands for.

The later form calls them ``unet:0:up``; the first is a bare list of one network's factors.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from conceptry.bases import ComponentName
from conceptry.errors import InvalidFileError
from conceptry.formats.companions import find_companions
from conceptry.formats.contract import Detection, Format, Reading, ReadRequest, share_of
from conceptry.formats.data_files import load_table
from conceptry.formats.families import Seen, judge_family
from conceptry.formats.header import Header
from conceptry.formats.lora import LoraContents, LoraModule, check_lora
from conceptry.formats.tensors import read_tensors
from conceptry.formats.triggers import find_triggers

_NAME: Final = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)", re.ASCII)
# The first form: a list of factors of one network, up and down in turn.
_BARE: Final = re.compile(r"0|[1-9]\d{0,3}", re.ASCII)
_UNET: Final = ComponentName("unet")
_TEXT: Final = ComponentName("text_encoder")
_DEFAULT_CLASSES: Final = (("CrossAttention", "Attention", "GEGLU"), ("CrossAttention", "Attention"))
_GATED: Final = 8  # GEGLU makes four times the channels, and a gate for each


@dataclass(frozen=True, slots=True)
class Layer:
    """One module, and the sizes of its weight; a size is None where it is that of what cross-attention reads."""

    path: str
    outputs: int | None
    inputs: int | None


def list_positional_formats() -> tuple[Format, ...]:
    """Returns the one row for adapters that are named by position."""
    row = Format(
        id="lora_cloneofsimo",
        kind="lora",
        title="low-rank adapter, cloneofsimo (modules by position)",
        detect=detect_positional,
        read=read_positional,
        stored_kind="lora",
    )
    return (row,)


def detect_positional(header: Header) -> Detection | None:
    """Returns what a file with names such as ``unet:0:up`` is, or None where it has none."""
    pairs = _pair_up(header)
    if not pairs:
        return None
    modules = resolve_positions(header)
    seen = [Seen(name, header.tensors[parts["down"]].shape[-1]) for name, parts in modules.items()]
    verdict = judge_family(seen, header.metadata)
    numbered = {name: "low-rank factor by position" for parts in pairs.values() for name in parts.values()}
    placed = {parts[part]: f"lora {part} of {name}" for name, parts in modules.items() for part in parts}
    companions = find_companions(header, numbered.keys())
    roles = numbered | placed | dict(companions.describe(header))
    reasons = [f"{len(numbered)} names are of cloneofsimo, by position"]
    if not modules:
        reasons.append("the positions are of no network that is known; its modules cannot be told")
    ranks = Counter(header.tensors[parts["down"]].shape[0] for parts in modules.values())
    return Detection(
        roles=roles,
        confidence=share_of(roles, len(header.tensors)) * (verdict.confidence or 0.3),
        family=verdict.family,
        family_is_certain=verdict.certain,
        reasons=(*reasons, *verdict.reasons),
        triggers=tuple(dict.fromkeys((*companions.words, *find_triggers(header.metadata)))),
        algorithms=("lora",),
        ranks=dict(sorted(ranks.items())),
    )


def read_positional(request: ReadRequest) -> Reading:
    """Returns the canonical modules, scale 1 as their program applies them, and the words beside them.

    Raises:
        InvalidFileError: if the shapes fit no order of layers that is known, or a tensor would be lost.
    """
    header = request.header
    modules = resolve_positions(header)
    numbered = {name for parts in modules.values() for name in parts.values()}
    companions = find_companions(header, numbered)
    lost = sorted(header.tensors.keys() - numbered - companions.tensors)
    if not modules or lost:
        raise InvalidFileError(
            f"the positions in {request.name!r} are of no network that is known"
            + (f"; {lost[0]!r} has no place" if lost else ""),
            hint="it can be converted by the program that wrote it, for the base it was made for",
        )
    tensors = read_tensors(request.path, numbered)
    contents = LoraContents(
        modules={
            name: LoraModule.of_factors(
                down=tensors[parts["down"]],
                up=tensors[parts["up"]],
                alpha=float(tensors[parts["down"]].shape[0]),
                rule="one",
            )
            for name, parts in modules.items()
        }
    )
    check_lora(contents)
    note = "positions were told by shapes; no alpha is stored, so every scale is 1, as its program applies it"
    return Reading(contents=(contents, *companions.read(request)), notes=(note,))


# --- position -> module --------------------------------------------------------------------------------------------


def resolve_positions(header: Header) -> Mapping[str, Mapping[str, str]]:
    """Returns ``{component}.{module}`` -> part -> tensor name; nothing where no known order fits all shapes."""
    pairs = _pair_up(header)
    resolved: dict[str, Mapping[str, str]] = {}
    for component in (_UNET, _TEXT):
        mine = {number: parts for (owner, number), parts in pairs.items() if owner == component}
        if not mine:
            continue
        order = _find_order(mine, component, header)
        if order is None:
            return {}
        resolved |= {f"{component}.{order[number].path}": parts for number, parts in mine.items()}
    return resolved


_Pairs = Mapping[int, Mapping[str, str]]


def _find_order(pairs: _Pairs, component: ComponentName, header: Header) -> Sequence[Layer] | None:
    if component == _UNET:
        orders = (order for classes in _list_classes(header) for order in _list_unet_orders(classes))
        return next((order for order in orders if _fits(pairs, order, header)), None)
    return next((order for order in _list_text_orders(len(pairs)) if _fits(pairs, order, header)), None)


def _pair_up(header: Header) -> dict[tuple[str, int], dict[str, str]]:
    pairs: dict[tuple[str, int], dict[str, str]] = {}
    for name in header.tensors:
        match = _NAME.fullmatch(name)
        if match:
            pairs.setdefault((match.group(1), int(match.group(2))), {})[match.group(3)] = name
    return pairs or _pair_up_list(header)


def _pair_up_list(header: Header) -> dict[tuple[str, int], dict[str, str]]:
    """Returns the factors of a bare list, where they are those of a network that is known."""
    if "0" not in header.tensors or not all(map(_BARE.fullmatch, header.tensors)):
        return {}
    listed: dict[int, dict[str, str]] = {}
    for name in header.tensors:
        listed.setdefault(int(name) // 2, {})["down" if int(name) % 2 else "up"] = name
    if _find_order(listed, _UNET, header) is not None:
        return {(_UNET, number): parts for number, parts in listed.items()}
    # Of text all layers have one width, so that shapes tell them from anything but text.
    widths = {size for name, info in header.tensors.items() for size in info.shape[int(name) % 2 :][:1]}
    if len(widths) == 1 and _find_order(listed, _TEXT, header) is not None:
        return {(_TEXT, number): parts for number, parts in listed.items()}
    return {}


def _fits(pairs: _Pairs, order: Sequence[Layer], header: Header) -> bool:
    if pairs.keys() != set(range(len(order))):
        return False
    return all(_fits_layer(parts, order[number], header) for number, parts in pairs.items())


def _fits_layer(parts: Mapping[str, str], layer: Layer, header: Header) -> bool:
    if parts.keys() != {"up", "down"}:
        return False
    up, down = (header.tensors[parts[part]].shape for part in ("up", "down"))
    if len(up) != 2 or len(down) != 2:
        return False
    return layer.outputs in (None, up[0]) and layer.inputs in (None, down[1])


def _list_classes(header: Header) -> tuple[tuple[str, ...], ...]:
    """Returns the classes that the file names; where it names none, those that its program had by itself."""
    try:
        classes = json.loads(header.metadata.get("unet", "null"))
    except (ValueError, RecursionError):
        classes = None
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        return (tuple(classes),)
    return _DEFAULT_CLASSES


def _list_unet_orders(classes: Sequence[str]) -> Iterator[tuple[Layer, ...]]:
    table = load_table("positional")
    if not set(classes) <= table["classes"].keys():
        return
    chosen = {layer for name in classes for layer in table["classes"][name]}
    for order in table["orders"]:
        yield tuple(list_unet_layers(tuple(group for group in order if group in chosen)))


def list_unet_layers(groups: Sequence[str]) -> Iterator[Layer]:
    """Returns the layers of SD1 and SD2 that ``groups`` name (attn1, attn2, ff), in the order of the network."""
    table = load_table("positional")
    for block, channels in table["blocks"]:
        for group in groups:
            for path in table["layers"][group]:
                reads_text = path.startswith(("attn2.to_k", "attn2.to_v"))
                outputs = _GATED * channels if group == "ff" else channels
                inputs = None if reads_text else channels
                yield Layer(f"{block}.transformer_blocks.0.{path}", outputs, inputs)


@functools.cache
def _list_text_orders(count: int) -> tuple[tuple[Layer, ...], ...]:
    names = load_table("positional")["text_layers"]
    layers, left = divmod(count, len(names))
    if left:
        return ()
    stem = "text_model.encoder.layers"
    return (
        tuple(Layer(f"{stem}.{n}.self_attn.{name}", None, None) for n in range(layers) for name in names),
    )
