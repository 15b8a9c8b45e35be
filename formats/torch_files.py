"""PyTorch files as data: where the pickle lies, where each storage lies, and the tensors that view them.

Two forms: the zip archive that ``torch.save`` writes since 1.6, its members stored as they are, and the older one, in
which five pickles and the storages follow each other. Runs inside the process of ``worker``.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from conceptry.errors import InvalidFileError
from conceptry.formats.header import DTYPE_BYTES
from conceptry.formats.pickle_reader import MAX_PICKLE_BYTES, read_pickle
from conceptry.formats.pickle_trees import Tree, flatten
from conceptry.formats.sources import CHUNK_BYTES, FileRange, InMemory, OpenFile
from conceptry.formats.tensors import RawTensor
from conceptry.formats.torch_pickles import StorageRef, TensorRef, TorchBuilder

MAX_MEMBERS: Final = 70_000
MAX_GROWTH: Final = 2
SPARE_BYTES: Final = 64 << 20
LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL: Final = 1001
_SMALL_MEMBERS: Final = re.compile(
    r"(?:version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment)"
)
_STORAGE_MEMBER: Final = re.compile(r"data/([A-Za-z0-9_]{1,64})")
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes lie in a file; ``crc`` is what the archive says of them, 0 where it says nothing."""

    start: int
    size: int
    crc: int = 0


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What a PyTorch file holds; no tensor is read yet."""

    container: str
    tree: Tree
    places: Mapping[str, Place]
    dropped: tuple[str, ...]


def read_torch_file(file: BinaryIO) -> TorchFile:
    """Returns what an open PyTorch file describes.

    Raises:
        InvalidFileError: if it is neither form, holds a name or a member that no tensor file needs, a tensor reaches
            beyond its storage, or the tensors together would be far larger than the file.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    builder = TorchBuilder()
    if file.read(4).startswith(b"PK"):
        container, value, places = "torch_zip", *_read_zip(file, size_bytes, builder)
    else:
        container, value, places = "torch_legacy", *_read_legacy(file, size_bytes, builder)
    tree = flatten(value)
    if not tree.tensors:
        raise InvalidFileError("its pickle holds no tensor")
    for name, tensor in tree.tensors.items():
        _check_storage(name, tensor.storage, places)
    total = sum(tensor.size_bytes for tensor in tree.tensors.values())
    if total > MAX_GROWTH * size_bytes + SPARE_BYTES:
        raise InvalidFileError(f"its tensors would take {total} bytes, the file has {size_bytes}")
    return TorchFile(container, tree, places, tuple(sorted(builder.dropped)))


def _check_storage(name: str, storage: StorageRef, places: Mapping[str, Place]) -> None:
    place = places.get(storage.key)
    if place is None:
        raise InvalidFileError(f"its storage {storage.key!r} is missing", where=name)
    wanted = storage.elements * DTYPE_BYTES[storage.dtype]
    if wanted > place.size:
        raise InvalidFileError(
            f"its storage {storage.key!r} has {place.size} bytes, not the {wanted} that are claimed",
            where=name,
        )


def check_storages(file: BinaryIO, found: TorchFile) -> None:
    """Raises InvalidFileError where the bytes of a storage are not those that the archive was closed with."""
    for key in sorted({tensor.storage.key for tensor in found.tree.tensors.values()}):
        place = found.places[key]
        if place.crc and _sum(file, place) != place.crc:
            raise InvalidFileError(f"its storage {key!r} is damaged", hint="download it again")


def _sum(file: BinaryIO, place: Place) -> int:
    file.seek(place.start)
    total, left = 0, place.size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            break
        total = zlib.crc32(chunk, total)
        left -= len(chunk)
    return total


def list_tensors(file: BinaryIO, name: str, found: TorchFile) -> dict[str, RawTensor]:
    """Returns the tensors of an open file, each of which is read when its bytes are wanted."""
    kept = OpenFile(file, name)
    return {
        key: RawTensor(tensor.dtype, tensor.shape, _find_source(kept, tensor, found.places))
        for key, tensor in found.tree.tensors.items()
    }


def _find_source(file: OpenFile, tensor: TensorRef, places: Mapping[str, Place]) -> FileRange | StridedRange:
    item = DTYPE_BYTES[tensor.dtype]
    start = places[tensor.storage.key].start + tensor.offset * item
    if tensor.is_contiguous:
        return FileRange(file, start, tensor.size_bytes)
    return StridedRange(FileRange(file, start, tensor.span * item), tensor)


@dataclass(frozen=True, slots=True)
class StridedRange:
    """A Source: the values of a tensor that do not lie side by side, in row-major order."""

    place: FileRange
    tensor: TensorRef

    def __len__(self) -> int:
        return self.tensor.size_bytes

    def read(self) -> bytes:
        """Returns the values in row-major order. Raises InvalidFileError if the file changed."""
        import numpy as np

        item = DTYPE_BYTES[self.tensor.dtype]
        values = np.frombuffer(self.place.read(), dtype=f"u{item}")
        strides = tuple(step * item for step in self.tensor.strides)
        return np.lib.stride_tricks.as_strided(values, self.tensor.shape, strides, writeable=False).tobytes()

    def iter_chunks(self) -> Iterator[memoryview]:
        """Returns the same in pieces. Raises InvalidFileError if the file changed."""
        return InMemory(self.read()).iter_chunks()


