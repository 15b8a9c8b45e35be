"""Safetensors headers, read more strictly than the library reads them: names, dtypes, shapes and places, no data.

Layout: 8 bytes little-endian length, a JSON object of that length, then the tensors without holes. What this reader
accepts, the safetensors library accepts too.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from conceptry.errors import InvalidFileError, NotFoundError, StoreError
from conceptry.formats.containers import SNIFFED_BYTES, recognise_container
from conceptry.formats.header_columns import Columns, cut_listing, read_places, read_shape, spell_places

MAX_HEADER_BYTES: Final = 8 << 20
MAX_METADATA_BYTES: Final = 1 << 20
MAX_TENSORS: Final = 65_536
MAX_NAME_BYTES: Final = 512
MAX_DIMENSIONS: Final = 8
METADATA_KEY: Final = "__metadata__"
LENGTH_BYTES: Final = 8
_ENTRY: Final = frozenset({"dtype", "shape", "data_offsets"})
_TOO_LARGE: Final = 1 << 63
_METADATA_START: Final = re.compile(rf'\{{"{METADATA_KEY}": ?')
_MAX_UTF8_BYTES: Final = 4
# A longer listing is read object by object, which takes longer and a third of the memory.
_MAX_LISTING_CHARS: Final = 2 << 20

DTYPE_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E5M2": 1,
        "F8_E4M3": 1,
        "I16": 2,
        "U16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "U32": 4,
        "F32": 4,
        "F64": 8,
        "I64": 8,
        "U64": 8,
    }
)


class TensorInfo(NamedTuple):
    """One tensor: its dtype, its shape, and the bytes it takes, counted from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


# Twice as quick as calling the class, for values that are known to be four.
_MAKE_INFO: Final[Callable[[Iterable[Any]], TensorInfo]] = functools.partial(tuple.__new__, TensorInfo)


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds, in the order of its data."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    size_bytes: int


def read_header(path: Path) -> Header:
    """Returns the header of the file at ``path``; no tensor is read.

    Raises:
        NotFoundError: if there is no regular file.
        InvalidFileError: if it is something else (which is named), truncated, or breaks a rule.
        StoreError: if it cannot be read.
    """
    with open_binary(path) as file:
        return parse_header(file, path.name)


def open_binary(path: Path) -> BinaryIO:
    """Returns the regular file at ``path``, open for reading. Raises NotFoundError or StoreError."""
    if path.is_dir():
        raise NotFoundError(f"{str(path)!r} is a folder, not a file", hint="name one file in it")
    if not path.is_file():
        raise NotFoundError(f"no file {str(path)!r}")
    try:
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error


def parse_header(file: BinaryIO, name: str) -> Header:
    """Returns the header of an open file, which is called ``name`` in messages.

    Raises:
        InvalidFileError: as ``read_header``.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    start = file.read(SNIFFED_BYTES)
    container = recognise_container(start)
    if container.id != "safetensors":
        raise InvalidFileError(f"{name!r} is {container.title}, not a safetensors file", hint=container.hint)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    try:
        if length > MAX_HEADER_BYTES:
            raise _Refusal(f"its header of {length} bytes is longer than {MAX_HEADER_BYTES}")
        if LENGTH_BYTES + length > size_bytes:
            raise _Refusal(f"its header of {length} bytes is cut off: the file has {size_bytes}")
        file.seek(LENGTH_BYTES)
        tensors, metadata = _parse_json(file.read(length))
        ordered = _check_layout(tensors, size_bytes - LENGTH_BYTES - length)
    except _Refusal as refusal:
        raise InvalidFileError(
            f"{name!r} is no sound safetensors file: {refusal}", where=refusal.where, hint="download it again"
        ) from refusal
    return Header(MappingProxyType(ordered), MappingProxyType(metadata), LENGTH_BYTES + length, size_bytes)


def parse_header_bytes(data: bytes, name: str, size_bytes: int) -> Header:
    """Returns the header that ``data`` begins with, of a file of ``size_bytes`` whose tensors are elsewhere.

    Raises:
        InvalidFileError: if it breaks a rule; it is called ``name`` in the message.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    try:
        if length > MAX_HEADER_BYTES or len(data) < LENGTH_BYTES + length:
            raise _Refusal(f"its header of {length} bytes is longer than {MAX_HEADER_BYTES}, or cut off")
        tensors, metadata = _parse_json(data[LENGTH_BYTES : LENGTH_BYTES + length])
        end = max((info.end for info in tensors.values()), default=0)
        ordered = _check_layout(tensors, end)
    except _Refusal as refusal:
        raise InvalidFileError(
            f"what {name!r} holds is not sound: {refusal}", where=refusal.where
        ) from refusal
    return Header(MappingProxyType(ordered), MappingProxyType(metadata), LENGTH_BYTES + length, size_bytes)


