"""Tensors as dtype, shape and raw bytes, read from and written to safetensors files; numpy is only for arithmetic.

A file that is written here is the same bytes each time: tensors by falling alignment and then by name, metadata by
key, nothing from the clock. It appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from conceptry.digests import Digest, canonical_json
from conceptry.errors import InvalidFileError, StoreError
from conceptry.formats.hashing import BackgroundHash
from conceptry.formats.header import (
    DTYPE_BYTES,
    LENGTH_BYTES,
    METADATA_KEY,
    Header,
    TensorInfo,
    open_binary,
    parse_header,
)
from conceptry.formats.sources import CHUNK_BYTES, FileRange, InMemory, OpenFile, Source
from conceptry.written_files import note_written_file

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT_BYTES: Final = 8
DATA_HASH_KEY: Final = "modelspec.hash_sha256"
_SMALL_BYTES: Final = 1 << 14
_SCAN_VALUES: Final = 1 << 16

# dtype -> (numpy or ml_dtypes name, unsigned view, bits that are all set in a value that is not finite)
_NUMPY: Final[dict[str, tuple[str, str, int]]] = {
    "BOOL": ("bool", "u1", 0),
    "U8": ("uint8", "u1", 0),
    "I8": ("int8", "u1", 0),
    "F8_E5M2": ("float8_e5m2", "u1", 0x7C),
    "F8_E4M3": ("float8_e4m3fn", "u1", 0x7F),
    "I16": ("int16", "<u2", 0),
    "U16": ("uint16", "<u2", 0),
    "F16": ("float16", "<u2", 0x7C00),
    "BF16": ("bfloat16", "<u2", 0x7F80),
    "I32": ("int32", "<u4", 0),
    "U32": ("uint32", "<u4", 0),
    "F32": ("float32", "<u4", 0x7F80_0000),
    "F64": ("float64", "<u8", 0x7FF0_0000_0000_0000),
    "I64": ("int64", "<u8", 0),
    "U64": ("uint64", "<u8", 0),
}
FLOAT_DTYPES: Final = frozenset(name for name, row in _NUMPY.items() if row[2])


class RawTensor:
    """A tensor as its bytes: little-endian, row-major. Equal when dtype, shape and bytes are equal.

    The bytes may lie in a file that is read when they are wanted: ``data`` returns them all, ``iter_chunks`` in pieces.
    """

    __slots__ = ("_finite", "_source", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: bytes | memoryview | Source) -> None:
        expected = math.prod(shape) * DTYPE_BYTES.get(dtype, 0)
        if dtype not in DTYPE_BYTES or len(data) != expected:
            raise InvalidFileError(f"{len(data)} bytes are no tensor of {dtype} {list(shape)}")
        self.dtype = dtype
        self.shape = shape
        self._source: Source = InMemory(data) if isinstance(data, (bytes, memoryview)) else data
        self._finite: bool | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RawTensor):
            return NotImplemented
        return (self.dtype, self.shape) == (other.dtype, other.shape) and self.data == other.data

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape))

    def __repr__(self) -> str:
        return f"RawTensor({self.dtype} {list(self.shape)})"

    @property
    def data(self) -> bytes | memoryview:
        """All its bytes. Raises InvalidFileError if they lie in a file that changed."""
        return self._source.read()

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes; nothing is read."""
        return len(self._source)

    def iter_chunks(self) -> Iterator[bytes | memoryview]:
        """Returns its bytes in pieces of about a megabyte. Raises InvalidFileError as ``data``."""
        return self._source.iter_chunks()

    def reshape(self, shape: tuple[int, ...]) -> RawTensor:
        """Returns the same bytes under another shape; nothing is read. Raises InvalidFileError if they do not fit."""
        return RawTensor(self.dtype, shape, self._source)

    def cut_rows(self, first: int, last: int) -> RawTensor:
        """Returns the rows from ``first`` to before ``last``; what lies in a file stays there."""
        row = len(self._source) // self.shape[0]
        start, size = first * row, (last - first) * row
        shape = (last - first, *self.shape[1:])
        if isinstance(self._source, FileRange):
            return RawTensor(
                self.dtype, shape, FileRange(self._source.file, self._source.start + start, size)
            )
        return RawTensor(self.dtype, shape, memoryview(self._source.read())[start : start + size])

    @classmethod
    def from_numpy(cls, array: np.ndarray[Any, Any]) -> RawTensor:
        """Returns the tensor with the values of ``array``, bit for bit.

        Raises:
            InvalidFileError: if safetensors has no such dtype.
        """
        import numpy as np

        dtype = next((name for name, row in _NUMPY.items() if row[0] == array.dtype.name), None)
        if dtype is None:
            raise InvalidFileError(f"safetensors holds no {array.dtype.name}")
        contiguous = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        return cls(dtype, tuple(array.shape), contiguous.tobytes())

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """Returns a read-only array over the same bytes; bf16 and fp8 as ml_dtypes has them."""
        import ml_dtypes
        import numpy as np

        name = _NUMPY[self.dtype][0]
        dtype = (
            np.dtype(getattr(ml_dtypes, name)) if name.startswith(("bfloat", "float8")) else np.dtype(name)
        )
        array = np.frombuffer(self.data, dtype=dtype).reshape(self.shape)
        array.flags.writeable = False
        return array

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)

    def is_finite(self) -> bool:
        """Returns whether no value is NaN or infinite; whole numbers always are finite. It is read once, in pieces."""
        if self._finite is not None:
            return self._finite
        found = all(are_finite(self.dtype, chunk) for chunk in self.iter_chunks())
        # What is in memory may be changed by its owner; a file that changed is an error when it is read again.
        if not isinstance(self._source, InMemory):
            self._finite = found
        return found

    @property
    def known_finite(self) -> bool:
        """Whether ``is_finite`` was asked, and answered yes, for bytes that cannot change."""
        return self._finite is True


