"""Full fine-tunes as what differs from the base: byte planes of the difference in an ordinary safetensors file.

``planes.py`` makes the planes of a tensor; each is kept as a tensor of dtype U8, so digests, transfer and limits are
those of any file. Asked to, the difference is rounded to steps of a share of each tensor's own root mean square, and
the file states the error that this makes. The base must be there bit for bit, in a precision from which that of the
values follows: the file names the digest of the tensors that it needs, and of those that come out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from conceptry.bases import ComponentName
from conceptry.digests import Digest, canonical_json
from conceptry.errors import IncompatibleError, IntegrityError, InvalidDigestError, InvalidFileError
from conceptry.formats.checks import KIND_KEY, add_schema, check_numbers, read_canonical_header
from conceptry.formats.full import COMPONENT_KEY, FullContents, check_full
from conceptry.formats.planes import (
    FindTensor,
    PlaneRow,
    add_base,
    describe_row,
    find_base,
    pack_numbers,
    subtract_base,
    unpack_numbers,
)
from conceptry.formats.tensors import (
    RawTensor,
    Written,
    digest_tensors,
    read_tensors,
    write_tensors,
)

T = TypeVar("T")

KIND: Final = "full_planes"
_WORKERS: Final = 4
PLANES_KEY: Final = "conceptry.planes"
_MALFORMED: Final = (
    ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError, InvalidDigestError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What packing came to."""

    written: Written
    plain_bytes: int
    """Of the tensors as they are."""

    relative_error: float
    """Root mean square of what was changed, by that of the difference to the base; 0 where every bit is kept."""

    greatest_error: float
    """The greatest change of any value."""

    @property
    def share(self) -> float:
        """Bytes of the file by those of the tensors."""
        return self.written.size_bytes / self.plain_bytes


def write_planes(
    path: Path,
    contents: FullContents,
    base: FindTensor,
    metadata: Mapping[str, str] | None = None,
    *,
    step: float | None = None,
) -> Packed:
    """Writes new values as their difference to those of ``base``, and returns what that came to.

    ``step`` is the rounding of the difference, as a share of its root mean square in each tensor; None keeps every bit.

    Raises:
        InvalidFileError: if a value is not finite, or ``step`` is not positive.
        IncompatibleError: if the base lacks a tensor, or has it in another shape or dtype.
        StoreError: if the disk is full; nothing is left behind.
    """
    check_full(contents)
    if step is not None and not 0 < step < 100:
        raise InvalidFileError(f"a step of {step} is not between 0 and 100")
    used = {name: find_base(name, tensor, base) for name, tensor in contents.tensors.items()}
    for name, tensor in used.items():
        check_numbers(name, tensor)
    rows = {name: describe_row(tensor, used[name], step) for name, tensor in contents.tensors.items()}

    def pack(name: str) -> tuple[RawTensor, dict[str, RawTensor]]:
        tensor = contents.tensors[name]
        numbers = subtract_base(tensor, used[name], rows[name])
        kept = tensor if step is None else add_base(used[name], numbers, rows[name])
        return kept, pack_numbers(name, numbers)

    planes: dict[str, RawTensor] = {}
    kept, errors = dict[str, RawTensor](), _Errors()
    for name, (value, packed) in _map_names(pack, rows):
        kept[name] = value
        planes |= packed
        if step is not None:
            errors.count(contents.tensors[name], kept[name], used[name])
    check_full(FullContents(component=contents.component, tensors=kept))
    document = {
        "base": str(digest_tensors(used)),
        "tensors": str(digest_tensors(kept)),
        "rows": {name: [row.dtype, list(row.shape), row.step] for name, row in rows.items()},
        "relative_error": errors.relative,
        "greatest_error": errors.greatest,
    }
    merged = {**add_schema(KIND, metadata), COMPONENT_KEY: contents.component}
    merged[PLANES_KEY] = canonical_json(document).decode("utf-8")
    written = write_tensors(path, planes, merged)
    plain = sum(tensor.size_bytes for tensor in contents.tensors.values())
    return Packed(
        written=written,
        plain_bytes=plain,
        relative_error=errors.relative,
        greatest_error=errors.greatest,
    )


def read_planes(path: Path, base: FindTensor) -> FullContents:
    """Returns the new values that a file of planes makes of the tensors of ``base``; each bit was checked.

    Raises:
        NotFoundError, InvalidFileError: if there is no such file, or it is malformed.
        IncompatibleError: if the base's tensors are not, bit for bit, those that the file was made of.
        IntegrityError: if what comes out is not what was written.
    """
    planes = open_planes(path)
    return planes.restore(planes.check_base(base))


