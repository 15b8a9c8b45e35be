"""Names of low-rank tensors taken apart: which module, which algorithm, which part; one table row a dialect."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from conceptry.bases import ComponentName, FamilyId
from conceptry.formats.data_files import load_table
from conceptry.formats.families import Verdict, judge_family
from conceptry.formats.header import Header
from conceptry.formats.module_names import (
    Layout,
    choose_ldm_blocks,
    find_layout,
    spell_canonical,
    unflatten_path,
)

_CLIP_G_WIDTH: Final = 1280
_OLD_PROCESSOR: Final = "processor."
_SUFFIX_START: Final = re.compile(r"\.|_lora\.")
_SUFFIX_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one program spells modules: its prefixes and the components they stand for."""

    id: str
    title: str
    flat: bool
    prefixes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One tensor name taken apart. ``path`` is dotted and as written, ``canonical`` as published folders write it."""

    tensor: str
    algorithm: str
    part: str
    component: ComponentName
    path: str
    layout: Layout
    canonical: str | None = None

    @property
    def module(self) -> str:
        """``{component}.{module path}``, canonical where that is known."""
        return f"{self.component}.{self.canonical or self.path}"


@functools.cache
def list_dialects() -> Mapping[str, Dialect]:
    """Returns the dialects by id."""
    return {
        id: Dialect(
            id, row["title"], row["flat"], tuple((prefix, component) for prefix, component in row["prefixes"])
        )
        for id, row in load_table("dialects").items()
    }


@functools.cache
def _map_suffixes() -> Mapping[str, tuple[str, str]]:
    return {suffix: (algorithm, part) for suffix, algorithm, part in load_table("suffixes")["suffixes"]}


@functools.lru_cache(maxsize=65_536)
def split_suffix(name: str) -> tuple[str, str, str] | None:
    """Returns what stands before the longest known suffix, the algorithm and the part; None where none is known."""
    suffixes = _map_suffixes()
    starts = [match.start() for match in _SUFFIX_START.finditer(name)][-_SUFFIX_PARTS:]
    for start in starts:
        row = suffixes.get(name[start:])
        if row is not None and start:
            return (name[:start], *row)
    return None


def parse_key(name: str, dialect: Dialect) -> Key | None:
    """Returns the parts of a tensor name, or None where it is not of this dialect or its module is unknown."""
    parts = split_suffix(name)
    if parts is None:
        return None
    stem, algorithm, part = parts
    prefix, component = next((row for row in dialect.prefixes if stem.startswith(row[0])), ("", ""))
    if not component:
        return None
    path = stem.removeprefix(prefix)
    path = unflatten_path(path) if dialect.flat else _drop_processor(path)
    layout = find_layout(path)
    if layout is None or not _belongs(component, layout):
        return None
    owner = layout.component if component in ("denoiser", "any") else ComponentName(component)
    return Key(name, algorithm, part, owner, path, layout)


def _belongs(component: str, layout: Layout) -> bool:
    is_text = layout.component == "text_encoder"
    return component == "any" or is_text == component.startswith("text_encoder")


def _drop_processor(path: str) -> str:
    # Early diffusers: attn1.processor.to_out (of to_out_lora) is the module attn1.to_out.0.
    path = path.replace(_OLD_PROCESSOR, "")
    return f"{path}.0" if path.endswith(".to_out") else path


@dataclass(frozen=True, slots=True)
class KeySet:
    """All names of a file that a dialect explains, by module, and the family they speak for."""

    keys: Mapping[str, Key]
    verdict: Verdict
    blocks: str | None

    @property
    def modules(self) -> Mapping[str, Mapping[str, Key]]:
        """Module -> part -> key."""
        found: dict[str, dict[str, Key]] = {}
        for key in self.keys.values():
            found.setdefault(key.module, {})[key.part] = key
        return found


def parse_keys(header: Header, dialect: Dialect, family: FamilyId | None = None) -> KeySet:
    """Returns what ``dialect`` explains of a header; ``family``, where the caller knows it, settles block names."""
    parsed = [key for name in header.tensors if (key := parse_key(name, dialect)) is not None]
    parsed = _place_second_encoder(parsed, header, dialect)
    widths = [
        (f"{key.component}.{key.path}", header.tensors[key.tensor].shape[1])
        for key in parsed
        if key.part == "down" and len(header.tensors[key.tensor].shape) > 1
    ]
    verdict = judge_family(widths, header.metadata)
    paths = [key.path for key in parsed if key.layout.names == "ldm"]
    blocks = choose_ldm_blocks(paths, family or verdict.family) if paths else None
    spelled = (replace(key, canonical=spell_canonical(key.path, key.layout, blocks)) for key in parsed)
    keys: dict[tuple[str, str], Key] = {}
    for key in spelled:
        if key.canonical or not (key.layout.names == "ldm" and blocks):
            # A file with two spellings of one module: the second one stays unexplained.
            keys.setdefault((key.module, key.part), key)
    return KeySet({key.tensor: key for key in keys.values()}, verdict, blocks)


def _place_second_encoder(parsed: list[Key], header: Header, dialect: Dialect) -> list[Key]:
    """Where a prefix does not say which text encoder is meant, a width of 1280 does."""
    if all(component != "any" for _, component in dialect.prefixes):
        return parsed
    text = [key for key in parsed if key.component == "text_encoder"]
    wide = any(
        header.tensors[key.tensor].shape[-1:] == (_CLIP_G_WIDTH,) for key in text if key.part == "down"
    )
    second = ComponentName("text_encoder_2")
    return [replace(key, component=second) if wide and key in text else key for key in parsed]