def are_finite(dtype: str, data: bytes | memoryview) -> bool:
    """Returns whether no value of ``dtype`` in ``data`` is NaN or infinite."""
    import numpy as np

    _, unsigned, bits = _NUMPY[dtype]
    if not bits or not len(data):
        return True
    values = np.frombuffer(data, dtype=unsigned)
    mask = values.dtype.type(bits)
    scratch = np.empty(min(len(values), _SCAN_VALUES), values.dtype)
    for at in range(0, len(values), _SCAN_VALUES):
        part = values[at : at + _SCAN_VALUES]
        # The largest of the masked values is the mask exactly when all its bits are set somewhere.
        if np.bitwise_and(part, mask, out=scratch[: len(part)]).max() == mask:
            return False
    return True


# --- reading -------------------------------------------------------------------------------------------------------


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, RawTensor]:
    """Returns the named tensors of a safetensors file, or all of them, in the order of the file.

    Large ones stay in the file, which is kept open, and are read when their bytes are wanted.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: as ``read_header``, and if a name is not there.
    """
    with open_binary(path) as file:
        header = parse_header(file, path.name)
        wanted = header.tensors if names is None else _select(header, names, path.name)
        kept = OpenFile(file, path.name)
        return {name: _read_one(kept, header, name) for name in wanted}


def _select(header: Header, names: Iterable[str], file_name: str) -> list[str]:
    asked = set(names)
    missing = sorted(asked - header.tensors.keys())
    if missing:
        raise InvalidFileError(f"{file_name!r} has no tensor {missing[0]!r}")
    return [name for name in header.tensors if name in asked]


def _read_one(file: OpenFile, header: Header, name: str) -> RawTensor:
    info = header.tensors[name]
    place = FileRange(file, header.data_start + info.start, info.end - info.start)
    return RawTensor(info.dtype, info.shape, place.read() if place.size <= _SMALL_BYTES else place)


# --- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, as a manifest describes it; known without reading it again."""

    size_bytes: int
    sha256: Digest
    tensor_sha256: Digest


