"""What a file is, told from its first bytes and never from its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SNIFFED_BYTES: Final = 512
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One kind of file that people take for an adapter, and what to do about it."""

    id: str
    title: str
    recognise: Callable[[bytes], bool]
    hint: str | None = None


def _starts_with(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(prefixes)


def _is_html(start: bytes) -> bool:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def _is_safetensors(start: bytes) -> bool:
    return (
        len(start) > _LENGTH_BYTES
        and start[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"
        and start[5:8] == b"\0\0\0"
    )


def _is_text(start: bytes) -> bool:
    try:
        text = start[:-3].decode("utf-8") if len(start) == SNIFFED_BYTES else start.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\r\n" for char in text)


def _is_torch_zip(start: bytes) -> bool:
    """Returns whether the first member of a zip is called as PyTorch calls it."""
    name = start[30 : 30 + int.from_bytes(start[26:28], "little")]
    return start.startswith(b"PK\x03\x04") and name.endswith(b"/data.pkl")


def _is_torch_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar" and start[:100].rstrip(b"\0") in (
        b"sys_info",
        b"pickle",
        b"tensors",
        b"storages",
    )


# Protocol 0 begins with the name of a function, or with the opening of a tuple or dictionary and such a name.
_PICKLE_TEXT: Final = re.compile(rb"[(}\]]{0,3}[ci][\w.]+\n[\w.]+\n")
_PICKLE_MAGIC: Final = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

_AGAIN: Final = "download it again; the page that came back was not the file"
_CONVERT: Final = "concepts import FILE reads it in a process of its own and keeps safetensors"
_ASK: Final = "ask for the file as safetensors"

# A safetensors header of 640 bytes begins like a pickle, so safetensors stands first.
CONTAINERS: Final[tuple[Container, ...]] = (
    Container(id="safetensors", title="a safetensors file", recognise=_is_safetensors),
    Container(id="empty", title="an empty file", recognise=lambda start: not start, hint="download it again"),
    Container(
        id="lfs_pointer",
        title="a Git LFS pointer, the note that stands for a file",
        recognise=_starts_with(b"version https://git-lfs.github.com/spec/"),
        hint="run `git lfs pull` where it was cloned",
    ),
    Container(id="html", title="an HTML page", recognise=_is_html, hint=_AGAIN),
    Container(
        id="gguf", title="a GGUF file", recognise=_starts_with(b"GGUF"), hint="quantised models are not read"
    ),
    Container(
        id="torch_zip",
        title="a PyTorch file, a pickle and its numbers in a zip archive",
        recognise=_is_torch_zip,
        hint=_CONVERT,
    ),
    Container(
        id="zip",
        title="a zip archive",
        recognise=_starts_with(b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
        hint="unpack it first",
    ),
    Container(
        id="torch_legacy",
        title="a PyTorch file of before 1.6, pickles and their numbers",
        recognise=lambda start: start[:1] == b"\x80" and start[2:].startswith(_PICKLE_MAGIC),
        hint=_CONVERT,
    ),
    Container(
        id="pickle",
        title="a Python pickle, which can run code",
        recognise=lambda start: start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"),
        hint=_CONVERT,
    ),
    Container(
        id="pickle_text",
        title="a Python pickle in its oldest form, which can run code",
        recognise=lambda start: _PICKLE_TEXT.match(start) is not None,
        hint=_ASK,
    ),
    Container(
        id="7z",
        title="a 7-Zip archive",
        recognise=_starts_with(b"7z\xbc\xaf\x27\x1c"),
        hint="unpack it first",
    ),
    Container(id="gzip", title="a gzip file", recognise=_starts_with(b"\x1f\x8b"), hint="unpack it first"),
    Container(
        id="torch_tar",
        title="a PyTorch file of before 0.1.10, a tar archive of pickles",
        recognise=_is_torch_tar,
        hint=_ASK,
    ),
    Container(
        id="tar",
        title="a tar archive",
        recognise=lambda start: start[257:262] == b"ustar",
        hint="unpack it first",
    ),
    *(
        Container(id=id, title=title, recognise=_starts_with(prefix), hint=hint)
        for id, title, prefix, hint in (
            ("rar", "a RAR archive", b"Rar!\x1a\x07", "unpack it first"),
            ("xz", "an xz file", b"\xfd7zXZ\0", "unpack it first"),
            ("zstd", "a Zstandard file", b"\x28\xb5\x2f\xfd", "unpack it first"),
            ("bzip2", "a bzip2 file", b"BZh", "unpack it first"),
            ("numpy", "a NumPy array", b"\x93NUMPY", None),
            ("hdf5", "an HDF5 file", b"\x89HDF\r\n\x1a\n", _ASK),
            ("pdf", "a PDF document", b"%PDF-", None),
            ("gif", "a GIF picture", b"GIF8", None),
        )
    ),
    Container(
        id="png",
        title="a PNG picture",
        recognise=_starts_with(b"\x89PNG\r\n\x1a\n"),
        hint="concepts import FILE reads an embedding that is in it",
    ),
    Container(id="jpeg", title="a JPEG picture", recognise=_starts_with(b"\xff\xd8\xff")),
    Container(
        id="webp",
        title="a WebP picture",
        hint="an embedding in it is read where it is a PNG picture",
        recognise=lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP",
    ),
    Container(
        id="json",
        title="a JSON document",
        recognise=lambda start: start.lstrip()[:1] in (b"{", b"[") and _is_text(start),
    ),
    Container(id="text", title="a text file", recognise=_is_text),
)
UNKNOWN: Final = Container(
    id="unknown",
    title="no format that is known here",
    recognise=lambda start: True,
    hint="concepts identify says what is read",
)


def recognise_container(start: bytes) -> Container:
    """Returns what the file is that begins with ``start``, its first 512 bytes (all of them where it is shorter)."""
    return next((row for row in CONTAINERS if row.recognise(start)), UNKNOWN)
