"""The canonical form of kind ``full``: new values of the tensors that differ from the base, one file a component."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.bases import ComponentName
from conceptry.errors import InvalidFileError
from conceptry.formats.checks import COMPONENTS, add_schema, check_numbers, read_canonical_header
from conceptry.formats.tensors import RawTensor, Written, read_tensors, write_tensors

COMPONENT_KEY: Final = "conceptry.component"


@dataclass(frozen=True, slots=True, kw_only=True)
class FullContents:
    """New values by their names in the state dict of ``component``."""

    component: ComponentName
    tensors: Mapping[str, RawTensor]


def name_full_file(component: ComponentName) -> str:
    """Returns the name of the canonical file of ``component``."""
    return f"{component}.safetensors"


def check_full(contents: FullContents) -> None:
    """Raises InvalidFileError for an unknown component, no tensor, or a value that is not finite."""
    if contents.component not in COMPONENTS:
        raise InvalidFileError(f"no component is called {contents.component!r}", where=COMPONENT_KEY)
    if not contents.tensors:
        raise InvalidFileError(f"no tensor of {contents.component} is changed")
    for name, tensor in contents.tensors.items():
        check_numbers(name, tensor)


def write_full(path: Path, contents: FullContents, metadata: Mapping[str, str] | None = None) -> Written:
    """Writes the canonical file and returns its digests, or leaves nothing. Raises InvalidFileError, StoreError."""
    check_full(contents)
    merged = add_schema("full", metadata)
    merged[COMPONENT_KEY] = contents.component
    return write_tensors(path, contents.tensors, merged)


def read_full(path: Path) -> FullContents:
    """Returns what a canonical file holds, checked. Raises NotFoundError, InvalidFileError."""
    header = read_canonical_header(path, "full")
    component = header.metadata.get(COMPONENT_KEY)
    if component is None:
        raise InvalidFileError(f"{path.name!r} does not say which component it changes", where=COMPONENT_KEY)
    contents = FullContents(component=ComponentName(component), tensors=read_tensors(path))
    check_full(contents)
    return contents
