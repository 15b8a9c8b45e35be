"""Embeddings in PNG pictures, written here with Pillow in the two forms that people share."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL", reason="of the extra torch")

import base64
import io
import itertools
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conceptry.errors import InvalidFileError
from conceptry.formats import pictures
from conceptry.formats.conversion import convert_file, read_any_header
from conceptry.formats.identify import identify
from conceptry.formats.pictures import read_picture
from conceptry.formats.tensors import read_tensors

VECTORS = np.linspace(-0.05, 0.05, 2 * 768, dtype=np.float32).reshape(2, 768)
DOCUMENT = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}},
    "name": "blue-imp",
    "step": 500,
    "sd_checkpoint": None,
}
VALUES = {"string_to_token": {"*": 265}, "name": "blue-imp", "step": 500}


def paint(height: int = 96, width: int = 64) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).integers(20, 255, (height, width, 3))
    return np.linspace(0, 1, width)[None, :, None] * values // 2 + values // 2


def write_text(path: Path, chunk: str = "tEXt") -> Path:
    info, data = PngInfo(), base64.b64encode(json.dumps(DOCUMENT).encode()).decode()
    if chunk == "iTXt":
        info.add_itxt("sd-ti-embedding", data, zip=True)
    else:
        info.add_text("sd-ti-embedding", data, zip=chunk == "zTXt")
    Image.fromarray(paint().astype(np.uint8)).save(path, "PNG", pnginfo=info)
    return path


def make_key() -> Iterator[int]:
    state = 0
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255 % 16


def hide(document: object, alpha: bool = False) -> Image.Image:
    """Returns a picture between two strips whose low nibbles hold the compressed document."""
    picture = paint().astype(np.uint8)
    height = picture.shape[0]
    data = np.frombuffer(zlib.compress(json.dumps(document).encode()), np.uint8)
    padded = np.resize(data, -(-len(data) // (3 * height)) * 3 * height).reshape(height, -1, 3)
    key = np.fromiter(itertools.islice(make_key(), padded.size), np.uint8).reshape(padded.shape)
    # The upper halves of the strips' values are free: programs fill them to look like noise of their own.
    look = np.random.default_rng(1).integers(1, 15, padded.shape).astype(np.uint8) << 4
    low, high = look | ((padded & 15) ^ key), look | ((padded >> 4) ^ key)
    black = np.zeros((height, 1, 3), np.uint8)
    joined = Image.fromarray(np.concatenate([low, black, picture, black, high], axis=1))
    return joined.convert("RGBA") if alpha else joined


@pytest.mark.parametrize("chunk", ["tEXt", "zTXt", "iTXt"])
def test_embedding_in_a_text_chunk_is_read(chunk: str, tmp_path: Path) -> None:
    found = convert_file(write_text(tmp_path / "imp.png", chunk), tmp_path)
    np.testing.assert_array_equal(read_tensors(found.path)["string_to_param.*"].to_numpy(), VECTORS)
    assert (found.container, found.values) == ("png", VALUES)


@pytest.mark.parametrize("alpha", [False, True], ids=["RGB", "RGBA"])
@pytest.mark.parametrize("level", [0, 9], ids=["plain lines", "filtered lines"])
def test_embedding_in_the_pixels_is_read(alpha: bool, level: int, tmp_path: Path) -> None:
    path = tmp_path / "imp.png"
    hide(DOCUMENT, alpha).save(path, "PNG", compress_level=level, optimize=level == 9)
    found = convert_file(path, tmp_path)
    np.testing.assert_array_equal(read_tensors(found.path)["string_to_param.*"].to_numpy(), VECTORS)
    assert found.values == VALUES


def test_each_line_filter_is_undone() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    lines, above = [], np.zeros(21, np.int64)
    for kind, row in enumerate(picture.reshape(5, 21).astype(np.int64)):
        left, corner = np.concatenate([[0] * 3, row[:-3]]), np.concatenate([[0] * 3, above[:-3]])
        p = left + above - corner
        near = np.stack([abs(p - left), abs(p - above), abs(p - corner)]).argmin(axis=0)
        paeth = np.choose(near, [left, above, corner])
        guess = (np.zeros(21, np.int64), left, above, (left + above) // 2, paeth)[kind]
        lines.append(bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes())
        above = row
    png = pictures._Png(struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0), None, [zlib.compress(b"".join(lines))])
    np.testing.assert_array_equal(pictures._decode_pixels(png), picture)


def test_picture_is_identified_as_the_embedding_in_it(tmp_path: Path) -> None:
    path = write_text(tmp_path / "imp.png")
    assert "string_to_param.*" in read_any_header(path).tensors
    assert identify(path).kind in ("embedding", "unknown")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def embedded(document: bytes) -> bytes:
    return png(chunk(b"tEXt", b"sd-ti-embedding\0" + base64.b64encode(document)))


def saved(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


HEAD = struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)
REFUSED = {
    "a picture without an embedding": (
        saved(Image.fromarray(paint().astype(np.uint8))),
        "without an embedding",
    ),
    "a black picture": (saved(Image.new("RGB", (8, 8))), "without an embedding"),
    "a grey picture": (saved(Image.new("L", (8, 8))), "without an embedding"),
    "a picture with two black columns": (
        saved(Image.fromarray(np.insert(paint().astype(np.uint8), [9, 40], 0, axis=1))),
        "in its picture|without an embedding",
    ),
    "a truncated download": (embedded(b"{}")[:-20], "cut off"),
    "a damaged chunk": (embedded(b'{"a": 1}').replace(b"sd-ti", b"sd-ta"), "damaged"),
    "no pixels": (png(), "no header"),
    "a gigantic picture": (png(chunk(b"IHDR", HEAD)), "too large"),
    "a chunk of 4 GB": (b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIDAT", "chunk of 4294967295 bytes"),
    "too few pixels": (
        png(chunk(b"IHDR", HEAD[8:].rjust(13, b"\1")), chunk(b"IDAT", b"")),
        "too large|pixels",
    ),
    "no base64": (png(chunk(b"tEXt", b"sd-ti-embedding\0???")), "no base64"),
    "no JSON": (embedded(b"{"), "no JSON"),
    "JSON nested too deeply": (embedded(b"[" * 100_000), "no JSON"),
    "no tensor": (embedded(b'{"name": "imp"}'), "without an embedding"),
    "rows of several lengths": (embedded(b'{"a": {"TORCHTENSOR": [[1, 2], [3]]}}'), "no table of numbers"),
    "a table of text": (embedded(b'{"a": {"TORCHTENSOR": ["x"]}}'), "no table of numbers"),
    "a compressed bomb": (
        png(chunk(b"zTXt", b"sd-ti-embedding\0\0" + zlib.compress(bytes(80 << 20)))),
        "more than",
    ),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_picture_with_a_fault_is_refused(data: bytes, expected: str) -> None:
    with pytest.raises(InvalidFileError, match=expected):
        read_picture(io.BytesIO(data))


def test_value_that_is_not_finite_in_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imp.png"
    path.write_bytes(embedded(b'{"a": {"TORCHTENSOR": [1, NaN]}}'))
    with pytest.raises(InvalidFileError, match="NaN or infinite"):
        convert_file(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
