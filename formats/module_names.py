"""Module paths as programs write them -> component and path as published diffusers folders write them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from conceptry.bases import ComponentName
from conceptry.formats.data_files import load_table

# Numbers from 5 on are those of blocks, and which block it is decides nothing: one look-up serves them all.
_BLOCK_NUMBER: Final = re.compile(r"(?<=\.)(?:[5-9]|[1-9]\d{1,2})(?=\.)", re.ASCII)
_ANY_BLOCK: Final = "5"
TEXT_LEVEL: Final = "text_model."
_TEXT_PROJECTION: Final = "text_projection"
_LAST_SDXL_BLOCK: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """The module paths of one network: whose they are, whether they are spelled as diffusers spells them."""

    id: str
    component: ComponentName
    names: str
    pattern: re.Pattern[str]


@functools.cache
def list_layouts() -> tuple[Layout, ...]:
    """Returns the networks whose module paths are known."""
    return tuple(_make_layout(id, row) for id, row in load_table("layouts").items() if id != "segments")


def _make_layout(id: str, row: Mapping[str, Any]) -> Layout:
    pattern = re.compile("|".join(f"(?:{pattern})" for pattern in row["patterns"]), re.ASCII)
    return Layout(id, ComponentName(row["component"]), row["names"], pattern)


def find_layout(path: str) -> Layout | None:
    """Returns the network that has a module at the dotted ``path``, or None."""
    return _find_layout(_BLOCK_NUMBER.sub(_ANY_BLOCK, path))


@functools.lru_cache(maxsize=65_536)
def _find_layout(path: str) -> Layout | None:
    return next((layout for layout in list_layouts() if layout.pattern.fullmatch(path)), None)


@functools.cache
def _compile_segments() -> re.Pattern[str]:
    """Returns what finds the next segment of a flat name: the longest that is known, else a word."""
    segments = sorted(load_table("layouts")["segments"], key=lambda segment: -segment.count("_"))
    known = "|".join(map(re.escape, segments))
    return re.compile(rf"(?:^|_)((?:{known})(?=_|$)|[^_]*)", re.ASCII)


@functools.lru_cache(maxsize=65_536)
def unflatten_path(flat: str) -> str:
    """Returns the dotted path that kohya's ``flat`` name was made of, by the longest known segments.

    A name with unknown segments comes back cut at every underscore; no layout has it.
    """
    return ".".join(_compile_segments().findall(flat))


def choose_ldm_blocks(paths: Iterable[str], family: str | None) -> str | None:
    """Returns which table of block names a file with LDM names needs: ``sd``, ``sdxl``, or None where it is open."""
    if family in ("sd1", "sd2", "sdxl_refiner"):
        return "sd"
    if family == "sdxl":
        return "sdxl"
    numbers = (re.match(r"(?:input|output)_blocks\.(\d+)", path) for path in paths)
    return "sd" if any(number and int(number.group(1)) > _LAST_SDXL_BLOCK for number in numbers) else None


@functools.lru_cache(maxsize=65_536)
def translate_ldm(path: str, blocks: str) -> str | None:
    """Returns the diffusers path of a module of an original U-Net, or None where that network has no such block."""
    table = load_table("ldm_blocks")
    outer: str | None = table["outer"].get(path)
    if outer is not None:
        return outer
    match = re.match(r"((?:input|output)_blocks\.\d+\.\d+|middle_block\.\d+)\.(.+)", path)
    block = table["blocks"][blocks].get(match.group(1)) if match else None
    if match is None or block is None:
        return None
    inner = table["inner"].get(match.group(2), match.group(2))
    translated = f"{block}.{inner}"
    layout = find_layout(translated)
    return translated if layout is not None and layout.names == "diffusers" else None


def spell_canonical(path: str, layout: Layout, blocks: str | None) -> str | None:
    """Returns the path as published diffusers folders write it, or None where it is not known how.

    The names of the authors' own networks (Flux, SD3, Wan) are kept as they are.
    """
    if layout.names == "ldm":
        return translate_ldm(path, blocks) if blocks else None
    if layout.id == "clip" and path != _TEXT_PROJECTION and not path.startswith(TEXT_LEVEL):
        return TEXT_LEVEL + path
    return path
