"""Names of low-rank tensors taken apart: which module, which algorithm, which part; one table row a dialect."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from conceptry.bases import ComponentName, FamilyId, find_family
from conceptry.formats.data_files import load_table
from conceptry.formats.families import Seen, Verdict, judge_family
from conceptry.formats.header import Header
from conceptry.formats.module_names import (
    Layout,
    choose_ldm_blocks,
    find_layout,
    spell_canonical,
    unflatten_path,
)
from conceptry.formats.module_shapes import measure_module

_CLIP_G_WIDTH: Final = 1280
_T5: Final = "t5"
_T5_WIDTH: Final = 4096
_OLD_PROCESSOR: Final = "processor."
_SUFFIX_START: Final = re.compile(r"\.|_lora\.")
_SUFFIX_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one program spells modules: its prefixes and the components they stand for (data/dialects.toml)."""

    id: str
    title: str
    flat: bool
    prefixes: tuple[tuple[str, str], ...]
    ends: re.Pattern[str] | None = None
    marks: re.Pattern[str] | None = None
    rewrites: tuple[tuple[re.Pattern[str], str], ...] = ()
    alpha: str | None = None
    """Where the scale is told when no tensor does: ``metadata``, ``config`` or nowhere."""

    def applies(self, header: Header) -> bool:
        """Returns whether the file shows what sets this dialect apart from others with the same names."""
        marks = self.marks
        return marks is None or any(map(marks.search, (*header.tensors, *header.metadata)))

    def rewrite(self, name: str) -> str:
        """Returns a tensor name in the spelling that the rest of the reader knows."""
        for pattern, replacement in self.rewrites:
            name = pattern.sub(replacement, name, count=1)
        return name


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
    """Returns the dialects by id, in the order in which they are tried."""
    return {id: _make_dialect(id, row) for id, row in load_table("dialects").items()}


def _make_dialect(id: str, row: Mapping[str, Any]) -> Dialect:
    def join(key: str, end: str) -> re.Pattern[str] | None:
        return re.compile("|".join(f"(?:{one}){end}" for one in row[key]), re.ASCII) if key in row else None

    return Dialect(
        id=id,
        title=row["title"],
        flat=row["flat"],
        prefixes=tuple((prefix, component) for prefix, component in row["prefixes"]),
        ends=join("ends", "$"),
        marks=join("marks", ""),
        rewrites=tuple((re.compile(one, re.ASCII), other) for one, other in row.get("rewrites", ())),
        alpha=row.get("alpha"),
    )


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
    if dialect.ends is not None and not dialect.ends.search(name):
        return None
    parts = split_suffix(dialect.rewrite(name))
    if parts is None:
        return None
    stem, algorithm, part = parts
    row = next((row for row in dialect.prefixes if stem.startswith(row[0])), None)
    if row is None:
        return None
    path, component = stem[len(row[0]) :], row[1]
    path = unflatten_path(path) if dialect.flat else _drop_processor(path)
    layout = find_layout(path)
    if layout is None or not _belongs(component, layout):
        return None
    owner = layout.component if component in ("denoiser", "any") else ComponentName(component)
    return Key(name, algorithm, part, owner, path, layout)


def _belongs(component: str, layout: Layout) -> bool:
    is_text = layout.component == "text_encoder"
    return component == "any" or is_text == (component == _T5 or component.startswith("text_encoder"))


def _drop_processor(path: str) -> str:
    # Early diffusers: attn1.processor.to_out (of to_out_lora) is the module attn1.to_out.0.
    if _OLD_PROCESSOR not in path:
        return path
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
    applies = dialect.applies(header)
    parsed = [key for name in header.tensors if applies and (key := parse_key(name, dialect)) is not None]
    parsed = _place_second_encoder(parsed, header, dialect)
    verdict = judge_family(_list_seen(parsed, header), header.metadata) if parsed else Verdict(None, 0.0, ())
    settled = family or verdict.family
    if any(key.component == _T5 for key in parsed):
        parsed = _place_t5(parsed, settled)
    paths = [key.path for key in parsed if key.layout.names == "ldm"]
    blocks = choose_ldm_blocks(paths, settled) if paths else None
    keys: dict[tuple[str, str], Key] = {}
    for key in parsed:
        canonical = spell_canonical(key.path, key.layout, blocks)
        if canonical or not (key.layout.names == "ldm" and blocks):
            spelled = replace(key, canonical=canonical)
            # A file with two spellings of one module: the second one stays unexplained.
            keys.setdefault((spelled.module, spelled.part), spelled)
    return KeySet({key.tensor: key for key in keys.values()}, verdict, blocks)


def _list_seen(parsed: Iterable[Key], header: Header) -> list[Seen]:
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in parsed:
        modules.setdefault(f"{key.component}.{key.path}", {})[key.part] = header.tensors[key.tensor].shape
    return [Seen(path, *measure_module(shapes)) for path, shapes in modules.items()]


def _place_second_encoder(parsed: list[Key], header: Header, dialect: Dialect) -> list[Key]:
    """Where a prefix does not say which text encoder is meant, a width of 1280 does."""
    if all(component != "any" for _, component in dialect.prefixes):
        return parsed
    wide = any(
        header.tensors[key.tensor].shape[-1:] == (_CLIP_G_WIDTH,)
        for key in parsed
        if key.component == "text_encoder" and key.part == "down"
    )
    if not wide:
        return parsed
    second = ComponentName("text_encoder_2")
    return [replace(key, component=second) if key.component == "text_encoder" else key for key in parsed]


def _place_t5(parsed: list[Key], family: FamilyId | None) -> list[Key]:
    """Which text encoder of the family reads T5: the second in Flux, the third in SD3."""
    encoders = find_family(family).text_encoders if family else ()
    place = next((name for name, width in encoders if width == _T5_WIDTH), ComponentName("text_encoder_3"))
    return [replace(key, component=place) if key.component == _T5 else key for key in parsed]
