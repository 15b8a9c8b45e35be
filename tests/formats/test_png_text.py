"""Texts of PNG pictures: every form is read, and no file, whatever it claims, costs more than its limit."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.formats.png_text import MAX_TEXT_BYTES, PNG_SIGNATURE, read_texts

END = b"\0\0\0\0IEND\xaeB`\x82"


def chunk(kind: bytes, data: bytes, *, size: int | None = None, check: int | None = None) -> bytes:
    found = zlib.crc32(kind + data) if check is None else check
    return struct.pack(">I4s", len(data) if size is None else size, kind) + data + struct.pack(">I", found)


def write(path: Path, *chunks: bytes, end: bytes = END) -> Path:
    path.write_bytes(PNG_SIGNATURE + b"".join(chunks) + end)
    return path


def test_every_form_of_text_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "all.png",
        chunk(b"tEXt", b"one\0caf\xe9"),
        chunk(b"IDAT", bytes(1000)),
        chunk(b"zTXt", b"two\0\0" + zlib.compress(b"packed")),
        chunk(b"iTXt", b"three\0\0\0en\0\0" + "漢字".encode()),
        chunk(b"iTXt", b"four\0\1\0\0\0" + zlib.compress("ß".encode())),
        chunk(b"tEXt", b"one\0again"),
    )
    assert read_texts(path) == {"one": "café", "two": "packed", "three": "漢字", "four": "ß"}


BOMB = zlib.compress(bytes(MAX_TEXT_BYTES + 1))
HOSTILE = {
    "no PNG": b"GIF89a",
    "nothing": b"",
    "cut off in a head": PNG_SIGNATURE + b"\0\0",
    "cut off without an end": PNG_SIGNATURE + chunk(b"tEXt", b"a\0b"),
    "a length that lies": PNG_SIGNATURE + chunk(b"IDAT", b"abc", size=0xFFFFFFFF),
    "a text of gigabytes": PNG_SIGNATURE + chunk(b"tEXt", b"a\0b", size=0x7FFFFFFF),
    "a wrong check sum": PNG_SIGNATURE + chunk(b"tEXt", b"a\0b", check=1) + END,
    "a text without a key": PNG_SIGNATURE + chunk(b"tEXt", b"no key") + END,
    "a broken stream": PNG_SIGNATURE + chunk(b"zTXt", b"a\0\0nonsense") + END,
    "a stream that was cut off": PNG_SIGNATURE
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(99))[:-4])
    + END,
    "a stream that unpacks to too much": PNG_SIGNATURE + chunk(b"zTXt", b"a\0\0" + BOMB) + END,
    "many streams that do so together": PNG_SIGNATURE
    + b"".join(chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(1 << 20))) for n in range(9))
    + END,
    "an iTXt without its fields": PNG_SIGNATURE + chunk(b"iTXt", b"a\0\0\0") + END,
    "too many keys": PNG_SIGNATURE + b"".join(chunk(b"tEXt", b"%d\0" % n) for n in range(300)) + END,
    "too many chunks": PNG_SIGNATURE + chunk(b"IDAT", b"") * 100_001 + END,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_picture_is_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(InvalidFileError) as caught:
            read_texts(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.where == "it.png"
    assert peak_bytes < 4 * MAX_TEXT_BYTES


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_texts_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.png"
    whole = PNG_SIGNATURE + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b" * 99)) + data + END
    path.write_bytes(whole[:cut] if cut < len(whole) else whole)
    try:
        texts = read_texts(path)
    except InvalidFileError:
        return
    assert set(map(type, texts.values())) <= {str}


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no picture at"):
        read_texts(tmp_path / "none.png")
