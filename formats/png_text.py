"""The texts that a PNG picture carries, read in bounded memory: pixels are passed over, and every length is checked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from conceptry.errors import InvalidFileError, NotFoundError, UsageError

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS: Final = 100_000
MAX_TEXT_BYTES: Final = 4 << 20
"""Of all texts together, when they are inflated; workflows of ComfyUI take up to a few hundred kilobytes."""

_MAX_KEYS: Final = 256
_PIECE_BYTES: Final = 1 << 16
_TEXTS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_AGAIN: Final = "download it again"


def read_texts(path: Path) -> dict[str, str]:
    """Returns the texts of a PNG picture by their keys; of two with one key, the first.

    Raises:
        NotFoundError: if there is no such file.
        UsageError: if it cannot be read.
        InvalidFileError: if it is no PNG, is cut off or damaged, or its texts pass a limit.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no picture at {str(path)!r}") from error
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except InvalidFileError as error:
        raise error.inside(path.name) from error.__cause__


def _read(file: BinaryIO) -> dict[str, str]:
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        raise InvalidFileError("it is no PNG picture", hint="other programs keep notes in PNG pictures only")
    texts: dict[str, str] = {}
    left = MAX_TEXT_BYTES
    for kind, data in _iter_texts(file):
        key, text = _decode(kind, data, left)
        left -= len(text)
        if len(texts) == _MAX_KEYS:
            raise InvalidFileError(f"it has more than {_MAX_KEYS} texts")
        texts.setdefault(key, text.decode("latin-1" if kind != b"iTXt" else "utf-8", "replace"))
    return texts


def _iter_texts(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise InvalidFileError("the picture is cut off", hint=_AGAIN)
        size, kind = struct.unpack(">I4s", head)
        is_text = kind in _TEXTS
        if is_text and size > MAX_TEXT_BYTES:
            raise InvalidFileError(f"it has a text of {size} bytes, at most {MAX_TEXT_BYTES} are read")
        data = _read_chunk(file, kind, size, keep=is_text)
        if kind == b"IEND":
            return
        if is_text:
            yield kind, data
    raise InvalidFileError(f"it has more than {MAX_CHUNKS} chunks")


def _read_chunk(file: BinaryIO, kind: bytes, size: int, *, keep: bool) -> bytes:
    """Returns the bytes of a chunk, or nothing of one that is passed over; its check sum is right either way."""
    kept, check, left = bytearray(), zlib.crc32(kind), size
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise InvalidFileError("the picture is cut off", hint=_AGAIN)
        check = zlib.crc32(piece, check)
        left -= len(piece)
        if keep:
            kept += piece
    stored = file.read(4)
    if len(stored) < 4:
        raise InvalidFileError("the picture is cut off", hint=_AGAIN)
    if check != int.from_bytes(stored, "big"):
        raise InvalidFileError("the picture is damaged", hint=_AGAIN)
    return bytes(kept)


def _decode(kind: bytes, data: bytes, limit: int) -> tuple[str, bytes]:
    key, null, rest = data.partition(b"\0")
    if not null or not 0 < len(key) < 80:
        raise InvalidFileError("a text of the picture has no key")
    name = key.decode("latin-1")
    if kind == b"zTXt":
        return name, _inflate(rest[1:], limit, name)
    if kind == b"iTXt":
        parts = rest[2:].split(b"\0", 2)
        if len(parts) < 3:
            raise InvalidFileError(f"the text {name!r} of the picture is damaged")
        rest = _inflate(parts[2], limit, name) if rest[:1] == b"\1" else parts[2]
    if len(rest) > limit:
        raise _describe_excess()
    return name, rest


def _inflate(data: bytes, limit: int, name: str) -> bytes:
    machine = zlib.decompressobj()
    try:
        found = machine.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidFileError(f"the text {name!r} of the picture is damaged", hint=_AGAIN) from error
    if len(found) > limit:
        raise _describe_excess()
    if not machine.eof:
        raise InvalidFileError(f"the text {name!r} of the picture is cut off", hint=_AGAIN)
    return found


def _describe_excess() -> InvalidFileError:
    return InvalidFileError(f"its texts take more than {MAX_TEXT_BYTES} bytes")
