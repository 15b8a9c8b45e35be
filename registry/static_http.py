"""A directory remote's folder behind any web server: read-only, and nothing on it is believed.

``https://host/prefix`` is where the folder is served. What a folder tells by being listed, its two lists tell here
(``catalogs``); a version that a list does not have yet is found by its own file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import quote

from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import NotFoundError, RemoteError, UsageError
from conceptry.names import ConceptName, Reference, Tag, Version
from conceptry.registry.answers import check_address
from conceptry.registry.catalogs import MAX_LIST_BYTES, VersionList, parse_catalog, parse_version_list
from conceptry.registry.choosing import choose_version, has_words
from conceptry.registry.http import Transport
from conceptry.registry.paths import KEYS
from conceptry.registry.protocol import (
    DEFAULT_SEARCH_LIMIT,
    Capabilities,
    RemoteConcept,
    RemoteEntry,
    RemoteVersion,
)
from conceptry.registry.refs import Resolved, parse_version_line

if TYPE_CHECKING:
    from conceptry.manifest import File
    from conceptry.registry.blobs import CountBytes
    from conceptry.registry.tags import TagMove

READ_ONLY: Final = Capabilities(writable=False, compare_and_swap=False)
_LINE_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class StaticRemote:
    """The remote at ``https://host/prefix``."""

    uri: str
    transport: Transport = field(repr=False)
    capabilities: Capabilities = READ_ONLY

    @classmethod
    def open(cls, uri: str) -> StaticRemote:
        """Returns the remote at an address; nothing is contacted. Raises UsageError."""
        address = check_address(uri)
        return cls(address, Transport(address))

    # --- names -------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> RemoteVersion:
        """Returns what a reference means there now. Raises NotFoundError, RemoteError, IntegrityError."""
        known = self._read_list(reference.concept)
        version = reference.version
        if version is not None and known.read_digest(version) is None:
            digest = self._read_reference(reference.concept, version)
            if digest is not None:
                return RemoteVersion(reference=Reference(reference.concept, version), digest=digest)
        return choose_version(reference, known, uri=self.uri)

    def list_versions(self, name: ConceptName) -> tuple[RemoteEntry, ...]:
        """Returns the versions of a concept there, smallest first. Raises RemoteError, IntegrityError."""
        return self._read_list(name).entries

    def search(self, words: str = "", *, limit: int = DEFAULT_SEARCH_LIMIT) -> Iterator[RemoteConcept]:
        """Yields the concepts that have all words, in order of name. Raises RemoteError, IntegrityError."""
        data = self._read(KEYS.catalog, limit_bytes=MAX_LIST_BYTES)
        if data is None:
            raise RemoteError(
                f"{self.uri} has no list of concepts",
                hint="is it the folder that concepts pushed to? pushing into it once more writes the list",
            )
        wanted = words.casefold().split()
        found = (concept for concept in parse_catalog(data) if has_words(concept, wanted))
        return itertools.islice(found, limit)

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none. Raises RemoteError, IntegrityError."""
        return self._read_reference(name, version)

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there. Raises RemoteError, IntegrityError."""
        return self._read_list(name).read_tag(tag)

    # --- bytes -------------------------------------------------------------------------------------------------

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, unchecked. Raises NotFoundError, RemoteError, IntegrityError."""
        data = self._read(KEYS.manifest(version.digest), limit_bytes=MAX_DOCUMENT_BYTES)
        if data is None:
            raise NotFoundError(f"the manifest of {version.reference} is missing on {self.uri}")
        return data

    def get(
        self, version: RemoteVersion, file: File, *, offset_bytes: int = 0
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Opens a file's bytes from an offset on. Raises NotFoundError, RemoteError, IntegrityError."""
        url = self._locate(KEYS.blob(file.sha256))
        return self.transport.stream(url, size_bytes=file.size, offset_bytes=offset_bytes)

    # --- writing: never ----------------------------------------------------------------------------------------

    def has(self, version: Resolved, file: File) -> bool:
        """Raises UsageError: nothing can be pushed there."""
        self._refuse()

    def put(self, version: Resolved, file: File, source: Path, *, on_bytes: CountBytes) -> None:
        """Raises UsageError: nothing can be pushed there."""
        self._refuse()

    def put_manifest(self, version: Resolved, data: bytes, sources: Mapping[Digest, Path]) -> bool:
        """Raises UsageError: nothing can be pushed there."""
        self._refuse()

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Raises UsageError: nothing can be pushed there."""
        self._refuse()

    def yank(self, name: ConceptName, version: Version, reason: str | None) -> None:
        """Raises UsageError: nothing can be changed there."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            f"{self.uri} can only be read",
            hint="push to the folder that it serves: concepts push REF file:///path",
        )

    # --- files -------------------------------------------------------------------------------------------------

    def _read_list(self, name: ConceptName) -> VersionList:
        data = self._read(KEYS.version_list(name), limit_bytes=MAX_LIST_BYTES)
        if data is None:
            return VersionList(name=name, entries=(), digests={}, moves={})
        return parse_version_list(data, name)

    def _read_reference(self, name: ConceptName, version: Version) -> Digest | None:
        data = self._read(KEYS.version(name, version), limit_bytes=_LINE_BYTES)
        return None if data is None else parse_version_line(data, name, version).digest

    def _read(self, path: Path, *, limit_bytes: int) -> bytes | None:
        try:
            return self.transport.read(self._locate(path), limit_bytes=limit_bytes).body
        except NotFoundError:
            return None

    def _locate(self, path: Path) -> str:
        return f"{self.uri}/{quote(KEYS.describe(path))}"
