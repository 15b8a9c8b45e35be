"""Sources of files that nobody published as concepts: a path, a file on the Hub, an address, a Civitai AIR.

Grammar::

    source = path | hub | url | air
    path   = a file's path, relative to the project or absolute; on a command line it begins with "./", "../" or "/",
             or ends with ".safetensors"
    hub    = "hf://" namespace "/" repository "@" revision "/" path
    url    = "https://" ... "#sha256=" 64 hexadecimal digits
    air    = "urn:air:" ecosystem ":" type ":" site ":" id [ "@" version ]

An AIR names a file and does not say where it lies or which bytes it has: it is recorded, and fetched from a url only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from conceptry.digests import Digest
from conceptry.errors import InvalidNameError

SourceKind = Literal["path", "hf", "url", "air"]

_MAX_CHARS: Final = 2000
_HUB: Final = re.compile(r"hf://([\w.-]+/[\w.-]+)@([\w.-]+)/([\w./ -]+)", re.ASCII)
_URL: Final = re.compile(r"(https?://[^\s#@]+)#sha256=([0-9a-f]{64})", re.ASCII)
_AIR: Final = re.compile(r"urn:air:[\w-]+:[\w-]+:[\w-]+:[\w./-]+(?:@[\w.-]+)?(?::[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a foreign file is, as the project writes it; ``digest`` where the text carries one."""

    kind: SourceKind
    text: str
    digest: Digest | None = None

    def __str__(self) -> str:
        return self.text


def parse_source(text: str) -> Source | None:
    """Returns the source that ``text`` writes on a command line, None if it is no source (a concept's name).

    Raises:
        InvalidNameError: if it begins like a source and is none.
    """
    if text.startswith("hf://"):
        return parse_hub_source(text)
    if text.startswith(("https://", "http://")):
        return parse_url_source(text)
    if text.startswith("urn:"):
        return parse_air(text)
    if text.startswith(("./", "../", "/", "~/", ".\\")) or text.endswith(".safetensors"):
        return parse_path_source(text)
    return None


def parse_path_source(text: str) -> Source:
    """Returns a file's path as a source. Raises InvalidNameError."""
    if not 0 < len(text) <= _MAX_CHARS or not text.isprintable():
        raise InvalidNameError(f"not a path: {text[:80]!r}", hint="write ./files/imp.safetensors")
    return Source("path", text)


def parse_hub_source(text: str) -> Source:
    """Returns a file on the Hub as a source. Raises InvalidNameError."""
    match = _HUB.fullmatch(text) if len(text) <= _MAX_CHARS and ".." not in text else None
    if match is None:
        raise InvalidNameError(
            f"not a file on the Hub: {text[:200]!r}",
            hint="write hf://namespace/repo@revision/file.safetensors",
        )
    return Source("hf", text)


def parse_url_source(text: str) -> Source:
    """Returns an address with its digest as a source. Raises InvalidNameError; credentials are refused."""
    match = _URL.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if match is None:
        raise InvalidNameError(
            f"not an address with its digest: {text.partition('?')[0][:200]!r}",
            hint="write https://host/file.safetensors#sha256= and 64 hexadecimal digits, without credentials",
        )
    return Source("url", text, Digest(match[2]))


def parse_air(text: str) -> Source:
    """Returns a Civitai AIR as a source. Raises InvalidNameError."""
    if len(text) > _MAX_CHARS or not _AIR.fullmatch(text):
        raise InvalidNameError(
            f"not an AIR: {text[:200]!r}", hint="write urn:air:sdxl:lora:civitai:12345@67890"
        )
    return Source("air", text)


def split_hub_source(source: Source) -> tuple[str, str, str]:
    """Returns repository, revision and file of a source on the Hub. Raises InvalidNameError."""
    match = _HUB.fullmatch(source.text)
    if match is None:
        raise InvalidNameError(f"not a file on the Hub: {source.text[:200]!r}")
    return match[1], match[2], match[3]
