"""Embeddings that travel in PNG pictures: as JSON in a text chunk, or as noise in strips beside the picture.

Both forms are those that stable-diffusion-webui writes and other programs read. Runs inside the process of ``worker``;
every size is checked before anything of that size is made.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from conceptry.errors import InvalidFileError
from conceptry.formats.header import MAX_DIMENSIONS
from conceptry.formats.pickle_trees import flatten
from conceptry.formats.tensors import RawTensor
from conceptry.formats.torch_pickles import StorageRef, TensorRef

if TYPE_CHECKING:
    import numpy as np

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
TEXT_KEY: Final = b"sd-ti-embedding"
TENSOR_KEY: Final = "TORCHTENSOR"
MAX_CHUNKS: Final = 100_000
MAX_TEXT_BYTES: Final = 64 << 20
MAX_PIXELS: Final = 4 << 20
MAX_STRIP_VALUES: Final = 4 << 20
_CHANNELS: Final = {2: 3, 6: 4}
_NONE: Final = "it is a PNG picture without an embedding in it"


def read_picture(file: BinaryIO) -> tuple[Any, dict[str, RawTensor]]:
    """Returns the plain values and the tensors of the embedding in an open PNG file.

    Raises:
        InvalidFileError: if it holds none, is damaged, or passes a limit.
    """
    png = _read_chunks(file)
    data = _decode_text(png.text) if png.text is not None else _decode_strips(_decode_pixels(png))
    try:
        document = json.loads(data, parse_constant=lambda text: math.nan)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError("the embedding in its picture is no JSON") from error
    return _split(document)


# --- chunks --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Png:
    head: bytes = b""
    text: bytes | None = None
    pixels: list[bytes] = field(default_factory=list)


def _read_chunks(file: BinaryIO) -> _Png:
    file.seek(0)
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        raise InvalidFileError("it is no PNG picture")
    png, total = _Png(), 0
    for kind, data in _iter_chunks(file):
        total += len(data)
        if total > MAX_TEXT_BYTES:
            raise InvalidFileError(f"its picture takes more than {MAX_TEXT_BYTES} bytes")
        if kind == b"IHDR":
            png.head = data
        elif kind == b"IDAT":
            png.pixels.append(data)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(TEXT_KEY + b"\0"):
            png.text = _decode_chunk(kind, data[len(TEXT_KEY) + 1 :])
    return png


def _iter_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise InvalidFileError("its picture is cut off", hint="download it again")
        size, kind = struct.unpack(">I4s", head)
        if size > MAX_TEXT_BYTES:
            raise InvalidFileError(f"its picture has a chunk of {size} bytes")
        data, check = file.read(size), file.read(4)
        if len(data) < size or len(check) < 4:
            raise InvalidFileError("its picture is cut off", hint="download it again")
        if zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(check, "big"):
            raise InvalidFileError("its picture is damaged", hint="download it again")
        if kind == b"IEND":
            return
        yield kind, data
    raise InvalidFileError(f"its picture has more than {MAX_CHUNKS} chunks")


def _decode_chunk(kind: bytes, data: bytes) -> bytes:
    if kind == b"zTXt":
        return _inflate(data[1:], MAX_TEXT_BYTES)
    if kind == b"iTXt":
        packed, rest = data[:1] == b"\1", data[2:].split(b"\0", 2)
        if len(rest) < 3:
            raise InvalidFileError("its picture is damaged")
        return _inflate(rest[2], MAX_TEXT_BYTES) if packed else rest[2]
    return data


def _inflate(data: bytes, limit: int) -> bytes:
    machine = zlib.decompressobj()
    try:
        found = machine.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidFileError("what is compressed in its picture is damaged") from error
    if len(found) > limit:
        raise InvalidFileError(f"what is compressed in its picture takes more than {limit} bytes")
    return found


def _decode_text(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidFileError("the embedding in its picture is no base64") from error


# --- pixels --------------------------------------------------------------------------------------------------------


def _decode_pixels(png: _Png) -> np.ndarray[Any, Any]:
    """Returns the picture as [height, width, 3] of its red, green and blue."""
    import numpy as np

    if len(png.head) != 13:
        raise InvalidFileError("its picture has no header")
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", png.head)
    channels = _CHANNELS.get(color)
    if depth != 8 or channels is None or interlaced:
        raise InvalidFileError(_NONE)
    if not 0 < width * height <= MAX_PIXELS:
        raise InvalidFileError(f"its picture of {width} x {height} is too large to hold an embedding")
    row_bytes = width * channels
    data = _inflate(b"".join(png.pixels), (row_bytes + 1) * height)
    if len(data) != (row_bytes + 1) * height:
        raise InvalidFileError("its picture has too few pixels")
    lines = np.frombuffer(data, np.uint8).reshape(height, row_bytes + 1)
    pixels = np.zeros((height, row_bytes), np.uint8)
    above = np.zeros(row_bytes, np.uint8)
    for index, line in enumerate(lines):
        above = pixels[index] = _unfilter(int(line[0]), line[1:], above, channels)
    return pixels.reshape(height, width, channels)[:, :, :3]


def _unfilter(
    kind: int, line: np.ndarray[Any, Any], above: np.ndarray[Any, Any], channels: int
) -> np.ndarray[Any, Any]:
    """Returns a line of bytes as it was before the filter of ISO/IEC 15948, section 9."""
    import numpy as np

    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line.reshape(-1, channels), axis=0, dtype=np.uint8).reshape(-1)
    if kind == 2:
        found: np.ndarray[Any, Any] = np.add(line, above)
        return found
    if kind not in (3, 4):
        raise InvalidFileError("its picture is damaged")
    predict = _average if kind == 3 else _paeth
    values, up = [0] * channels, [0] * channels + above.tolist()
    for index, value in enumerate(line.tolist()):
        values.append((value + predict(values[index], up[index + channels], up[index])) & 0xFF)
    return np.array(values[channels:], np.uint8)


def _average(left: int, up: int, corner: int) -> int:
    return (left + up) // 2


def _paeth(left: int, up: int, corner: int) -> int:
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


def _decode_strips(pixels: np.ndarray[Any, Any]) -> bytes:
    """Returns what two strips of noise hold: low nibbles left of the first black column, high ones after the last."""
    import numpy as np

    inside: np.ndarray[Any, Any] = np.all(pixels > 0, axis=2)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        raise InvalidFileError(_NONE)
    nibbles = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(nibbles.sum(axis=(0, 2), dtype=np.int64) == 0)
    if len(black) < 2:
        raise InvalidFileError(_NONE)
    low, high = nibbles[:, : black[0]], nibbles[:, black[-1] + 1 :]
    if low.shape != high.shape or not 0 < low.size <= MAX_STRIP_VALUES:
        raise InvalidFileError(_NONE)
    key = np.fromiter(_iter_key(low.size), np.uint8, low.size).reshape(low.shape)
    return _inflate((((high ^ key) << 4) | (low ^ key)).tobytes(), MAX_TEXT_BYTES)


def _iter_key(count: int) -> Iterator[int]:
    """Gives the low nibbles of a linear congruential sequence (Numerical Recipes' constants), reduced by 255."""
    state = 0
    for _ in range(count):
        state = (1664525 * state + 1013904223) & 0xFFFF_FFFF
        yield (state % 255) & 0x0F


# --- the document --------------------------------------------------------------------------------------------------


def _split(document: Any) -> tuple[Any, dict[str, RawTensor]]:
    arrays: list[RawTensor] = []
    try:
        tree = flatten(_replace_tensors(document, arrays))
    except RecursionError as error:
        raise InvalidFileError("the embedding in its picture is nested too deeply") from error
    if not tree.tensors:
        raise InvalidFileError(_NONE)
    return tree.values, {name: arrays[int(ref.storage.key)] for name, ref in tree.tensors.items()}


def _replace_tensors(value: Any, arrays: list[RawTensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR_KEY}:
            arrays.append(_make_tensor(value[TENSOR_KEY]))
            return TensorRef(
                StorageRef(str(len(arrays) - 1), "F32", arrays[-1].elements), "F32", 0, arrays[-1].shape, ()
            )
        return {key: _replace_tensors(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_tensors(item, arrays) for item in value]
    return value


def _make_tensor(value: Any) -> RawTensor:
    import numpy as np

    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidFileError("a tensor in its picture is no table of numbers") from error
    if array.ndim > MAX_DIMENSIONS:
        raise InvalidFileError(f"a tensor in its picture has {array.ndim} dimensions")
    return RawTensor.from_numpy(array)