class _Refusal(ValueError):
    """A broken rule; ``read_header`` adds the name of the file."""

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


def _parse_json(data: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refusal(f"its header is not JSON ({error})") from error
    found = _parse_listing(text) if len(text) <= _MAX_LISTING_CHARS else None
    return found or _parse_thoroughly(text)


def _parse_listing(text: str) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    """Returns what a regular header says, or None where it is not regular, or where anything is wrong with it."""
    try:
        opening = "{"
        metadata: dict[str, str] = {}
        start = _METADATA_START.match(text)
        if start:
            metadata, end = _DECODER.raw_decode(text, start.end())
            _check_metadata(metadata)
            opening, text = ",", text[end:]
        columns = cut_listing(text, opening)
        tensors = _join_columns(columns) if columns else None
    except (ValueError, RecursionError):
        return None
    return (tensors, metadata) if tensors else None


def _join_columns(columns: Columns) -> dict[str, TensorInfo] | None:
    """Returns the tensors, or None where a rule is broken or could be: rules are checked for all, or once a shape."""
    names = columns.names
    text = "".join(names)
    longest = max(map(len, names)) * (1 if text.isascii() else _MAX_UTF8_BYTES)
    if longest > MAX_NAME_BYTES or len(names) > MAX_TENSORS or not text.isprintable() or ".." in text:
        return None
    if "" in names or "\\" in text:
        return None
    pairs = list(zip(columns.dtypes, columns.shapes, strict=True))
    sizes = {pair: _measure(*pair) for pair in set(pairs)}
    measured = [sizes[pair] for pair in pairs]
    places = _place(columns.places, [size_bytes for _, size_bytes in measured])
    if places is None:
        return None
    shapes = [shape for shape, _ in measured]
    infos = map(_MAKE_INFO, zip(columns.dtypes, shapes, *places, strict=True))
    tensors = dict(zip(names, infos, strict=True))
    return None if len(tensors) < len(names) or METADATA_KEY in tensors else tensors


def _place(texts: list[str], sizes_bytes: list[int]) -> tuple[list[int], list[int]] | None:
    """Returns where tensors of these sizes start and end, as ``texts`` say; None where they say another size."""
    text = "".join(texts)
    ends = list(itertools.accumulate(sizes_bytes))
    if ends[-1] < _TOO_LARGE and spell_places(ends, texts[0]) == text:
        return [0, *ends[:-1]], ends
    places = read_places(text)
    return places if places and list(map(operator.sub, places[1], places[0])) == sizes_bytes else None


def _measure(dtype: str, text: str) -> tuple[tuple[int, ...], int]:
    """Returns the sizes that stand between the brackets, and the bytes that they take."""
    info = _make_info(dtype, read_shape(text), [0, 0])
    if not isinstance(info, TensorInfo):
        raise _Refusal("no entry")
    size_bytes = DTYPE_BYTES[dtype] * math.prod(info.shape)
    _check_span("", info._replace(end=size_bytes))
    return info.shape, size_bytes


def _parse_thoroughly(text: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        document = _DECODER.decode(text)
    except _Refusal:
        raise
    except (ValueError, RecursionError) as error:
        raise _Refusal(f"its header is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _Refusal("a tensor's entry stands where the header belongs")
    metadata = document.pop(METADATA_KEY, {})
    _check_metadata(metadata)
    if len(document) > MAX_TENSORS:
        raise _Refusal(f"{len(document)} tensors are more than {MAX_TENSORS}")
    for name, info in document.items():
        _check_name(name)
        if not isinstance(info, TensorInfo):
            raise _Refusal("a tensor's entry is no object with dtype, shape and data_offsets", name)
        _check_span(name, info)
    return document, metadata


def _collect(pairs: list[tuple[str, Any]]) -> dict[str, Any] | TensorInfo:
    """Makes a TensorInfo of an entry while the header is parsed, so that a long one never exists as dicts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refusal(f"the name {twice[:80]!r} occurs twice")
    if len(found) == len(_ENTRY) and found.keys() >= _ENTRY:
        return _make_info(found["dtype"], found["shape"], found["data_offsets"])
    return found


def _make_info(dtype: Any, shape: Any, offsets: Any) -> TensorInfo | dict[str, Any]:
    if isinstance(dtype, str) and isinstance(shape, str) and isinstance(offsets, str):
        # Metadata that uses these three words as keys.
        return {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _Refusal(f"the dtype {str(dtype)[:40]!r} is unknown")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Refusal(f"the shape {str(shape)[:80]} is no list of at most {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _Refusal(f"the offsets {str(offsets)[:80]} are no pair of sizes")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - no generator: a file has thousands of these lists
        if type(item) is not int or not 0 <= item < _TOO_LARGE:
            return False
    return True


def _refuse_number(text: str) -> NoReturn:
    raise _Refusal(f"{text[:40]} is no whole number")


def _read_number(text: str) -> int:
    # Zero with a sign is a fraction to the library.
    return int(text) if text != "-0" else _refuse_number(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_collect,
    parse_constant=_refuse_number,
    parse_float=_refuse_number,
    parse_int=_read_number,
)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict):
        raise _Refusal("it is no object of strings", METADATA_KEY)
    total = 0
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _Refusal(f"the value of {key[:80]!r} is no string", METADATA_KEY)
        total += len(_encode(key)) + len(_encode(value))
    if total > MAX_METADATA_BYTES:
        raise _Refusal(f"it has {total} bytes, more than {MAX_METADATA_BYTES}", METADATA_KEY)


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Refusal("a string holds half a surrogate pair") from error


def find_name_fault(name: str) -> str | None:
    """Returns, in words, why ``name`` can be no tensor's name; None where it can."""
    if name == METADATA_KEY:
        return f"{METADATA_KEY!r} is the place of the metadata"
    try:
        size_bytes = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "a string holds half a surrogate pair"
    if not 1 <= size_bytes <= MAX_NAME_BYTES:
        return f"the name {name[:80]!r} has not 1 to {MAX_NAME_BYTES} bytes"
    if not name.isprintable() or ".." in name.split("/"):
        return f"the name {name[:80]!r} holds control characters or climbs out of its folder"
    return None


def _check_name(name: str) -> None:
    fault = find_name_fault(name)
    if fault:
        raise _Refusal(fault)


def _check_span(name: str, info: TensorInfo) -> None:
    expected = DTYPE_BYTES[info.dtype] * math.prod(info.shape)
    if 0 < expected == info.end - info.start < _TOO_LARGE:
        return
    expected = DTYPE_BYTES[info.dtype]
    for size in info.shape:
        expected *= size
        # The library multiplies in 64 bits and refuses what overflows on the way, even where a later size is 0.
        if expected >= _TOO_LARGE:
            raise _Refusal(f"the shape {list(info.shape)} is too large", name)
    if info.end - info.start != expected:
        raise _Refusal(
            f"the shape {list(info.shape)} of {info.dtype} takes {expected} bytes, not {info.end - info.start}",
            name,
        )


def _check_layout(tensors: dict[str, TensorInfo], data_bytes: int) -> dict[str, TensorInfo]:
    starts, ends = [info.start for info in tensors.values()], [info.end for info in tensors.values()]
    if starts and starts[0] == 0 and starts[1:] == ends[:-1] and ends[-1] == data_bytes:
        return tensors
    places = [(info.start, info.end, name) for name, info in tensors.items()]
    ordered = sorted(places)
    position = 0
    for start, end, name in ordered:
        if start != position:
            raise _Refusal(f"it starts at {start}, not at {position} where the one before ends", name)
        position = end
    if position > data_bytes:
        raise _Refusal(
            f"it is cut off: the tensors take {position} bytes, the file has {data_bytes} for them"
        )
    if position < data_bytes:
        raise _Refusal(f"{data_bytes - position} bytes follow the last tensor")
    return tensors if ordered == places else {name: tensors[name] for _, _, name in ordered}
