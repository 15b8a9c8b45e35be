"""The ends of tensor names: which algorithm and which part they say, as the data file of suffixes lists them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Final

from conceptry.formats.data_files import load_table

_JOINED: Final = "_lora"
_NO_SUFFIX: Final = ("", "")
_Node = dict[str, "_Node | str"]


@functools.cache
def map_suffixes(ends: re.Pattern[str] | None = None) -> Mapping[str, tuple[str, str]]:
    """Returns suffix -> algorithm and part, of those that match ``ends``."""
    rows = load_table("suffixes")["suffixes"]
    return {suffix: (algorithm, part) for suffix, algorithm, part in rows if not ends or ends.search(suffix)}


@functools.cache
def _root_suffixes() -> _Node:
    """Returns the suffixes as a tree of their parts, from the last: the leaves are the suffixes themselves."""
    root: _Node = {}
    for suffix in map_suffixes():
        first, *rest = suffix.removeprefix(".").split(".")
        node: Any = root
        for part in reversed(rest):
            node = node.setdefault(part, {})
        node[first] = suffix
    return root


def cut_suffix(name: str) -> tuple[str, str]:
    """Returns what stands before the known suffix of a name, and the suffix; two empty texts where none is known.

    No known suffix ends in another one, so that there is one answer.
    """
    found: _Node | str | None = _root_suffixes()
    stem = name
    while isinstance(found, dict):
        stem, _, part = stem.rpartition(".")
        node, found = found, found.get(part)
        if found is None and part.endswith(_JOINED) and part != _JOINED:
            # Attention processors of early diffusers: the suffix begins before its dot.
            stem, found = f"{stem}.{part.removesuffix(_JOINED)}".lstrip("."), node.get(_JOINED)
    return (stem, found) if stem and isinstance(found, str) else _NO_SUFFIX


@functools.cache
def _map_ends() -> Mapping[str, Mapping[str, str]]:
    """Returns the last part of a suffix -> the part before it -> the suffix, of suffixes of two parts and of one.

    A suffix of one part stands under an empty text.
    """
    ends: dict[str, dict[str, str]] = {}
    for suffix in map_suffixes():
        first, _, last = suffix.removeprefix(".").rpartition(".")
        if suffix.startswith(".") and "." not in first:
            ends.setdefault(last, {})[first] = suffix
    return ends


# The dialects without rewrites all ask for the same names.
@functools.lru_cache(maxsize=1)
def cut_names(names: str) -> tuple[tuple[str, str], ...]:
    """Returns what ``cut_suffix`` does for each of the names, one a line; most end in a suffix of one or two parts."""
    ends, nothing = _map_ends(), dict[str, str]()
    cuts = []
    for name in names.split("\n"):
        stem, _, last = name.rpartition(".")
        known = ends.get(last, nothing)
        head, _, first = stem.rpartition(".")
        if head and first in known:
            cuts.append((head, known[first]))
        elif stem and "" in known:
            cuts.append((stem, known[""]))
        else:
            cuts.append(cut_suffix(name))
    return tuple(cuts)


def split_suffix(name: str) -> tuple[str, str, str] | None:
    """Returns what ``cut_suffix`` does, with the algorithm and the part of the suffix; None where none is known."""
    stem, suffix = cut_suffix(name)
    return (stem, *map_suffixes()[suffix]) if suffix else None
