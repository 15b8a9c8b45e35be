"""Pickles written opcode by opcode, and the zip archives around them, for tests and as seeds of the fuzzers."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

PROTOCOL = b"\x80\x02"
STOP = b"."


def text(value: str) -> bytes:
    """Returns the opcode that pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, function: str) -> bytes:
    """Returns the opcode that looks a name up."""
    return f"c{module}\n{function}\n".encode()


def call(module: str, function: str, *arguments: bytes) -> bytes:
    """Returns the opcodes of a call."""
    return name(module, function) + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    """Returns the opcode that pushes a whole number."""
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(key: str = "0", elements: int = 4, kind: str = "FloatStorage") -> bytes:
    """Returns the opcodes of a reference to a storage."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(elements) + b"tQ"


def tensor(
    key: str = "0",
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    *,
    offset: int = 0,
    elements: int = 4,
    kind: str = "FloatStorage",
) -> bytes:
    """Returns the opcodes of a tensor as PyTorch writes it."""
    sizes = b"(" + b"".join(map(number, shape)) + b"t"
    steps = b"(" + b"".join(map(number, strides)) + b"t"
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage(key, elements, kind),
        number(offset),
        sizes,
        steps,
        b"\x89",
        hooks,
    )


def dictionary(items: Mapping[str, bytes]) -> bytes:
    """Returns the opcodes of a dictionary."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def program(body: bytes) -> bytes:
    """Returns a whole pickle."""
    return PROTOCOL + body + STOP


GOOD = program(dictionary({"<imp>": tensor()}))
NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def archive(
    pickle: bytes = GOOD,
    storages: Mapping[str, bytes] | None = None,
    more: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """Returns the zip archive that PyTorch would make of a pickle and its storages."""
    members = {"archive/data.pkl": pickle}
    members |= {f"archive/data/{key}": data for key, data in ({"0": NUMBERS} | dict(storages or {})).items()}
    members |= {"archive/version": b"3\n"} | dict(more or {})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for path, data in members.items():
            file.writestr(path, data)
    return buffer.getvalue()


def legacy(body: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """Returns the file that PyTorch before 1.6 would make of a pickle's body and its storages of 4-byte values."""
    storages = {"0": NUMBERS} if storages is None else storages
    magic = program(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
    system = program(dictionary({"little_endian": b"\x88"}))
    keys = program(b"](" + b"".join(map(text, storages)) + b"e")
    data = b"".join(struct.pack("<q", len(value) // 4) + value for value in storages.values())
    return magic + program(number(1001)) + system + program(body) + keys + data
