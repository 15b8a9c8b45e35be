"""Names of low-rank tensors taken apart: which module, which algorithm, which part; one table row a dialect."""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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
from conceptry.formats.module_shapes import Shapes, measure_module
from conceptry.formats.suffixes import cut_names, map_suffixes

_CLIP_G_WIDTH: Final = 1280
_SECOND: Final = ComponentName("text_encoder_2")
_T5: Final = "t5"
_T5_WIDTH: Final = 4096
_OLD_PROCESSOR: Final = "processor."
# LyCORIS calls the vector of IA3 plainly "weight"; the side that it is for lies beside it.
_PLAIN: Final = ".weight"
_SIDE: Final = ".on_input"
_IA3: Final = ".ia3_weight"
# No name holds a line break, so that all names of a file are searched at once, one a line.
_BY_LINE: Final = re.ASCII | re.MULTILINE


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one program spells modules: its prefixes and the components they stand for (data/dialects.toml)."""

    id: str
    title: str
    flat: bool
    prefixes: tuple[tuple[str, str], ...]
    ends: re.Pattern[str] | None = None
    marks: tuple[re.Pattern[str], ...] = ()
    rewrites: tuple[tuple[re.Pattern[str], str], ...] = ()
    alpha: str | None = None
    """Where the scale is told when no tensor does: ``metadata``, ``config`` or nowhere."""

    @property
    def starts(self) -> tuple[str, ...]:
        """What the names of its tensors may begin with."""
        return tuple(prefix for prefix, _ in self.prefixes)

    def applies(self, names: str, metadata: Iterable[str]) -> bool:
        """Returns whether a file with these names, one a line, shows what sets this dialect apart from others."""
        return not self.marks or any(
            mark.search(names) or any(map(mark.search, metadata)) for mark in self.marks
        )

    def rewrite(self, names: str) -> str:
        """Returns tensor names, one a line, in the spelling that the rest of the reader knows."""
        for pattern, replacement in self.rewrites:
            names = pattern.sub(replacement, names)
        return names


class Key(NamedTuple):
    """One tensor name taken apart. ``path`` is dotted and as written, ``canonical`` as published folders write it."""

    tensor: str
    algorithm: str
    part: str
    component: ComponentName
    path: str
    layout: Layout
    canonical: str | None
    module: str
    """``{component}.{module path}``, canonical where that is known."""


@functools.cache
def list_dialects() -> Mapping[str, Dialect]:
    """Returns the dialects by id, in the order in which they are tried."""
    return {id: _make_dialect(id, row) for id, row in load_table("dialects").items()}


def _make_dialect(id: str, row: Mapping[str, Any]) -> Dialect:
    return Dialect(
        id=id,
        title=row["title"],
        flat=row["flat"],
        prefixes=tuple((prefix, component) for prefix, component in row["prefixes"]),
        ends=re.compile("|".join(f"(?:{one})$" for one in row["ends"]), _BY_LINE) if "ends" in row else None,
        marks=tuple(re.compile(mark, _BY_LINE) for mark in row.get("marks", ())),
        rewrites=tuple((re.compile(one, _BY_LINE), other) for one, other in row.get("rewrites", ())),
        alpha=row.get("alpha"),
    )


@dataclass(frozen=True, slots=True)
class _Module:
    """What stands before the suffix: the component and the path of a module, as written."""

    component: ComponentName
    path: str
    layout: Layout


def _parse_stem(stem: str, dialect: Dialect) -> _Module | None:
    """Returns the module that a stem names, or None where it is not of the dialect or of no known network."""
    row = next((row for row in dialect.prefixes if stem.startswith(row[0])), None)
    return _parse_path(stem[len(row[0]) :], row[1], dialect.flat) if row else None


# The same modules occur in file after file, under the prefixes of several dialects.
@functools.lru_cache(maxsize=65_536)
def _parse_path(path: str, component: str, flat: bool) -> _Module | None:
    path = unflatten_path(path) if flat else _drop_processor(path)
    layout = find_layout(path)
    if layout is None or not _belongs(component, layout):
        return None
    owner = layout.component if component in ("denoiser", "any") else ComponentName(component)
    return _Module(owner, path, layout)


def _belongs(component: str, layout: Layout) -> bool:
    is_text = layout.component == "text_encoder"
    return component == "any" or is_text == (component == _T5 or component.startswith("text_encoder"))


def _drop_processor(path: str) -> str:
    # Early diffusers: attn1.processor.to_out (of to_out_lora) is the module attn1.to_out.0.
    if _OLD_PROCESSOR not in path:
        return path
    path = path.replace(_OLD_PROCESSOR, "")
    return f"{path}.0" if path.endswith(".to_out") else path


_Parts = dict[str, tuple[str, str]]
"""Part -> tensor and algorithm."""


class FoundModule(NamedTuple):
    """A module whose tensors a file has, under the names of a dialect; the fields of ``Key`` that its tensors share."""

    name: str
    component: ComponentName
    path: str
    layout: Layout
    canonical: str | None
    parts: _Parts
    shapes: Shapes
    """Part -> shape, in the order of the file."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The modules of a file that a dialect explains, by name, and the family that they speak for."""

    modules: Mapping[str, FoundModule]
    verdict: Verdict

    @property
    def tensor_count(self) -> int:
        """How many tensors the modules have."""
        return sum([len(module.parts) for module in self.modules.values()])

    @property
    def tensors(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset([tensor for module in self.modules.values() for tensor, _ in module.parts.values()])


@dataclass(frozen=True, slots=True)
class KeySet:
    """All names of a file that a dialect explains, by tensor and by module, and the family they speak for."""

    keys: Mapping[str, Key]
    modules: Mapping[str, Mapping[str, Key]]
    """Module -> part -> key."""

    verdict: Verdict


_Parsed = list[tuple[_Module, _Parts, Shapes]]
"""What stands before each different stem, and its parts; two stems may name one module."""

_NOTHING: Final = Finding({}, Verdict(None, 0.0, ()))


def parse_keys(header: Header, dialect: Dialect, family: FamilyId | None = None) -> KeySet:
    """Returns what ``dialect`` explains of a header; ``family``, where the caller knows it, settles block names."""
    found = find_modules(header, dialect, family)
    modules = {
        name: {
            part: Key(tensor, algorithm, part, one.component, one.path, one.layout, one.canonical, name)
            for part, (tensor, algorithm) in one.parts.items()
        }
        for name, one in found.modules.items()
    }
    keys = {key.tensor: key for parts in modules.values() for key in parts.values()}
    return KeySet(keys, modules, found.verdict)


def find_modules(header: Header, dialect: Dialect, family: FamilyId | None = None) -> Finding:
    """Returns the modules that ``dialect`` finds in a header; ``family`` as for ``parse_keys``.

    Of a file with two spellings of one module, what the second one says again stays unexplained.
    """
    parsed = _collect(header, dialect)
    if not parsed:
        return _NOTHING
    second = _reads_second_encoder(parsed, header, dialect)
    verdict = judge_family(_list_seen(parsed, second), header.metadata)
    settled = family or verdict.family
    paths = [module.path for module, _, _ in parsed if module.layout.names == "ldm"]
    blocks = choose_ldm_blocks(paths, settled) if paths else None
    modules: dict[str, FoundModule] = {}
    for module, parts, shapes in parsed:
        path, layout = module.path, module.layout
        canonical = spell_canonical(path, layout, blocks)
        if not canonical and layout.names == "ldm" and blocks:
            continue
        component = _settle_component(module, settled, second)
        name = f"{component}.{canonical or path}"
        found = FoundModule(name, component, path, layout, canonical, parts, shapes)
        modules[name] = _join_spellings(modules[name], found) if name in modules else found
    return Finding(modules, verdict)


def _join_spellings(first: FoundModule, second: FoundModule) -> FoundModule:
    more = tuple([(part, shape) for part, shape in second.shapes if part not in first.parts])
    return first._replace(parts={**second.parts, **first.parts}, shapes=(*first.shapes, *more))


def find_foreign(header: Header, dialect: Dialect) -> Iterator[str]:
    """Gives the tensors whose names cannot be of ``dialect``; those that it gives not may be of it."""
    prefixes, suffixes = dialect.starts, map_suffixes(dialect.ends)
    cuts = _cut_all(header, dialect)
    if not cuts:
        yield from header.tensors
    for name, (stem, suffix) in zip(header.tensors, cuts, strict=False):
        if suffix not in suffixes or not stem.startswith(prefixes):
            yield name


def _cut_all(header: Header, dialect: Dialect) -> tuple[tuple[str, str], ...]:
    """Returns each name cut at its suffix, as ``dialect`` rewrites it; nothing where the dialect does not apply."""
    names = "\n".join(header.tensors)
    rewritten = dialect.rewrite(names)
    if not names or not any(map(rewritten.__contains__, dialect.starts)):
        return ()
    if not dialect.applies(names, header.metadata):
        return ()
    if _SIDE in names:
        rewritten = "\n".join(_spell_sides(rewritten.split("\n"), header.tensors))
    return cut_names(rewritten)


def _collect(header: Header, dialect: Dialect) -> _Parsed:
    prefixes, suffixes = dialect.starts, map_suffixes(dialect.ends)
    stems: dict[str, _Parts] = {}
    # None at all where the dialect does not apply.
    for name, (stem, suffix) in zip(header.tensors, _cut_all(header, dialect), strict=False):
        if suffix in suffixes and stem.startswith(prefixes):
            algorithm, part = suffixes[suffix]
            parts = stems.get(stem)
            if parts is None:
                parts = stems[stem] = {}
            parts.setdefault(part, (name, algorithm))
    tensors = header.tensors
    return [
        (module, parts, tuple([(part, tensors[name].shape) for part, (name, _) in parts.items()]))
        for stem, parts in stems.items()
        if (module := _parse_stem(stem, dialect)) is not None
    ]


def _spell_sides(names: list[str], tensors: Container[str]) -> list[str]:
    stems = ((name, name.removesuffix(_PLAIN)) for name in names)
    return [stem + _IA3 if stem != name and stem + _SIDE in tensors else name for name, stem in stems]


def _list_seen(parsed: _Parsed, second: bool) -> list[Seen]:
    return [
        Seen(
            f"{_SECOND if second and module.component == 'text_encoder' else module.component}.{module.path}",
            *measure_module(shapes),
        )
        for module, _, shapes in parsed
    ]


def _reads_second_encoder(parsed: _Parsed, header: Header, dialect: Dialect) -> bool:
    """Where a prefix does not say which text encoder is meant, a width of 1280 does."""
    if all(component != "any" for _, component in dialect.prefixes):
        return False
    shapes = (
        header.tensors[parts["down"][0]].shape
        for module, parts, _ in parsed
        if module.component == "text_encoder" and "down" in parts
    )
    return any(shape[-1:] == (_CLIP_G_WIDTH,) for shape in shapes)


def _settle_component(module: _Module, family: FamilyId | None, second: bool) -> ComponentName:
    if module.component == _T5:
        # The second text encoder of Flux reads T5, the third of SD3.
        encoders = find_family(family).text_encoders if family else ()
        return next((name for name, width in encoders if width == _T5_WIDTH), ComponentName("text_encoder_3"))
    return _SECOND if second and module.component == "text_encoder" else module.component
