"""Canonical module names in the words of each program: the inverse of the key maps that files are read with."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from conceptry.errors import IncompatibleError
from conceptry.formats.data_files import load_table
from conceptry.formats.module_names import choose_ldm_blocks, find_layout, translate_ldm

_UNET: Final = "unet"
_TRANSFORMER: Final = "transformer"


@dataclass(frozen=True, slots=True)
class Speller:
    """How one program writes the modules of one file. ``id`` is a row of data/spellings.toml."""

    id: str
    family: str
    names: str
    """Whose names the modules of a transformer have: ``diffusers`` or ``original``."""

    def spell(self, name: str) -> str:
        """Returns what stands before the suffix of a tensor of the module ``{component}.{path}``.

        Raises:
            IncompatibleError: if the program has no name for the component or for the block.
        """
        return _spell(self.id, self.family, self.names, name)


def make_speller(id: str, family: str, modules: Iterable[str]) -> Speller:
    """Returns the spelling of a file with these modules. Raises IncompatibleError for a base it does not run."""
    families = load_table("spellings")[id].get("families")
    if families is not None and family not in families:
        raise IncompatibleError(f"{id} does not run {family}")
    paths = (
        path for component, _, path in (name.partition(".") for name in modules) if component == _TRANSFORMER
    )
    layouts = (find_layout(path) for path in paths)
    # Some paths, such as img_in, occur in both sets of names; one that occurs in one set only decides.
    original = any(layout is not None and layout.names == "original" for layout in layouts)
    return Speller(id, family, "original" if original else "diffusers")


@functools.lru_cache(maxsize=65_536)
def _spell(id: str, family: str, names: str, name: str) -> str:
    row: dict[str, Any] = load_table("spellings")[id]
    prefixes = {**row["prefixes"], **row.get("of", {}).get(family, {})}
    component, _, path = name.partition(".")
    prefix = prefixes.get(f"{component} {names}" if component == _TRANSFORMER else component)
    if prefix is None:
        which = (
            f"the names of {family}'s {names} code"
            if component == _TRANSFORMER
            else f"{component} of {family}"
        )
        raise IncompatibleError(f"{id} does not read {which}", where=name)
    if component == _UNET and family in row["blocks"]:
        path = spell_ldm(name, path, family)
    return str(prefix) + (path.replace(".", "_") if row["flat"] else path)


def spell_ldm(name: str, path: str, family: str) -> str:
    """Returns the path of a U-Net module with the block names of LDM. Raises IncompatibleError."""
    blocks = choose_ldm_blocks((), family)
    for candidate in _list_candidates(path, blocks) if blocks else ():
        layout = find_layout(candidate)
        if layout is not None and layout.names == "ldm" and translate_ldm(candidate, blocks or "") == path:
            return candidate
    raise IncompatibleError(f"the original network of {family} has no block for it", where=name)


def _list_candidates(path: str, blocks: str) -> Iterator[str]:
    table = load_table("ldm_blocks")
    yield from (ldm for ldm, ours in table["outer"].items() if ours == path)
    for ldm, ours in table["blocks"][blocks].items():
        if path.startswith(f"{ours}."):
            inner = path.removeprefix(f"{ours}.")
            yield from (f"{ldm}.{theirs}" for theirs, known in table["inner"].items() if known == inner)
            yield f"{ldm}.{inner}"
