"""Canonical module names in the words of each program: the inverse of the key maps that files are read with."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from conceptry.errors import IncompatibleError
from conceptry.formats.data_files import load_table
from conceptry.formats.module_names import choose_ldm_blocks, find_layout, translate_ldm

_UNET: Final = "unet"


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one program writes the modules of one family."""

    id: str
    flat: bool
    ldm: bool
    """The U-Net has the block names of LDM and SGM."""

    prefixes: Mapping[str, str]


@functools.cache
def find_spelling(id: str, family: str) -> Spelling:
    """Returns how the program ``id`` writes the modules of ``family``."""
    row = load_table("spellings")[id]
    prefixes = {**row["prefixes"], **row.get("families", {}).get(family, {})}
    return Spelling(id, row["flat"], family in row["blocks"], prefixes)


@functools.lru_cache(maxsize=65_536)
def spell_module(id: str, name: str, family: str) -> str:
    """Returns what stands before the suffix of a tensor of the module ``{component}.{path}``.

    Raises:
        IncompatibleError: if the program has no name for the component or for the block.
    """
    spelling = find_spelling(id, family)
    component, _, path = name.partition(".")
    prefix = spelling.prefixes.get(component)
    if prefix is None:
        raise IncompatibleError(f"{id} has no name for {component} of {family}", where=name)
    if spelling.ldm and component == _UNET:
        path = spell_ldm(name, path, family)
    return prefix + (path.replace(".", "_") if spelling.flat else path)


def spell_ldm(name: str, path: str, family: str) -> str:
    """Returns the path of a U-Net module with the block names of LDM. Raises IncompatibleError."""
    blocks = choose_ldm_blocks((), family)
    for candidate in _list_candidates(path, blocks) if blocks else ():
        layout = find_layout(candidate)
        if layout is not None and layout.names == "ldm" and translate_ldm(candidate, blocks or "") == path:
            return candidate
    raise IncompatibleError(f"the original networks of {family} have no block for it", where=name)


def _list_candidates(path: str, blocks: str) -> Iterator[str]:
    table = load_table("ldm_blocks")
    yield from (ldm for ldm, ours in table["outer"].items() if ours == path)
    for ldm, ours in table["blocks"][blocks].items():
        if path.startswith(f"{ours}."):
            inner = path.removeprefix(f"{ours}.")
            yield from (f"{ldm}.{theirs}" for theirs, known in table["inner"].items() if known == inner)
            yield f"{ldm}.{inner}"