def open_planes(path: Path) -> Planes:
    """Returns what a file of planes needs and holds, from its header. Raises NotFoundError, InvalidFileError."""
    header = read_canonical_header(path, KIND)
    component = header.metadata.get(COMPONENT_KEY)
    if component is None:
        raise InvalidFileError(f"{path.name!r} does not say which component it changes", where=COMPONENT_KEY)
    rows, base, tensors = _read_document(header.metadata.get(PLANES_KEY, ""), path.name)
    return Planes(
        path=path,
        component=ComponentName(component),
        base=base,
        tensors=tensors,
        metadata=header.metadata,
        rows=rows,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """A file of planes whose header was read."""

    path: Path
    component: ComponentName
    base: Digest
    """Of the base's tensors that are needed, in the precision of the values."""

    tensors: Digest
    """Of the values that come out."""

    metadata: Mapping[str, str]
    rows: Mapping[str, PlaneRow]

    @property
    def plain_metadata(self) -> dict[str, str]:
        """What the file of the values themselves had beside them."""
        return {key: text for key, text in self.metadata.items() if key != PLANES_KEY}

    def check_base(self, base: FindTensor) -> Mapping[str, RawTensor]:
        """Returns the tensors that the planes need, in the precision of the values.

        Raises:
            IncompatibleError: if one is missing or has another shape, or if they are not, bit for bit, the right ones.
        """
        used = {name: find_base(name, row, base) for name, row in self.rows.items()}
        if (found := digest_tensors(used)) != self.base:
            raise IncompatibleError(
                f"the planes of {self.component} need a base whose tensors have the digest {self.base}, "
                f"these have {found}",
                hint="a packed fine-tune needs the very base that it was packed with, no rounded or changed copy",
            )
        return used

    def restore(self, used: Mapping[str, RawTensor]) -> FullContents:
        """Returns the values that the planes make of what ``check_base`` returned.

        Raises:
            InvalidFileError, IntegrityError: if the planes are damaged.
        """
        planes = read_tensors(self.path)

        def unpack(name: str) -> RawTensor:
            row = self.rows[name]
            return add_base(used[name], unpack_numbers(name, row, planes), row)

        tensors = dict(_map_names(unpack, self.rows))
        if (found := digest_tensors(tensors)) != self.tensors:
            raise IntegrityError(
                f"{self.path.name!r} unpacks to tensors of digest {found}, not {self.tensors}"
            )
        contents = FullContents(component=self.component, tensors=tensors)
        check_full(contents)
        return contents


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Returns whether a file with this metadata holds planes."""
    return metadata.get(KIND_KEY) == KIND


# --- what the file says ------------------------------------------------------------------------------------------


class _Errors:
    """What rounding changed, over all tensors."""

    def __init__(self) -> None:
        self.squares = 0.0
        self.of_squares = 0.0
        self.greatest = 0.0

    def count(self, wanted: RawTensor, kept: RawTensor, base: RawTensor) -> None:
        """Takes one tensor in."""
        import numpy as np

        new, got, old = (one.to_numpy().astype(np.float64) for one in (wanted, kept, base))
        self.squares += float(np.sum((got - new) ** 2))
        self.of_squares += float(np.sum((new - old) ** 2))
        self.greatest = max(self.greatest, float(np.max(np.abs(got - new))))

    @property
    def relative(self) -> float:
        """Root mean square of the changes, by that of the difference."""
        return float((self.squares / self.of_squares) ** 0.5) if self.of_squares else 0.0


def _map_names(make: Callable[[str], T], names: Iterable[str]) -> Iterator[tuple[str, T]]:
    """Yields each name and what is made of it, several at a time: numpy and zlib let other threads run."""
    ordered = tuple(names)
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        yield from zip(ordered, pool.map(make, ordered), strict=True)


def _read_document(text: str, file_name: str) -> tuple[dict[str, PlaneRow], Digest, Digest]:
    try:
        document = json.loads(text)
        rows = {
            str(name): PlaneRow(str(dtype), tuple(map(int, shape)), _read_step(step))
            for name, (dtype, shape, step) in document["rows"].items()
        }
        return rows, Digest.parse(document["base"]), Digest.parse(document["tensors"])
    except _MALFORMED as error:
        raise InvalidFileError(f"{file_name!r} does not say what its planes are", where=PLANES_KEY) from error


def _read_step(step: Any) -> float | None:
    if step is None:
        return None
    if not (math.isfinite(step) and step > 0):
        raise ValueError(step)
    return float(step)
