"""Graphs that ComfyUI writes into pictures: which files their nodes load, and the prompts that reach a sampler.

``prompt`` is what was run, by node ids; ``workflow`` is the editor's drawing of it, read where the other is absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from conceptry.errors import InvalidFileError
from conceptry.formats.data_files import load_table
from conceptry.formats.picture_notes import Mention, PictureNotes, iter_tags, join_mentions

GRAPH_KEYS: Final = ("prompt", "workflow")
MAX_NODES: Final = 20_000
_MAX_LINKS: Final = 16
_MAX_CHARS: Final = 200
_MAX_STRENGTH: Final = 1000
_MUTED: Final = (2, 4)  # modes of a node that is not run, in the editor's drawing


def read_graph(texts: Mapping[str, str]) -> PictureNotes | None:
    """Returns what the graphs in a picture say; None where there is none.

    Raises:
        InvalidFileError: if one is no JSON object, or has too many nodes.
    """
    if "prompt" in texts:
        nodes = _load(texts["prompt"], "prompt")
        mentions = [mention for node in _list_nodes(nodes.values()) for mention in _read_node(node)]
        prompt, negative = _find_prompts(nodes)
        return PictureNotes(
            program="comfyui", prompt=prompt, negative=negative, files=join_mentions(mentions)
        )
    if "workflow" in texts:
        drawn = _load(texts["workflow"], "workflow").get("nodes")
        rows = _list_nodes(drawn if isinstance(drawn, list) else [])
        files = [mention for node in rows for mention in _read_drawn(node)]
        return PictureNotes(program="comfyui", files=join_mentions(files))
    return None


def _load(text: str, key: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"the {key} of ComfyUI in it is no JSON that can be read") from error
    if not isinstance(found, dict):
        raise InvalidFileError(f"the {key} of ComfyUI in it is no JSON object")
    return found


def _list_nodes(found: Any) -> list[dict[str, Any]]:
    nodes = [node for node in found if isinstance(node, dict)]
    if len(nodes) > MAX_NODES:
        raise InvalidFileError(f"the graph in it has {len(nodes)} nodes")
    return nodes


# --- what was run --------------------------------------------------------------------------------------------------


def _read_node(node: Mapping[str, Any]) -> Iterator[Mention]:
    found = node.get("inputs")
    inputs: dict[str, Any] = found if isinstance(found, dict) else {}
    for name, value in inputs.items():
        if isinstance(value, dict):
            yield from _read_nested(value)
        elif isinstance(value, str) and _is_file(value):
            yield _make_mention(str(name), value, inputs)
        elif isinstance(value, str):
            yield from iter_tags(value)


def _read_nested(value: Mapping[str, Any]) -> Iterator[Mention]:
    """Loaders of several LoRAs keep one object for each, with a switch."""
    if value.get("on") is False:
        return
    for key, text in value.items():
        if isinstance(text, str) and _is_file(text):
            yield _make_mention(str(key), text, value)


def _make_mention(name: str, value: str, beside: Mapping[str, Any]) -> Mention:
    for row in load_table("picture_notes")["inputs"]:
        if name.startswith(tuple(row["begins"])):
            numbers = [_read_number(beside.get(key)) for key in row.get("strengths", ())]
            strength = next((one for one in numbers if one is not None), None)
            return Mention(kind=row["kind"], name=_shorten(value), strength=strength)
    return Mention(kind="model", name=_shorten(value))


def _find_prompts(nodes: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the texts behind the first node that takes something positive and something negative."""
    for node in nodes.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict) and {"positive", "negative"} <= inputs.keys():
            positive, negative = (_follow(nodes, inputs[key]) for key in ("positive", "negative"))
            if positive or negative:
                return positive, negative
    return "", ""


def _follow(nodes: Mapping[str, Any], link: Any) -> str:
    seen = [link]
    for _ in range(_MAX_LINKS):
        if not seen:
            break
        here = seen.pop(0)
        node = nodes.get(here[0]) if isinstance(here, list) and here and isinstance(here[0], str) else None
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict):
            texts = [value for key, value in inputs.items() if str(key).startswith(("text", "prompt"))]
            said = [text for text in texts if isinstance(text, str) and text.strip()]
            if said:
                return said[0]
            seen += [value for value in inputs.values() if isinstance(value, list)]
    return ""


# --- what was drawn ------------------------------------------------------------------------------------------------


def _read_drawn(node: Mapping[str, Any]) -> Iterator[Mention]:
    values = node.get("widgets_values")
    if node.get("mode") in _MUTED or not isinstance(values, list):
        return
    for place, value in enumerate(values):
        if isinstance(value, dict):
            yield from _read_nested(value)
        elif isinstance(value, str) and _is_file(value):
            after = values[place + 1] if place + 1 < len(values) else None
            kind = _find_kind(str(node.get("type")))
            strength = _read_number(after) if kind in ("lora", "hypernetwork") else None
            yield Mention(kind=kind, name=_shorten(value), strength=strength)
        elif isinstance(value, str):
            yield from iter_tags(value)


def _find_kind(type_name: str) -> str:
    name = type_name.lower()
    rows = load_table("picture_notes")["nodes"]
    return next((str(row["kind"]) for row in rows if row["has"] in name), "model")


def _is_file(text: str) -> bool:
    return len(text) <= _MAX_CHARS and "\n" not in text and text.lower().endswith(_list_endings())


def _read_number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_STRENGTH
    return float(value) if is_number else None


def _shorten(path: str) -> str:
    """Names there may have folders, in the way of the machine that wrote them."""
    return path.replace("\\", "/").rpartition("/")[2]


@cache
def _list_endings() -> tuple[str, ...]:
    return tuple(load_table("picture_notes")["endings"])
