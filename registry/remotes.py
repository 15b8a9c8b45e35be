"""Remotes: the small protocol they speak, and the table of their kinds by scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from conceptry.digests import Digest
from conceptry.errors import NotFoundError, UsageError, suggest_nearest
from conceptry.names import ConceptName, Reference, RemoteName, Tag, Version
from conceptry.registry.blobs import CountBytes
from conceptry.registry.directory import DirectoryRemote
from conceptry.registry.paths import locate_file_uri
from conceptry.registry.refs import Resolved
from conceptry.registry.tags import TagMove


class Remote(Protocol):
    """Where others keep theirs. Names are resolved once; everything after asks for digests."""

    @property
    def uri(self) -> str:
        """The remote's address, for messages."""

    def resolve(self, reference: Reference) -> Resolved:
        """Returns what a reference means there now. Raises NotFoundError, RemoteError."""

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none, also where nothing was ever pushed."""

    def list(self, name: ConceptName | None = None) -> Iterable[Resolved]:
        """Returns the versions there, of one concept or of all. Raises RemoteError."""

    def has(self, digest: Digest, size_bytes: int) -> bool:
        """Returns whether a blob is there, complete. Raises RemoteError."""

    def get(self, digest: Digest, *, offset_bytes: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Opens a blob's bytes from an offset on. Raises NotFoundError, RemoteError."""

    def get_manifest(self, version: Resolved) -> bytes:
        """Returns a manifest's bytes, at most 1 MiB, unchecked. Raises NotFoundError, RemoteError."""

    def put(self, digest: Digest, size_bytes: int, source: Path, *, on_bytes: CountBytes) -> None:
        """Copies a blob there; its bytes are hashed on the way. Raises IntegrityError, RemoteError."""

    def put_manifest(self, version: Resolved, data: bytes) -> bool:
        """Returns True if the version is there from now on, False if it was already.

        Of several who put the same version at the same time with other contents, exactly one succeeds.

        Raises:
            ConflictError: if the version is there with other contents.
        """

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there. Raises RemoteError."""

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Moves a tag if it still is where it was seen. Raises ConflictError, RemoteError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteKind:
    """One kind of remote: the scheme of its addresses, and what opens it."""

    scheme: str
    title: str
    example: str
    check: Callable[[str], object]
    """Raises UsageError for an address that cannot be one; nothing is contacted."""

    open: Callable[[str], Remote]


REMOTES: Final[tuple[RemoteKind, ...]] = (
    RemoteKind(
        scheme="file",
        title="a folder: local, on a network share or on a memory stick",
        example="file:///srv/concepts",
        check=locate_file_uri,
        open=DirectoryRemote.open,
    ),
)


def find_remote_row(uri: str) -> RemoteKind:
    """Returns the kind of remote that an address is of. Raises UsageError."""
    scheme = urlsplit(uri).scheme
    for row in REMOTES:
        if row.scheme == scheme:
            return row
    known = ", ".join(row.example for row in REMOTES)
    raise UsageError(f"no remote has addresses like {uri[:200]!r}", hint=f"addresses are written {known}")


def open_remote(remote: RemoteName | str, configured: Mapping[RemoteName, str]) -> Remote:
    """Returns the remote of that name or address.

    Raises:
        NotFoundError: if no remote is configured under the name.
        UsageError: if the address is of no known kind.
    """
    uri = configured.get(RemoteName(remote))
    if uri is None and "://" not in remote:
        raise NotFoundError(
            f"no remote is called {remote[:80]!r}",
            hint=suggest_nearest(remote, configured) or f"concepts remote add {remote[:80]} file:///path",
        )
    address = uri if uri is not None else remote
    return find_remote_row(address).open(address)
