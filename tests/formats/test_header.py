"""Headers: literal bytes in, a value or one clear sentence out; never more than the library accepts."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.formats.header import MAX_HEADER_BYTES, TensorInfo, read_header

ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
GOOD = "{" + ENTRY + "}"
DATA = bytes(8)


def with_header(text: str | bytes, data: bytes = DATA) -> bytes:
    head = text.encode() if isinstance(text, str) else text
    return len(head).to_bytes(8, "little") + head + data


def write(folder: Path, data: bytes) -> Path:
    path = folder / "file.safetensors"
    path.write_bytes(data)
    return path


def read_or_refuse(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]] | None:
    try:
        header = read_header(path)
    except InvalidFileError:
        return None
    return dict(header.tensors), dict(header.metadata)


def library_accepts(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            list(file.keys())
    except (SafetensorError, OSError):
        return False
    return True


def test_literal_bytes_are_read_as_what_they_say(tmp_path: Path) -> None:
    head = b'{"__metadata__":{"b":"c"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   '
    header = read_header(write(tmp_path, with_header(head)))
    assert dict(header.tensors) == {"a": TensorInfo("F32", (2,), 0, 8)}
    assert dict(header.metadata) == {"b": "c"}
    assert (header.data_start, header.size_bytes) == (8 + len(head), 16 + len(head))


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    late = '"a":{"dtype":"U8","shape":[1],"data_offsets":[7,8]}'
    early = '"b":{"dtype":"U8","shape":[7],"data_offsets":[0,7]}'
    empty = '"c":{"dtype":"F32","shape":[0],"data_offsets":[7,7]}'
    header = read_header(write(tmp_path, with_header("{" + ",".join([late, empty, early]) + "}")))
    assert list(header.tensors) == ["b", "c", "a"]


REFUSED_HEADERS = {
    "white space before the brace": " " + GOOD,
    "no object": "[]      ",
    "not JSON": "{" + ENTRY,
    "text after the object": GOOD + "x",
    "a name twice": "{" + ENTRY + "," + ENTRY + "}",
    "metadata twice": '{"__metadata__":{},"__metadata__":{},' + ENTRY + "}",
    "a metadata key twice": '{"__metadata__":{"k":"1","k":"2"},' + ENTRY + "}",
    "metadata that is null": '{"__metadata__":null,' + ENTRY + "}",
    "metadata that is a number": '{"__metadata__":{"k":1},' + ENTRY + "}",
    "metadata that is nested": '{"__metadata__":{"k":{"l":"m"}},' + ENTRY + "}",
    "metadata that looks like a tensor": '{"__metadata__":' + ENTRY.partition(":")[2] + "}",
    "an unknown dtype": GOOD.replace("F32", "F33"),
    "a dtype in lower case": GOOD.replace("F32", "f32"),
    "a dtype that is a list": GOOD.replace('"F32"', '["F32"]'),
    "an entry without a shape": '{"a":{"dtype":"F32","data_offsets":[0,8]}}',
    "an entry with a further field": GOOD.replace('"dtype"', '"x":1,"dtype"'),
    "an entry that is a list": '{"a":[]}',
    "a negative size": GOOD.replace("[2]", "[-2]"),
    "zero with a sign": GOOD.replace("[0,8]", "[-0,8]"),
    "a fraction": GOOD.replace("[2]", "[2.0]"),
    "a truth value as size": GOOD.replace("[2]", "[2,true]"),
    "nine dimensions": GOOD.replace("[2]", "[2,1,1,1,1,1,1,1,1]"),
    "a size beyond 64 bits": GOOD.replace("[2]", "[18446744073709551618]"),
    "a product that wraps around": GOOD.replace("[2]", "[4611686018427387904,2,2,2]"),
    "a number of 5,000 digits": GOOD.replace("[2]", f"[{'9' * 5000}]"),
    "shape and span that disagree": GOOD.replace("[2]", "[3]"),
    "one offset": GOOD.replace("[0,8]", "[8]"),
    "offsets that run backwards": GOOD.replace("[0,8]", "[8,0]"),
    "a hole at the start": GOOD.replace("[2]", "[1]").replace("[0,8]", "[4,8]"),
    "an overlap": "{" + ENTRY + "," + ENTRY.replace('"a"', '"b"') + "}",
    "NaN": GOOD.replace("[2]", "[NaN]"),
    "half a surrogate pair": GOOD.replace('"a"', '"\\ud800"'),
    "a control character in a name": GOOD.replace('"a"', '"a\\u0000"'),
    "a name that climbs": GOOD.replace('"a"', '"../a"'),
    "an empty name": GOOD.replace('"a"', '""'),
    "a name of 513 bytes": GOOD.replace('"a"', f'"{"a" * 513}"'),
    "lists in lists": '{"a":' + "[" * 200_000 + "]" * 200_000 + "}",
    "bytes that are no UTF-8": GOOD.encode().replace(b'"a"', b'"\xff"'),
}


@pytest.mark.parametrize("head", REFUSED_HEADERS.values(), ids=REFUSED_HEADERS.keys())
def test_header_with_a_fault_is_refused(head: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_header(write(tmp_path, with_header(head)))
    assert "file.safetensors" in caught.value.message


REFUSED_FILES = {
    "bytes after the last tensor": (with_header(GOOD, bytes(9)), "1 bytes follow"),
    "a truncated download": (with_header(GOOD, bytes(7)), "cut off"),
    "a header that is cut off": (with_header(GOOD)[:30], "cut off"),
    "a header that is too long": (
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{" + bytes(MAX_HEADER_BYTES),
        "longer than",
    ),
    "an empty file": (b"", "empty file"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "LFS pointer",
    ),
    "an HTML page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "HTML page"),
    "a zip": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(9), "pickle"),
    "a GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(20), "GGUF"),
    "a 7-Zip archive": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "7-Zip"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG"),
    "a text": (("my trigger word is <blue-imp> – ü\n" * 30).encode(), "text file"),
    "a JSON document": (b'{"trigger": "imp"}', "JSON"),
    "noise": (bytes(range(128, 256)), "no format"),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED_FILES.values(), ids=REFUSED_FILES.keys())
def test_file_that_is_something_else_is_named_for_what_it_is(
    data: bytes, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidFileError) as caught:
        read_header(write(tmp_path, data))
    assert expected in caught.value.message
    assert caught.value.exit_code == 4


def test_missing_file_and_folder_are_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError):
            read_header(path)


def test_safetensors_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    head = GOOD.ljust(0x280)
    data = with_header(head)
    assert data[:2] == b"\x80\x02"
    assert "a" in read_header(write(tmp_path, data)).tensors


def test_file_of_the_library_is_read_alike(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "half": np.ones((3, 4), np.float16),
        "byte": np.ones(5, np.uint8),
        "scalar": np.array(1.5),
        "none": np.ones((0, 4), np.float32),
        "flag": np.array([True]),
    }
    path = tmp_path / "file.safetensors"
    save_file(arrays, path, {"key": "ü"})
    header = read_header(path)
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    assert header.metadata == {"key": "ü"}


def test_header_that_the_refused_ones_differ_from_is_accepted_by_both(tmp_path: Path) -> None:
    path = write(tmp_path, with_header(GOOD))
    assert library_accepts(path)
    assert list(read_header(path).tensors) == ["a"]


pieces = st.sampled_from(
    [
        *(
            '"a"',
            '"b"',
            '"__metadata__"',
            ":",
            ",",
            "{",
            "}",
            "[",
            "]",
            "[0,8]",
            "[8,8]",
            "[0,4]",
            "[4,8]",
            "[1]",
        ),
        *(
            '"dtype"',
            '"shape"',
            '"data_offsets"',
            '"F32"',
            '"U8"',
            '"BF16"',
            "null",
            "1e0",
            "-0",
            "8",
            '"\\u0000"',
        ),
        *(
            ENTRY,
            GOOD,
            '"__metadata__":{"k":"v"},',
            '"__metadata__": {},',
            ", ",
            "00",
            "..",
            " ",
            "\n",
            "\t",
            '"F4"',
            '"C64"',
            '"F8_E8M0"',
        ),
    ]
)
edits = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 12), pieces), max_size=4)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=edits, count=st.integers(0, 3), tail=st.integers(0, 9))
def test_mutated_header_is_refused_or_accepted_by_both_readers(
    changes: list[tuple[int, int, str]], count: int, tail: int, tmp_path: Path
) -> None:
    entries = [
        f'"{index}":{{"dtype":"U8","shape":[3],"data_offsets":[{3 * index},{3 * index + 3}]}}'
        for index in range(count)
    ]
    head = "{" + ",".join(entries or [ENTRY]) + "}"
    for position, length, piece in changes:
        head = head[:position] + piece + head[position + length :]
    data = bytes(3 * count if count else 8) + bytes(tail // 9)
    # One line break is as good as none, and keeps a header from being read as the regular listing that it was.
    broken = read_or_refuse(write(tmp_path, with_header(head.replace("{", "{\n", 1), data)))
    path = write(tmp_path, with_header(head, data))
    header = read_or_refuse(path)
    assert header == broken
    if header is None:
        return
    assert library_accepts(path)
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == header[0].keys()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_bytes_end_in_a_clear_refusal_or_a_header(data: st.DataObject, tmp_path: Path) -> None:
    raw = bytearray(with_header(GOOD))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path, bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        read_header(path)
    except InvalidFileError:
        return
    assert library_accepts(path)


def test_long_header_is_parsed_in_ten_times_its_memory(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        f"lora_unet_input_blocks_{index:06}_attn2_to_k.lora_down.weight": {
            "dtype": "U8",
            "shape": [1],
            "data_offsets": [index, index + 1],
        }
        for index in range(8_192)
    }
    path = write(tmp_path, with_header(json.dumps(document), bytes(8_192)))
    header_bytes = path.stat().st_size - 8_192
    tracemalloc.start()
    header = read_header(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(header.tensors) == 8_192
    assert peak_bytes < 10 * header_bytes
