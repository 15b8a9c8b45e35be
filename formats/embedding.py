"""The canonical form of kind ``embedding``: ``{component}/{placeholder}`` [vectors, width].

The per-layer variant (arXiv 2303.09522) has [layers, vectors, width] and names its layers in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.errors import InvalidFileError
from conceptry.formats.checks import Rows, add_schema, check_rows, read_canonical_header, split_row_name
from conceptry.formats.tensors import Written, read_tensors, write_tensors

EMBEDDING_NAME: Final = "embedding.safetensors"
LAYERS_KEY: Final = "conceptry.layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingContents:
    """Rows of the token embedding, by component and placeholder; ``layers`` names those of the per-layer variant."""

    rows: Rows
    layers: tuple[str, ...] | None = None


def check_embedding(contents: EmbeddingContents) -> None:
    """Raises InvalidFileError where shapes disagree, a value is not finite, or a layer is named twice."""
    layers = contents.layers
    if layers is not None and (not layers or len(set(layers)) != len(layers)):
        raise InvalidFileError(f"the layers {list(layers)} are none, or one is named twice", where=LAYERS_KEY)
    check_rows(contents.rows, None if layers is None else len(layers))


def write_embedding(
    path: Path, contents: EmbeddingContents, metadata: Mapping[str, str] | None = None
) -> Written:
    """Writes the canonical file and returns its digests, or leaves nothing. Raises InvalidFileError, StoreError."""
    check_embedding(contents)
    merged = add_schema("embedding", metadata)
    if contents.layers is not None:
        merged[LAYERS_KEY] = json.dumps(contents.layers)
    tensors = {f"{component}/{word}": tensor for (component, word), tensor in contents.rows.items()}
    return write_tensors(path, tensors, merged)


def read_embedding(path: Path) -> EmbeddingContents:
    """Returns what a canonical file holds, checked. Raises NotFoundError, InvalidFileError."""
    header = read_canonical_header(path, "embedding")
    rows = {split_row_name(name): tensor for name, tensor in read_tensors(path).items()}
    contents = EmbeddingContents(rows=rows, layers=_parse_layers(header.metadata.get(LAYERS_KEY)))
    check_embedding(contents)
    return contents


def _parse_layers(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        layers = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"not JSON: {text[:80]!r}", where=LAYERS_KEY) from error
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise InvalidFileError(f"no list of layer names: {text[:80]!r}", where=LAYERS_KEY)
    return tuple(layers)
