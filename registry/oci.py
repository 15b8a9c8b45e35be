"""An OCI registry as a remote: GHCR, Harbor, Zot, Artifactory, or the plain registry of a laboratory.

Registries cannot compare and swap. So a tag is read before and after it is put: what was there before is never put
over knowingly, a lost race is reported, and readers are protected by digests in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.digests import Digest
from conceptry.errors import ConflictError, IntegrityError, NotFoundError, RemoteError, UsageError
from conceptry.names import LATEST, ConceptName, Reference, Tag, Version
from conceptry.registry.choosing import choose_version, describe_latest, search_concepts
from conceptry.registry.oci_client import OciClient
from conceptry.registry.oci_layout import (
    EMPTY,
    OciAddress,
    Stored,
    name_tag,
    name_version,
    name_yank,
    read_document,
    read_moving_tag,
    read_version_tag,
    read_yank,
    read_yank_tag,
    write_document,
    write_yank,
)
from conceptry.registry.protocol import (
    DEFAULT_SEARCH_LIMIT,
    Capabilities,
    RemoteConcept,
    RemoteEntry,
    RemoteVersion,
)
from conceptry.registry.refs import Resolved, describe_conflict
from conceptry.registry.tags import TagMove
from conceptry.registry.yanks import check_reason

if TYPE_CHECKING:
    from conceptry.manifest import File
    from conceptry.registry.blobs import CountBytes

READ_BACK: Final = Capabilities(compare_and_swap=False)


@dataclass(frozen=True, slots=True)
class OciRemote:
    """The remote at ``oci://host/prefix``."""

    address: OciAddress
    client: OciClient = field(repr=False)
    capabilities: Capabilities = READ_BACK
    _holders: dict[Digest, str] = field(default_factory=dict, repr=False, compare=False)
    """In which repository bytes were seen, so that another can share them."""

    @classmethod
    def open(cls, uri: str) -> OciRemote:
        """Returns the remote at an address; nothing is contacted. Raises UsageError."""
        address = OciAddress.parse(uri)
        return cls(address, OciClient(address.origin))

    @property
    def uri(self) -> str:
        """The remote's address."""
        return self.address.uri

    # --- names -------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> RemoteVersion:
        """Returns what a reference means there now. Raises NotFoundError, RemoteError."""
        named = _Named(self, reference.concept)
        found = choose_version(reference, named, uri=self.uri)
        stored = named.read(_require_version(found.resolved))
        return RemoteVersion(
            reference=found.reference,
            digest=found.digest,
            commit=stored.commit if stored else None,
            yanked=found.yanked,
        )

    def list_versions(self, name: ConceptName) -> tuple[RemoteEntry, ...]:
        """Returns the versions of a concept there, smallest first. Raises RemoteError."""
        return tuple(_Named(self, name).entries)

    def search(self, words: str = "", *, limit: int = DEFAULT_SEARCH_LIMIT) -> Iterator[RemoteConcept]:
        """Yields the concepts that have all words, in order of name. Raises UsageError where a registry cannot list."""
        return search_concepts(self._list_names(), partial(describe_latest, self), words, limit=limit)

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none. Raises RemoteError."""
        stored = self.read_stored(name, name_version(version))
        return stored.digest if stored else None

    def read_stored(self, name: ConceptName, tag: str) -> Stored | None:
        """Returns what lies under one of the registry's tags, None if nothing does. Raises RemoteError."""
        data = self.client.get_manifest(self._repository(name), tag)
        return read_document(data, f"{self.uri}/{name}:{tag}") if data is not None else None

    # --- bytes -------------------------------------------------------------------------------------------------

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, unchecked. Raises NotFoundError, RemoteError."""
        return self.client.get_blob(self._repository(version.reference.concept), version.digest)

    def get(
        self, version: RemoteVersion, file: File, *, offset_bytes: int = 0
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Opens a file's bytes from an offset on. Raises NotFoundError, RemoteError."""
        repository = self._repository(version.reference.concept)
        return self.client.stream_blob(
            repository, file.sha256, size_bytes=file.size, offset_bytes=offset_bytes
        )

    # --- writing -----------------------------------------------------------------------------------------------

    def has(self, version: Resolved, file: File) -> bool:
        """Returns whether the concept's repository has a file. Raises RemoteError."""
        repository = self._repository(version.reference.concept)
        there = self.client.has_blob(repository, file.sha256, file.size)
        if there:
            self._holders[file.sha256] = repository
        return there

    def put(self, version: Resolved, file: File, source: Path, *, on_bytes: CountBytes) -> None:
        """Sends a file, or has the registry share the bytes that it knows. Raises IntegrityError, RemoteError."""
        repository = self._repository(version.reference.concept)
        if self.client.has_blob(repository, file.sha256, file.size):
            return
        self.client.put_file(
            repository,
            file.sha256,
            file.size,
            source,
            on_bytes=on_bytes,
            known_in=self._holders.get(file.sha256),
        )
        self._holders[file.sha256] = repository

    def put_manifest(self, version: Resolved, data: bytes, sources: Mapping[Digest, Path]) -> bool:
        """Returns True if the version is new there, False if it was there. Raises ConflictError, RemoteError."""
        from conceptry.registry.manifests import check_manifest

        name, number = version.reference.concept, _require_version(version)
        document = write_document(check_manifest(data, version), data)
        found = self.read_version(name, number)
        if found is not None:
            if found != version.digest:
                raise describe_conflict(version, found)
            return False
        repository = self._repository(name)
        self.client.put_bytes(repository, data)
        self.client.put_manifest(repository, name_version(number), document)
        found = self.read_version(name, number)
        if found != version.digest:
            raise describe_conflict(version, found)
        return True

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there; registries count no moves. Raises RemoteError."""
        stored = self.read_stored(name, name_tag(tag))
        return TagMove(1, stored.version, stored.digest) if stored else None

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Moves a tag if it still is where it was seen, and reads it back. Raises ConflictError, RemoteError."""
        number = _require_version(to)
        if tag == LATEST:
            raise ConflictError("the tag 'latest' cannot be moved", hint="latest is computed")
        wanted = TagMove(1, number, to.digest)
        now = self.read_tag(name, tag)
        if now == wanted:
            return wanted
        stored = self.read_stored(name, name_version(number))
        if stored is None or stored.digest != to.digest:
            raise ConflictError(f"{to.reference} is not what {self.uri} has", hint="push that version first")
        if now is None or _same(now, expected):
            self.client.put_manifest(self._repository(name), name_tag(tag), stored.data)
            now = self.read_tag(name, tag)
        if now != wanted:
            raise ConflictError(
                f"the tag {name}:{tag} was moved by somebody else" + (f" to {now.version}" if now else ""),
                hint="look at it again, then repeat the command if it should still move",
            )
        return wanted

    def yank(self, name: ConceptName, version: Version, reason: str | None) -> None:
        """Marks a version as one that nobody should choose anew; None takes the mark back. Raises NotFoundError."""
        text = None if reason is None else check_reason(reason)
        if self.read_version(name, version) is None:
            raise NotFoundError(
                f"{name} has no version {version} on {self.uri}", hint="only what is there can be yanked"
            )
        repository = self._repository(name)
        if text is None and self.read_yank(name, version) is None:
            raise NotFoundError(f"{name}@{version} is not yanked")
        self.client.put_bytes(repository, EMPTY)
        self.client.put_manifest(repository, name_yank(version), write_yank(text))

    def read_yank(self, name: ConceptName, version: Version) -> str | None:
        """Returns why a version is yanked, None if it is not. Raises RemoteError."""
        data = self.client.get_manifest(self._repository(name), name_yank(version))
        return None if data is None else read_yank(data)

    # --- inside ------------------------------------------------------------------------------------------------

    def _repository(self, name: ConceptName) -> str:
        return self.address.name_repository(name)

    def _list_names(self) -> list[ConceptName]:
        try:
            repositories = self.client.list_repositories()
        except (NotFoundError, RemoteError) as error:
            raise UsageError(
                f"{self.uri} does not say which concepts it has ({error.message})",
                hint="name the concept: concepts pull REMOTE::namespace/name",
            ) from error
        names = [name for text in repositories if (name := self.address.read_repository(text)) is not None]
        return sorted(names)


