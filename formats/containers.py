"""What a file is, told from its first bytes and never from its name."""

from __future__ import annotations

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


_AGAIN: Final = "download it again; the page that came back was not the file"
_CONVERT: Final = "ask for the file as safetensors, or convert it to safetensors on a machine you can lose"

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
        id="zip",
        title="a zip archive (perhaps a PyTorch pickle)",
        recognise=_starts_with(b"PK\x03\x04", b"PK\x05\x06"),
        hint=_CONVERT,
    ),
    Container(
        id="pickle",
        title="a Python pickle, which can run code",
        recognise=lambda start: start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"),
        hint=_CONVERT,
    ),
    Container(
        id="7z",
        title="a 7-Zip archive",
        recognise=_starts_with(b"7z\xbc\xaf\x27\x1c"),
        hint="unpack it first",
    ),
    Container(id="gzip", title="a gzip file", recognise=_starts_with(b"\x1f\x8b"), hint="unpack it first"),
    Container(
        id="tar",
        title="a tar archive",
        recognise=lambda start: start[257:262] == b"ustar",
        hint="unpack it first",
    ),
    Container(id="png", title="a PNG picture", recognise=_starts_with(b"\x89PNG\r\n\x1a\n")),
    Container(id="jpeg", title="a JPEG picture", recognise=_starts_with(b"\xff\xd8\xff")),
    Container(
        id="webp",
        title="a WebP picture",
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