# --- the zip form --------------------------------------------------------------------------------------------------


def _read_zip(file: BinaryIO, size_bytes: int, builder: TorchBuilder) -> tuple[Any, dict[str, Place]]:
    try:
        with zipfile.ZipFile(file) as archive:
            members, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        raise InvalidFileError(
            "its zip archive is cut off or damaged, or no archive at all", hint="download it again"
        ) from error
    places = {}
    for name, member in _strip_root(members).items():
        places[name] = _find_place(file, member, min(end, size_bytes))
    pickle = places.get("data.pkl")
    if pickle is None:
        raise InvalidFileError("it is a zip archive without a PyTorch pickle", hint="unpack it first")
    _check_byteorder(file, places.get("byteorder"))
    if pickle.size > MAX_PICKLE_BYTES:
        raise InvalidFileError(f"its pickle of {pickle.size} bytes is longer than {MAX_PICKLE_BYTES}")
    data = _read_place(file, pickle)
    if pickle.crc and zlib.crc32(data) != pickle.crc:
        raise InvalidFileError("its pickle is damaged", hint="download it again")
    value, _ = read_pickle(data, builder)
    return value, {
        match.group(1): place for name, place in places.items() if (match := _STORAGE_MEMBER.fullmatch(name))
    }


def _strip_root(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    if len(members) > MAX_MEMBERS:
        raise InvalidFileError(f"its zip archive has {len(members)} members, more than {MAX_MEMBERS}")
    roots = {member.filename.partition("/")[0] for member in members}
    found: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = member.filename.partition("/")[2]
        if name.startswith(("code/", "constants.pkl")):
            raise InvalidFileError("it is a TorchScript archive, which holds code")
        if len(roots) > 1 or not (
            name == "data.pkl" or _SMALL_MEMBERS.fullmatch(name) or _STORAGE_MEMBER.fullmatch(name)
        ):
            raise InvalidFileError(
                f"it is a zip archive with {member.filename[:80]!r}, which no PyTorch file has",
                hint="unpack it first if it is an archive of models",
            )
        if name in found:
            raise InvalidFileError(f"its zip archive has {name!r} twice")
        found[name] = member
    return found


def _find_place(file: BinaryIO, member: zipfile.ZipInfo, end: int) -> Place:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise InvalidFileError(f"its member {member.filename[:80]!r} is compressed, as PyTorch never does it")
    if member.flag_bits & 0x1:
        raise InvalidFileError(f"its member {member.filename[:80]!r} is encrypted")
    head = b""
    if 0 <= member.header_offset < end:
        file.seek(member.header_offset)
        head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        raise InvalidFileError(f"its member {member.filename[:80]!r} lies outside the file")
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
    local_name = file.read(name_bytes)
    if signature != b"PK\x03\x04" or local_name != member.orig_filename.encode("utf-8", "replace"):
        raise InvalidFileError(f"its member {member.filename[:80]!r} is another one where it lies")
    start = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + member.file_size > end:
        raise InvalidFileError(f"its member {member.filename[:80]!r} reaches beyond the archive")
    return Place(start, member.file_size, member.CRC)


def _read_place(file: BinaryIO, place: Place) -> bytes:
    file.seek(place.start)
    return file.read(place.size)


def _check_byteorder(file: BinaryIO, place: Place | None) -> None:
    if place is not None and (place.size > 16 or _read_place(file, place) != b"little"):
        raise InvalidFileError("its numbers are not little-endian")


# --- the older form ------------------------------------------------------------------------------------------------


def _read_legacy(file: BinaryIO, size_bytes: int, builder: TorchBuilder) -> tuple[Any, dict[str, Place]]:
    file.seek(0)
    data = file.read(min(size_bytes, MAX_PICKLE_BYTES))
    magic, position = read_pickle(data, builder)
    if magic != LEGACY_MAGIC or type(magic) is not int:
        raise InvalidFileError(
            "it is a plain Python pickle and no file of PyTorch", hint="ask for the file as safetensors"
        )
    protocol, position = read_pickle(data, builder, position)
    system, position = read_pickle(data, builder, position)
    if type(protocol) is not int or protocol != LEGACY_PROTOCOL or type(system) is not dict:
        raise InvalidFileError("it is a PyTorch file of another protocol than 1001")
    if system.get("little_endian") is not True:
        raise InvalidFileError("its numbers are not little-endian")
    value, position = read_pickle(data, builder, position)
    keys, position = read_pickle(data, builder, position)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise InvalidFileError("its list of storages is no list of names")
    items = {ref.key: DTYPE_BYTES[ref.dtype] for ref in builder.storages}
    return value, _find_storages(file, size_bytes, keys, items, position)


def _find_storages(
    file: BinaryIO, size_bytes: int, keys: list[str], items: Mapping[str, int], position: int
) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for key in keys:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        if key not in items or key in places:
            raise InvalidFileError(f"its storage {key[:80]!r} belongs to no tensor, or is listed twice")
        size = count * items[key]
        position += 8
        if position + size > size_bytes:
            raise InvalidFileError(
                f"it is cut off: storage {key[:80]!r} ends at byte {position + size}, the file has {size_bytes}",
                hint="download it again",
            )
        places[key] = Place(position, size)
        position += size
    if position != size_bytes:
        raise InvalidFileError(f"{size_bytes - position} bytes follow the last storage")
    return places
