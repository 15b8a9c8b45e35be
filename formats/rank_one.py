"""The canonical form of kind ``rank_one``, a key-locked rank-one edit (Perfusion, arXiv 2305.01644).

``i_star`` and ``c_inv_i_star`` [context width], ``{component}/{placeholder}`` [vectors, width], and ``o_v/{layer}``
[output width] for each cross-attention layer. Keys are locked to the superclass and recomputed, never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.errors import InvalidFileError
from conceptry.formats.checks import (
    Rows,
    add_schema,
    check_rows,
    check_vector,
    read_canonical_header,
    split_row_name,
)
from conceptry.formats.tensors import RawTensor, Written, read_tensors, write_tensors

RANK_ONE_NAME: Final = "rank_one.safetensors"
_I_STAR: Final = "i_star"
_C_INV: Final = "c_inv_i_star"
_VALUES: Final = "o_v/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOneContents:
    """Target input i*, C^-1 i*, the rows of the placeholder, and the value target of each layer."""

    i_star: RawTensor
    c_inv_i_star: RawTensor
    rows: Rows
    o_v: Mapping[str, RawTensor]


def check_rank_one(contents: RankOneContents) -> None:
    """Raises InvalidFileError where widths disagree, a value is not finite, or i*T C^-1 i* is not positive."""
    import numpy as np

    check_vector(_I_STAR, contents.i_star)
    check_vector(_C_INV, contents.c_inv_i_star)
    if contents.i_star.shape != contents.c_inv_i_star.shape:
        raise InvalidFileError(
            f"its width is {contents.c_inv_i_star.shape[0]}, that of i_star {contents.i_star.shape[0]}",
            where=_C_INV,
        )
    vectors = (tensor.to_numpy().astype(np.float64) for tensor in (contents.i_star, contents.c_inv_i_star))
    energy = float(np.dot(*vectors))
    if energy <= 0:
        raise InvalidFileError(
            f"i_star C^-1 i_star is {energy:g}, not positive: C is no covariance", where=_C_INV
        )
    check_rows(contents.rows)
    if not contents.o_v:
        raise InvalidFileError("there is no value target (o_v) for any layer")
    for layer, tensor in contents.o_v.items():
        check_vector(f"{_VALUES}{layer}", tensor)


def write_rank_one(
    path: Path, contents: RankOneContents, metadata: Mapping[str, str] | None = None
) -> Written:
    """Writes the canonical file and returns its digests, or leaves nothing. Raises InvalidFileError, StoreError."""
    check_rank_one(contents)
    tensors = {_I_STAR: contents.i_star, _C_INV: contents.c_inv_i_star}
    tensors |= {f"{component}/{word}": tensor for (component, word), tensor in contents.rows.items()}
    tensors |= {f"{_VALUES}{layer}": tensor for layer, tensor in contents.o_v.items()}
    return write_tensors(path, tensors, add_schema("rank_one", metadata))


def read_rank_one(path: Path) -> RankOneContents:
    """Returns what a canonical file holds, checked. Raises NotFoundError, InvalidFileError."""
    read_canonical_header(path, "rank_one")
    tensors = read_tensors(path)
    missing = [name for name in (_I_STAR, _C_INV) if name not in tensors]
    if missing:
        raise InvalidFileError(f"{path.name!r} has no tensor {missing[0]!r}")
    i_star, c_inv_i_star = tensors.pop(_I_STAR), tensors.pop(_C_INV)
    values = {name: tensor for name, tensor in tensors.items() if name.startswith(_VALUES)}
    rows = {split_row_name(name): tensor for name, tensor in tensors.items() if name not in values}
    contents = RankOneContents(
        i_star=i_star,
        c_inv_i_star=c_inv_i_star,
        rows=rows,
        o_v={name.removeprefix(_VALUES): tensor for name, tensor in values.items()},
    )
    check_rank_one(contents)
    return contents
