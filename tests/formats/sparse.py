"""Safetensors files that have a header and a length, and no data on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DTYPE_BYTES: Final = {"F16": 2, "F32": 4, "F64": 8}


def write_sparse(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], *, dtype: str = "F16"
) -> Path:
    """Returns ``path``, where a whole file with tensors of these shapes was written, its data a hole."""
    document: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * DTYPE_BYTES[dtype]
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(document).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path
