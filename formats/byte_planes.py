"""Full fine-tunes as what differs from the base: byte planes of the difference in an ordinary safetensors file.

Values are taken as whole numbers in the order of their size (of floating point numbers, the sign and the bits), so a
small change is a small number. The difference to the base is written with its sign last (zigzag), sorted by the
exponent that the base has there, since a change of training is about as large wherever it is and so its bits depend
on it, and split into planes of bytes. Each plane is packed by zlib (RFC 1950), by code lengths and runs alone: noise
has no repetitions, and looking for some makes it larger. It is kept as a tensor of dtype U8, so digests, transfer and
limits are those of any file.

Asked to, it rounds the difference to steps of a share of each tensor's own root mean square, keeps how many steps in
the same way, and states the error that this makes. The base must be there bit for bit: the file names the digest of
the tensors that it needs, and of those that come out.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.digests import Digest, canonical_json
from conceptry.errors import IncompatibleError, IntegrityError, InvalidDigestError, InvalidFileError
from conceptry.formats.checks import KIND_KEY, add_schema, read_canonical_header
from conceptry.formats.full import COMPONENT_KEY, FullContents, check_full
from conceptry.formats.header import DTYPE_BYTES
from conceptry.formats.tensors import (
    RawTensor,
    Written,
    digest_tensors,
    read_tensors,
    write_tensors,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

KIND: Final = "full_planes"
PLANES_KEY: Final = "conceptry.planes"
_UNSIGNED: Final = {"F16": "<u2", "BF16": "<u2", "F32": "<u4"}
_EXPONENTS: Final = {"F16": (10, 0x1F), "BF16": (7, 0xFF), "F32": (23, 0xFF)}
_SEPARATOR: Final = "#"
_STEP_BYTES: Final = 2
_MOST_STEPS: Final = 32_000


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
    base: Mapping[str, RawTensor],
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
    used = {name: _find_base(name, tensor, base) for name, tensor in contents.tensors.items()}
    rows = {name: _describe(tensor, used[name], step) for name, tensor in contents.tensors.items()}
    planes: dict[str, RawTensor] = {}
    kept, errors = dict[str, RawTensor](), _Errors()
    for name, tensor in contents.tensors.items():
        numbers = _subtract(tensor, used[name], rows[name])
        kept[name] = tensor if step is None else _add(used[name], numbers, rows[name])
        planes |= _pack(name, numbers)
        if step is not None:
            errors.count(tensor, kept[name], used[name])
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


def read_planes(path: Path, base: Mapping[str, RawTensor]) -> FullContents:
    """Returns the new values that a file of planes makes of the tensors of ``base``; each bit was checked.

    Raises:
        NotFoundError, InvalidFileError: if there is no such file, or it is malformed.
        IncompatibleError: if the base's tensors are not, bit for bit, those that the file was made of.
        IntegrityError: if what comes out is not what was written.
    """
    header = read_canonical_header(path, KIND)
    rows, base_digest, tensor_digest = _read_document(header.metadata.get(PLANES_KEY, ""), path.name)
    used = {name: _find_base(name, row, base) for name, row in rows.items()}
    if (found := digest_tensors(used)) != base_digest:
        raise IncompatibleError(
            f"{path.name!r} needs a base whose tensors have the digest {base_digest}, these have {found}",
            hint="a packed fine-tune needs the very base that it was packed with, in its own precision",
        )
    planes = read_tensors(path)
    tensors = {name: _add(used[name], _unpack(name, row, planes), row) for name, row in rows.items()}
    if (found := digest_tensors(tensors)) != tensor_digest:
        raise IntegrityError(f"{path.name!r} unpacks to tensors of digest {found}, not {tensor_digest}")
    contents = FullContents(component=_read_component(header.metadata, path.name), tensors=tensors)
    check_full(contents)
    return contents


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Returns whether a file with this metadata holds planes."""
    return metadata.get(KIND_KEY) == KIND


# --- one tensor ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """What a file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    step: float | None
    """The rounding of its difference, None where every bit is kept."""

    @property
    def number_bytes(self) -> int:
        """How wide the numbers are that stand for the difference."""
        return DTYPE_BYTES[self.dtype] if self.step is None else _STEP_BYTES


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


def _describe(tensor: RawTensor, base: RawTensor, step: float | None) -> _Row:
    import numpy as np

    if step is None:
        return _Row(tensor.dtype, tensor.shape, None)
    difference = tensor.to_numpy().astype(np.float64) - base.to_numpy().astype(np.float64)
    greatest = float(np.max(np.abs(difference)))
    size = max(step * float(np.sqrt(np.mean(difference**2))), greatest / _MOST_STEPS)
    return _Row(tensor.dtype, tensor.shape, size or 1.0)


def _find_base(name: str, like: RawTensor | _Row, base: Mapping[str, RawTensor]) -> RawTensor:
    found = base.get(name)
    if like.dtype not in _UNSIGNED:
        raise IncompatibleError(f"{name!r} has dtype {like.dtype}, which has no planes")
    if found is None or (found.dtype, found.shape) != (like.dtype, like.shape):
        what = "no such tensor" if found is None else f"{found.dtype} {list(found.shape)}"
        raise IncompatibleError(f"{name!r} is {like.dtype} {list(like.shape)}, the base has {what}")
    return found