def write_tensors(
    path: Path,
    tensors: Mapping[str, RawTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    data_hash: bool = False,
) -> Written:
    """Writes the tensors to ``path``: whole, flushed to the disk, and the same bytes for the same input.

    Each tensor is read once and never held whole where it lies in a file. With ``data_hash``, the digest of all data
    bytes is added to the metadata as ``modelspec.hash_sha256``, which takes another reading.

    Raises:
        InvalidFileError: if a value is not finite, or the result would not be read back; nothing is written.
        StoreError: if the disk is full or the folder read-only; nothing is left behind.
    """
    ordered = order_tensors(tensors)
    if data_hash:
        metadata = {**(metadata or {}), DATA_HASH_KEY: f"0x{_hash_data(ordered).hex}"}
    head = format_header(ordered, metadata or {})
    with replace_file(path) as file, BackgroundHash() as whole, BackgroundHash() as contents:
        whole.update(head)
        contents.update(_describe({name: (tensor.dtype, tensor.shape) for name, tensor in ordered.items()}))
        file.write(head)
        for chunk in _iter_finite(ordered):
            whole.update(chunk)
            contents.update(chunk)
            file.write(chunk)
        file.flush()
        size_bytes = file.tell()
        status = os.fstat(file.fileno())
        file.seek(0)
        parse_header(file, path.name)
    note_written_file(path, status, whole.digest())
    return Written(size_bytes, whole.digest(), contents.digest())


def stream_tensors(
    file: BinaryIO, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the bytes that ``write_tensors`` writes to an open file, without threads and digests.

    Raises:
        InvalidFileError: if a value is not finite or a name cannot be written.
        OSError: if the disk is full.
    """
    ordered = order_tensors(tensors)
    file.write(format_header(ordered, metadata or {}))
    for chunk in _iter_finite(ordered):
        file.write(chunk)
    file.flush()


def _iter_finite(tensors: Mapping[str, RawTensor]) -> Iterator[bytes | memoryview]:
    for name, tensor in tensors.items():
        for chunk in tensor.iter_chunks():
            if not tensor.known_finite and not are_finite(tensor.dtype, chunk):
                raise InvalidFileError("a value is NaN or infinite", where=name)
            yield chunk


def _hash_data(tensors: Mapping[str, RawTensor]) -> Digest:
    return Digest.of_chunks(itertools.chain.from_iterable(one.iter_chunks() for one in tensors.values()))


def order_tensors(tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    """Returns the tensors in the order in which they are written: by falling alignment, then by name."""
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return {name: tensors[name] for name in _order(infos)}


def _order(infos: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    return sorted(infos, key=lambda name: (-DTYPE_BYTES[infos[name][0]], name))


def format_header(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str]) -> bytes:
    """Returns the length and the JSON that stand before the data. Raises InvalidFileError for half a surrogate."""
    document: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.size_bytes
        document[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidFileError("a name or a metadata value holds half a surrogate pair") from error
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Gives a new file beside ``path`` that takes its place, flushed to the disk, when the block ends well.

    Raises:
        StoreError: if the disk is full or the folder read-only; nothing is left behind.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with temporary.open("xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {str(path)!r}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- identity ------------------------------------------------------------------------------------------------------


def digest_tensors(tensors: Mapping[str, RawTensor]) -> Digest:
    """Returns the digest of names, dtypes, shapes and values, whatever their order and the metadata beside them."""
    ordered = order_tensors(tensors)
    infos = {name: (tensor.dtype, tensor.shape) for name, tensor in ordered.items()}
    return Digest.of_chunks(
        itertools.chain([_describe(infos)], *(tensor.iter_chunks() for tensor in ordered.values()))
    )


def digest_tensor_file(path: Path) -> Digest:
    """Returns ``digest_tensors`` of a safetensors file, read in pieces.

    Raises:
        NotFoundError, InvalidFileError: as ``read_header``.
    """
    with open_binary(path) as file:
        header = parse_header(file, path.name)
        infos = {name: (info.dtype, info.shape) for name, info in header.tensors.items()}
        return Digest.of_chunks(_iter_chunks(file, header, _describe(infos)))


def _describe(infos: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    listing = canonical_json([[name, infos[name][0], list(infos[name][1])] for name in _order(infos)])
    return len(listing).to_bytes(LENGTH_BYTES, "little") + listing


def _iter_chunks(file: BinaryIO, header: Header, first: bytes) -> Iterator[bytes]:
    yield first
    for name in _order({name: (info.dtype, info.shape) for name, info in header.tensors.items()}):
        info: TensorInfo = header.tensors[name]
        file.seek(header.data_start + info.start)
        left = info.end - info.start
        while left:
            chunk = file.read(min(left, CHUNK_BYTES))
            if not chunk:
                raise InvalidFileError(f"the file became shorter while {name!r} was read", hint="try again")
            left -= len(chunk)
            yield chunk
