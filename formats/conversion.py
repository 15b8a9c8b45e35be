"""Files that are no safetensors, made into one by a process of its own that can do nothing else.

What is read: PyTorch's pickles (zip and the older form) and PNG pictures that carry an embedding. The converted file
has the tensors by their joined paths, such as ``string_to_param.*``; the plain values beside them, such as ``name``
or ``string_to_token``, are JSON in its metadata under VALUES_KEY, so that FORMATS rows see them in the header.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.formats.containers import SNIFFED_BYTES, recognise_container
from conceptry.formats.header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    Header,
    open_binary,
    parse_header,
    parse_header_bytes,
    read_header,
)
from conceptry.formats.isolation import run_worker
from conceptry.formats.tensors import replace_file

VALUES_KEY: Final = "conceptry.values"
SOURCE_KEY: Final = "conceptry.converted_from"
LEFT_OUT_KEY: Final = "conceptry.left_out"
CONVERTED_NAME: Final = "converted.safetensors"
CONVERTED: Final = frozenset({"torch_zip", "zip", "torch_legacy", "pickle", "png"})
"""Ids of the containers that are handed to the isolated process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A safetensors file made of another, and what the other was."""

    path: Path
    container: str
    """The id of the row of CONTAINERS: ``torch_zip``, ``torch_legacy`` or ``png``."""

    header: Header
    values: Any
    """Plain values by the same paths as the tensors, as JSON has them; None where there are none."""


def convert_file(path: Path, folder: Path) -> Converted:
    """Returns ``folder/converted.safetensors``, made of the pickle or picture at ``path`` in an isolated process.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if it is no such file, names anything that tensor files do not need, holds no tensor or a
            value that is not finite, or passes a limit; nothing of it was run and nothing is left behind.
        StoreError: if the disk is full.
    """
    target = folder / CONVERTED_NAME
    with open_binary(path) as source, replace_file(target) as output:
        report = run_worker("convert", source, output, path.name)
        header = parse_header(output, path.name)
    return Converted(
        path=target, container=report["container"], header=header, values=read_values(header.metadata)
    )


def read_foreign_header(path: Path) -> Header:
    """Returns the header that ``convert_file`` would write; no tensor is read and nothing written.

    Raises:
        NotFoundError, InvalidFileError: as ``convert_file``; values that are not finite are not looked for.
    """
    with open_binary(path) as source, tempfile.TemporaryFile() as output:
        size_bytes = source.seek(0, 2)
        run_worker("describe", source, output, path.name)
        output.seek(0)
        return parse_header_bytes(output.read(LENGTH_BYTES + MAX_HEADER_BYTES), path.name, size_bytes)


def read_any_header(path: Path) -> Header:
    """Returns ``read_header`` of a safetensors file, and ``read_foreign_header`` of a pickle or a picture.

    Raises:
        NotFoundError, InvalidFileError: as those two.
    """
    return read_foreign_header(path) if is_foreign(path) else read_header(path)


@contextlib.contextmanager
def as_safetensors(path: Path) -> Iterator[Path]:
    """Gives the path of a safetensors file with the tensors of ``path``: itself, or a converted one.

    The converted file is gone after the block; tensors that were read from it stay readable.

    Raises:
        NotFoundError, InvalidFileError, StoreError: as ``convert_file``.
    """
    if not is_foreign(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="conceptry-") as folder:
        yield convert_file(path, Path(folder)).path


def is_foreign(path: Path) -> bool:
    """Returns whether the file is handed to the isolated process: a pickle or a picture. Raises NotFoundError."""
    with open_binary(path) as file:
        return recognise_container(file.read(SNIFFED_BYTES)).id in CONVERTED


def read_values(metadata: Mapping[str, str]) -> Any:
    """Returns the plain values that a converted file carries in its metadata; None where there are none."""
    try:
        return json.loads(metadata.get(VALUES_KEY, "null"))
    except (ValueError, RecursionError):
        return None
