"""SHA-256 digests as a type, and canonical JSON, the bytes that a version's identity is taken from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.errors import InvalidDigestError, InvalidManifestError

if TYPE_CHECKING:
    from hashlib import _Hash

_PATTERN: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_CHUNK_BYTES: Final = 1 << 20


def new_hasher() -> _Hash:
    """Returns a fresh SHA-256; OpenSSL is loaded here, since a listing starts without it."""
    import hashlib

    return hashlib.sha256()


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest; it can be built from well-formed text or from bytes only.

    Text is ``sha256:`` and 64 lower-case hexadecimal digits, nothing before and nothing after.
    """

    hex: str

    def __post_init__(self) -> None:
        if _PATTERN.fullmatch(f"sha256:{self.hex}") is None:
            raise InvalidDigestError(f"not a SHA-256 digest: {self.hex[:80]!r}")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Returns the digest that ``text`` names.

        Raises:
            InvalidDigestError: if the text is anything but ``sha256:`` and 64 lower-case hexadecimal digits.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise InvalidDigestError(
                f"not a SHA-256 digest: {text[:80]!r}",
                hint="a digest is written sha256: and 64 lower-case hexadecimal digits",
            )
        return cls(match.group(1))

    @classmethod
    def of_bytes(cls, data: bytes | bytearray | memoryview) -> Digest:
        """Returns the digest of ``data``."""
        hasher = new_hasher()
        hasher.update(data)
        return cls(hasher.hexdigest())

    @classmethod
    def of_chunks(cls, chunks: Iterable[bytes | memoryview]) -> Digest:
        """Returns the digest of all ``chunks`` in order."""
        hasher = new_hasher()
        for chunk in chunks:
            hasher.update(chunk)
        return cls(hasher.hexdigest())

    @classmethod
    def of_file(cls, path: Path) -> Digest:
        """Returns the digest of the bytes of the file at ``path``, read once in pieces."""
        with path.open("rb") as file:
            return cls.of_chunks(iter(lambda: file.read(_CHUNK_BYTES), b""))

    def is_of(self, data: bytes) -> bool:
        """Returns whether this is the digest of ``data``; some times as fast as making that digest and comparing."""
        hasher = new_hasher()
        hasher.update(data)
        return hasher.hexdigest() == self.hex

    @property
    def short(self) -> str:
        """The first twelve hexadecimal digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def canonical_json(value: Any) -> bytes:
    """Returns ``value`` as RFC 8785 canonical JSON; a change here would change the identity of every version.

    Raises:
        InvalidManifestError: for numbers that JSON cannot carry (not finite, integers of 2^53 and more).
    """
    import rfc8785

    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise InvalidManifestError(f"not writable as canonical JSON: {error}") from error
