"""Where two concepts of a plan change the same weights, from the headers of their files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Final

from conceptry.composer.plan import Plan, PlannedMember
from conceptry.formats.byte_planes import is_packed, open_planes
from conceptry.formats.header import read_header
from conceptry.formats.lora_modules import split_canonical
from conceptry.formats.original_names import spell_name
from conceptry.kinds import KindId

_VALUE_TARGET: Final = "o_v/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two concepts that change the same modules; their effects add up there, or the later one wins (kind full)."""

    first: str
    second: str
    modules: tuple[str, ...]
    """``component.module`` of each, sorted."""


def find_overlaps(plan: Plan) -> tuple[Overlap, ...]:
    """Returns the pairs of a plan's concepts that change the same modules; strength 0 changes nothing.

    Raises:
        NotFoundError: if a file is not on this machine.
        InvalidFileError: if a header is malformed.
    """
    changed = [(member, frozenset(_iter_modules(member))) for member in plan.members if member.strength]
    pairs = ((first[0], second[0], first[1] & second[1]) for first, second in combinations(changed, 2))
    return tuple(
        Overlap(first=first.concept.label, second=second.concept.label, modules=tuple(sorted(shared)))
        for first, second, shared in pairs
        if shared
    )


def list_changed_modules(member: PlannedMember) -> tuple[str, ...]:
    """Returns ``component.module`` of all that a planned concept changes, sorted. Raises as ``find_overlaps``."""
    return tuple(sorted(set(_iter_modules(member))))


def find_idle_parts(plan: Plan) -> tuple[str, ...]:
    """Returns a sentence for each part of a use that holds nothing of what its concept changes.

    Raises:
        NotFoundError, InvalidFileError: as ``find_overlaps``.
    """
    found = []
    for member in plan.members:
        # A gate is one for all layers, so that its share is that of the whole component.
        # Where a hypernetwork stands, the base says: at every attention that reads something of its width.
        if "hypernetwork" in member.build.kinds:
            continue
        is_gated = set(member.build.kinds) == {"rank_one"}
        names = ("unet",) if is_gated else list_changed_modules(member) if member.use.parts else ()
        found += [
            f"{member.concept.label}: it changes nothing in the part {part}, so its share there does nothing"
            for part in member.use.parts
            if not any(name == part or name.startswith(f"{part}.") for name in names)
        ]
    return tuple(found)


def _iter_modules(member: PlannedMember) -> Iterator[str]:
    for part in member.build.parts:
        find = _MODULES.get(part.kind)
        for file in part.files if find else ():
            if find and file.role == "weights":
                names = find(PurePosixPath(file.path).stem, list_full_names(member.concept.locate(file)))
                yield from _spell(names, member.build.base.family) if part.kind == "lora" else names


def _spell(names: Iterable[str], family: str) -> Iterator[str]:
    """Returns names of modules as diffusers has them, which is how the composer finds the layers of an adapter."""
    return (layer for name in names for layer in spell_name(name, family))


def list_full_names(path: Path) -> tuple[str, ...]:
    """Returns the names of a file's tensors; of one that is packed, those that come out of it.

    Raises:
        NotFoundError, InvalidFileError: as ``find_overlaps``.
    """
    header = read_header(path)
    return tuple(open_planes(path).rows if is_packed(header.metadata) else header.tensors)


def _find_lora_modules(component: str, names: Iterable[str]) -> Iterator[str]:
    return iter({parts[0] for name in names if (parts := split_canonical(name)) is not None})


def _find_full_modules(component: str, names: Iterable[str]) -> Iterator[str]:
    return (f"{component}.{name.rpartition('.')[0]}" for name in names)


def find_edited_modules(component: str, names: Iterable[str]) -> Iterator[str]:
    """Returns the modules that a rank-one edit changes, by the names of its tensors."""
    for name in names:
        if name.startswith(_VALUE_TARGET):
            layer = name.removeprefix(_VALUE_TARGET)
            yield from (f"unet.{layer}.to_k", f"unet.{layer}.to_v")


# An embedding changes no module: its rows stand beside the table, and its words are checked by the plan.
_MODULES: Final[dict[KindId, Callable[[str, Iterable[str]], Iterator[str]]]] = {
    "lora": _find_lora_modules,
    "full": _find_full_modules,
    "rank_one": find_edited_modules,
}
