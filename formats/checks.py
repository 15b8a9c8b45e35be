"""Rules that all canonical forms share; each refusal names the tensor and the value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from conceptry.bases import ComponentName
from conceptry.errors import InvalidFileError, InvalidNameError
from conceptry.formats.header import Header, read_header
from conceptry.formats.tensors import FLOAT_DTYPES, RawTensor
from conceptry.names import Placeholder, parse_placeholder

KIND_KEY: Final = "conceptry.kind"
SCHEMA_KEY: Final = "conceptry.schema"
SCHEMA: Final = "1"
COMPONENTS: Final = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
MAX_VECTORS: Final = 1024
MAX_WIDTH: Final = 65_536
MAX_RANK: Final = 16_384

Rows = Mapping[tuple[ComponentName, Placeholder], RawTensor]


def add_schema(kind: str, metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Returns ``metadata`` with the kind and the schema of the canonical form added."""
    return {**(metadata or {}), KIND_KEY: kind, SCHEMA_KEY: SCHEMA}


def read_canonical_header(path: Path, kind: str) -> Header:
    """Returns the header of a canonical file of ``kind``. Raises InvalidFileError for any other file."""
    header = read_header(path)
    found, schema = header.metadata.get(KIND_KEY), header.metadata.get(SCHEMA_KEY)
    if found != kind:
        what = f"of kind {found!r}" if found else "no canonical file of this project"
        raise InvalidFileError(
            f"{path.name!r} is {what}, not {kind!r}", hint=f"concepts identify {path.name}"
        )
    if schema != SCHEMA:
        raise InvalidFileError(
            f"{path.name!r} has schema {schema!r}, this version reads {SCHEMA}", hint="update conceptry"
        )
    return header


def check_numbers(name: str, tensor: RawTensor) -> None:
    """Raises InvalidFileError unless ``tensor`` holds floating point values that are all finite, at least one."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise InvalidFileError(f"its dtype {tensor.dtype} holds no fractions", where=name)
    if not tensor.elements:
        raise InvalidFileError(f"its shape {list(tensor.shape)} holds nothing", where=name)
    if not tensor.is_finite():
        raise InvalidFileError("a value is NaN or infinite", where=name)


def split_component(name: str, separator: str) -> tuple[ComponentName, str]:
    """Returns the component and the rest of a canonical tensor name. Raises InvalidFileError."""
    component, joint, rest = name.partition(separator)
    if component not in COMPONENTS or not joint or not rest:
        known = ", ".join(COMPONENTS)
        raise InvalidFileError(
            f"the name does not begin with a component ({known}) and {separator!r}", where=name
        )
    return ComponentName(component), rest


def split_row_name(name: str) -> tuple[ComponentName, Placeholder]:
    """Returns component and placeholder of ``{component}/{placeholder}``. Raises InvalidFileError."""
    component, text = split_component(name, "/")
    try:
        return component, parse_placeholder(text)
    except InvalidNameError as error:
        raise InvalidFileError(error.message, where=name) from error


def check_rows(rows: Rows, layers: int | None = None) -> None:
    """Raises InvalidFileError unless each entry is [vectors, width], or [layers, vectors, width] with named layers.

    One placeholder has the same number of vectors in all components.
    """
    if not rows:
        raise InvalidFileError("there is no row for any placeholder")
    vectors: dict[Placeholder, int] = {}
    for (component, placeholder), tensor in rows.items():
        name = f"{component}/{placeholder}"
        check_numbers(name, tensor)
        expected = 2 if layers is None else 3
        if len(tensor.shape) != expected or (layers is not None and tensor.shape[0] != layers):
            wanted = "[vectors, width]" if layers is None else f"[{layers}, vectors, width]"
            raise InvalidFileError(f"its shape is {list(tensor.shape)}, not {wanted}", where=name)
        if tensor.shape[-2] > MAX_VECTORS or tensor.shape[-1] > MAX_WIDTH:
            raise InvalidFileError(f"its shape {list(tensor.shape)} is beyond all limits", where=name)
        if vectors.setdefault(placeholder, tensor.shape[-2]) != tensor.shape[-2]:
            raise InvalidFileError(
                f"it has {tensor.shape[-2]} vectors, another component has {vectors[placeholder]}", where=name
            )


def check_vector(name: str, tensor: RawTensor) -> None:
    """Raises InvalidFileError unless ``tensor`` is one finite vector."""
    check_numbers(name, tensor)
    if len(tensor.shape) != 1:
        raise InvalidFileError(f"its shape is {list(tensor.shape)}, not one dimension", where=name)