def _subtract(tensor: RawTensor, base: RawTensor, row: _Row) -> Array:
    """Returns the difference as unsigned numbers, small ones for small changes, in the order of the file of planes."""
    import numpy as np

    if row.step is None:
        difference = _order(tensor) - _order(
            base
        )  # whole numbers of a fixed width wrap around, and back again
        difference = difference[_sort(base)]
    else:
        change = tensor.to_numpy().astype(np.float64) - base.to_numpy().astype(np.float64)
        difference = np.round(change / row.step).astype("<i2").view("<u2").reshape(-1)
    last = difference.dtype.type(8 * difference.itemsize - 1)
    sign = difference.dtype.type(0) - (difference >> last)
    return np.asarray((difference << difference.dtype.type(1)) ^ sign)


def _add(base: RawTensor, numbers: Array, row: _Row) -> RawTensor:
    """Returns the tensor that ``_subtract`` was given, or the nearest that the steps allow."""
    import numpy as np

    one = numbers.dtype.type(1)
    difference = (numbers >> one) ^ (numbers.dtype.type(0) - (numbers & one))
    if row.step is None:
        placed = np.empty_like(difference)
        placed[_sort(base)] = difference
        return RawTensor(row.dtype, row.shape, _restore_order(_order(base) + placed).tobytes())
    old = base.to_numpy()
    change = difference.view("<i2").astype(np.float64).reshape(row.shape) * row.step
    return RawTensor.from_numpy((old.astype(np.float64) + change).astype(old.dtype))


def _pack(name: str, numbers: Array) -> dict[str, RawTensor]:
    planes = numbers.view("u1").reshape(-1, numbers.itemsize)
    packed = [_compress(planes[:, place].tobytes()) for place in range(numbers.itemsize)]
    return {
        f"{name}{_SEPARATOR}{place}": RawTensor("U8", (len(data),), data) for place, data in enumerate(packed)
    }


def _compress(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return packer.compress(data) + packer.flush()


def _unpack(name: str, row: _Row, planes: Mapping[str, RawTensor]) -> Array:
    import numpy as np

    count, width = math.prod(row.shape), row.number_bytes
    columns = [_read_plane(planes, f"{name}{_SEPARATOR}{place}", count) for place in range(width)]
    return np.ascontiguousarray(np.stack(columns, axis=1)).view(f"<u{width}").reshape(-1)


def _read_plane(planes: Mapping[str, RawTensor], name: str, count: int) -> Array:
    import numpy as np

    packed = planes.get(name)
    if packed is None:
        raise InvalidFileError("a plane is missing", where=name)
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(bytes(packed.data), count + 1)  # never more, whatever it would unpack to
    except zlib.error as error:
        raise InvalidFileError(f"a plane cannot be unpacked: {error}", where=name) from error
    if len(data) != count or not unpacker.eof or unpacker.unused_data:
        raise InvalidFileError(f"a plane unpacks to another number of bytes than {count}", where=name)
    return np.frombuffer(data, "u1")


def _order(tensor: RawTensor) -> Array:
    """Returns the bits as whole numbers that are in the order of the values (Herf, radix tricks, 2001)."""
    import numpy as np

    bits = np.frombuffer(tensor.data, _UNSIGNED[tensor.dtype])
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & top, ~bits, bits | top)


def _restore_order(ordered: Array) -> Array:
    import numpy as np

    top = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
    return np.where(ordered & top, ordered ^ top, ~ordered)


def _sort(base: RawTensor) -> Array:
    """Returns the places of the values by their exponents, in the order of the file among equal ones."""
    import numpy as np

    shift, mask = _EXPONENTS[base.dtype]
    bits = np.frombuffer(base.data, _UNSIGNED[base.dtype])
    return np.argsort((bits >> bits.dtype.type(shift)) & bits.dtype.type(mask), kind="stable")


# --- what the file says --------------------------------------------------------------------------------------------


def _read_document(text: str, file_name: str) -> tuple[dict[str, _Row], Digest, Digest]:
    try:
        document = json.loads(text)
        rows = {
            str(name): _Row(str(dtype), tuple(map(int, shape)), None if step is None else float(step))
            for name, (dtype, shape, step) in document["rows"].items()
        }
        return rows, Digest.parse(document["base"]), Digest.parse(document["tensors"])
    except (ValueError, TypeError, KeyError, AttributeError, InvalidDigestError) as error:
        raise InvalidFileError(f"{file_name!r} does not say what its planes are", where=PLANES_KEY) from error


def _read_component(metadata: Mapping[str, str], file_name: str) -> Any:
    component = metadata.get(COMPONENT_KEY)
    if component is None:
        raise InvalidFileError(f"{file_name!r} does not say which component it changes", where=COMPONENT_KEY)
    return component
