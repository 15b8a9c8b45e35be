"""One tensor as planes of bytes, and back: its difference to the base's as whole numbers, small ones for small changes.

Values are taken as whole numbers in the order of their size (of floating point numbers, the sign and the bits), so a
small change is a small number. The difference to the base is written with its sign last (zigzag), sorted by the
exponent that the base has there, since a change of training is about as large wherever it is and so its bits depend
on it, and split into planes of bytes. Each plane is packed by zlib (RFC 1950), by code lengths and runs alone: noise
has no repetitions, and looking for some makes it larger.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from conceptry.errors import IncompatibleError, InvalidFileError
from conceptry.formats.header import DTYPE_BYTES
from conceptry.formats.sources import InMemory
from conceptry.formats.tensors import RawTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

FindTensor = Callable[[str], RawTensor | None]
"""Returns a tensor of the base by its name, None where it has none."""

_UNSIGNED: Final = {"F16": "<u2", "BF16": "<u2", "F32": "<u4"}
_EXPONENTS: Final = {"F16": (10, 0x1F), "BF16": (7, 0xFF), "F32": (23, 0xFF)}
_SEPARATOR: Final = "#"
_STEP_BYTES: Final = 2
_MOST_STEPS: Final = 32_000


@dataclass(frozen=True, slots=True)
class PlaneRow:
    """What a file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    step: float | None
    """The rounding of its difference, None where every bit is kept."""

    @property
    def number_bytes(self) -> int:
        """How wide the numbers are that stand for the difference."""
        return DTYPE_BYTES[self.dtype] if self.step is None else _STEP_BYTES


def describe_row(tensor: RawTensor, base: RawTensor, step: float | None) -> PlaneRow:
    """Returns what a file says of a tensor; ``step`` is a share of the root mean square of its difference."""
    import numpy as np

    if step is None:
        return PlaneRow(tensor.dtype, tensor.shape, None)
    difference = tensor.to_numpy().astype(np.float64) - base.to_numpy().astype(np.float64)
    greatest = float(np.max(np.abs(difference)))
    size = max(step * float(np.sqrt(np.mean(difference**2))), greatest / _MOST_STEPS)
    return PlaneRow(tensor.dtype, tensor.shape, size or 1.0)


def find_base(name: str, like: RawTensor | PlaneRow, base: FindTensor) -> RawTensor:
    """Returns the base's tensor in the dtype of the values; rounding is the same everywhere (IEEE 754, to even).

    Raises:
        IncompatibleError: if the base has none of that shape, or one of the dtypes has no planes.
    """
    found = base(name)
    if like.dtype not in _UNSIGNED:
        raise IncompatibleError(f"{name!r} has dtype {like.dtype}, which has no planes")
    if found is None or found.shape != like.shape or found.dtype not in _UNSIGNED:
        what = "no such tensor" if found is None else f"{found.dtype} {list(found.shape)}"
        raise IncompatibleError(f"{name!r} is {like.dtype} {list(like.shape)}, the base has {what}")
    return (
        found if found.dtype == like.dtype else RawTensor(like.dtype, like.shape, _Rounded(found, like.dtype))
    )


@dataclass(frozen=True, slots=True)
class _Rounded:
    """A Source: a tensor's bytes in another precision, made each time they are wanted."""

    tensor: RawTensor
    dtype: str

    def __len__(self) -> int:
        return self.tensor.elements * DTYPE_BYTES[self.dtype]

    def read(self) -> bytes:
        """Returns all of them."""
        import ml_dtypes
        import numpy as np

        wanted = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32}[self.dtype]
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.tensor.to_numpy().astype(wanted)).tobytes()

    def iter_chunks(self) -> Iterator[memoryview]:
        """Returns all of them in pieces."""
        yield from InMemory(self.read()).iter_chunks()


def subtract_base(tensor: RawTensor, base: RawTensor, row: PlaneRow) -> Array:
    """Returns the difference as unsigned numbers, small ones for small changes, in the order of the file of planes."""
    import numpy as np

    if row.step is None:
        # Whole numbers of a fixed width wrap around, and back again.
        difference = (order_values(tensor) - order_values(base))[_sort(base)]
    else:
        change = tensor.to_numpy().astype(np.float64) - base.to_numpy().astype(np.float64)
        difference = np.round(change / row.step).astype("<i2").view("<u2").reshape(-1)
    last = difference.dtype.type(8 * difference.itemsize - 1)
    sign = difference.dtype.type(0) - (difference >> last)
    return np.asarray((difference << difference.dtype.type(1)) ^ sign)


def add_base(base: RawTensor, numbers: Array, row: PlaneRow) -> RawTensor:
    """Returns the tensor that ``subtract_base`` was given, or the nearest that the steps allow."""
    import numpy as np

    one = numbers.dtype.type(1)
    difference = (numbers >> one) ^ (numbers.dtype.type(0) - (numbers & one))
    if row.step is None:
        placed = np.empty_like(difference)
        placed[_sort(base)] = difference
        return RawTensor(row.dtype, row.shape, _restore_order(order_values(base) + placed).tobytes())
    old = base.to_numpy()
    change = difference.view("<i2").astype(np.float64).reshape(row.shape) * row.step
    return RawTensor.from_numpy((old.astype(np.float64) + change).astype(old.dtype))


def pack_numbers(name: str, numbers: Array) -> dict[str, RawTensor]:
    """Returns the planes of a tensor by the names that they have in a file."""
    planes = numbers.view("u1").reshape(-1, numbers.itemsize)
    packed = [_compress(planes[:, place].tobytes()) for place in range(numbers.itemsize)]
    return {
        f"{name}{_SEPARATOR}{place}": RawTensor("U8", (len(data),), data) for place, data in enumerate(packed)
    }


def _compress(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return packer.compress(data) + packer.flush()


def unpack_numbers(name: str, row: PlaneRow, planes: Mapping[str, RawTensor]) -> Array:
    """Returns what ``pack_numbers`` was given. Raises InvalidFileError if a plane is missing or malformed."""
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


def order_values(tensor: RawTensor) -> Array:
    """Returns the bits as whole numbers that are in the order of the values (Herf, radix tricks, 2001)."""
    import numpy as np

    bits = np.frombuffer(tensor.data, _UNSIGNED[tensor.dtype])
    top, last = _find_top(bits)
    return np.asarray(bits ^ ((bits.dtype.type(0) - (bits >> last)) | top))


def _restore_order(ordered: Array) -> Array:
    import numpy as np

    top, last = _find_top(ordered)
    return np.asarray(ordered ^ (((ordered >> last) - ordered.dtype.type(1)) | top))


def _find_top(bits: Array) -> tuple[Any, Any]:
    """Returns the bit that is the sign, and its place; all bits are turned where it is set, and that one elsewhere."""
    last = 8 * bits.itemsize - 1
    return bits.dtype.type(1 << last), bits.dtype.type(last)


def _sort(base: RawTensor) -> Array:
    """Returns the places of the values by their exponents, in the order of the file among equal ones."""
    import numpy as np

    shift, mask = _EXPONENTS[base.dtype]
    bits = np.frombuffer(base.data, _UNSIGNED[base.dtype])
    exponents = ((bits >> bits.dtype.type(shift)) & bits.dtype.type(mask)).astype("u1")
    return np.argsort(exponents, kind="stable")  # of single bytes, some times as fast