class _Named:
    """What a registry knows of one concept, read when it is asked for and once."""

    def __init__(self, remote: OciRemote, name: ConceptName) -> None:
        self._remote = remote
        self._name = name
        self._stored: dict[Version, Stored | None] = {}
        self._tags: list[str] | None = None

    @property
    def tags(self) -> list[str]:
        """All of the registry's tags."""
        if self._tags is None:
            self._tags = self._remote.client.list_tags(self._remote.address.name_repository(self._name))
        return self._tags

    @property
    def entries(self) -> Sequence[RemoteEntry]:
        """The versions, smallest first."""
        marked = {version for tag in self.tags if (version := read_yank_tag(tag)) is not None}
        versions = sorted(version for tag in self.tags if (version := read_version_tag(tag)) is not None)
        return [
            RemoteEntry(
                version=version,
                yanked=self._remote.read_yank(self._name, version) if version in marked else None,
            )
            for version in versions
        ]

    def read(self, version: Version) -> Stored | None:
        """Returns what the registry has of a version."""
        if version not in self._stored:
            self._stored[version] = self._remote.read_stored(self._name, name_version(version))
        return self._stored[version]

    def read_digest(self, version: Version) -> Digest | None:
        """Returns the digest of a version's manifest, None if there is none."""
        stored = self.read(version)
        return stored.digest if stored else None

    def read_tag(self, tag: Tag) -> TagMove | None:
        """Returns where a tag points."""
        return self._remote.read_tag(self._name, tag)

    def list_tags(self) -> list[Tag]:
        """Returns the moving tags."""
        return [tag for text in self.tags if (tag := read_moving_tag(text)) is not None]


def _same(now: TagMove, expected: TagMove | None) -> bool:
    return expected is not None and (now.version, now.digest) == (expected.version, expected.digest)


def _require_version(version: Resolved) -> Version:
    number = version.reference.version
    if number is None:
        raise IntegrityError(f"{version.reference} names no version")
    return number
