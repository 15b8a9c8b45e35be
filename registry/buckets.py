"""A bucket as a remote, laid out like a directory remote, through fsspec: ``s3://bucket/prefix`` (extra ``s3``).

Versions and moves of tags are made by creating a key that nobody has, which S3 grants to exactly one of several
writers. What is done with keys is in ``objects``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IntegrityError,
    NotFoundError,
)
from conceptry.names import (
    LATEST,
    ConceptName,
    Reference,
    Tag,
    Version,
    parse_namespace,
    parse_tag,
    parse_version,
)
from conceptry.registry.choosing import choose_version, describe_latest, search_concepts
from conceptry.registry.objects import Bucket, check_bucket, open_s3
from conceptry.registry.paths import KEYS, read_version_file_name
from conceptry.registry.protocol import (
    DEFAULT_SEARCH_LIMIT,
    EVERYTHING,
    Capabilities,
    RemoteConcept,
    RemoteEntry,
    RemoteVersion,
)
from conceptry.registry.refs import Resolved, describe_conflict, parse_names, parse_version_line
from conceptry.registry.tags import TagMove
from conceptry.registry.yanks import MAX_REASON_CHARS, check_reason

if TYPE_CHECKING:
    from conceptry.manifest import File
    from conceptry.registry.blobs import CountBytes

_LINE_BYTES: Final = 256
_NUMBER: Final = re.compile(r"[0-9]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BucketRemote:
    """The remote at ``s3://bucket/prefix``."""

    uri: str
    bucket: Bucket = field(repr=False)
    capabilities: Capabilities = EVERYTHING

    @classmethod
    def open(cls, uri: str) -> BucketRemote:
        """Returns the remote at an address; nothing is contacted. Raises UsageError, MissingExtraError."""
        root = check_bucket(uri)
        return cls(f"s3://{root}", Bucket(f"s3://{root}", root, open_s3()))

    # --- names -------------------------------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> RemoteVersion:
        """Returns what a reference means there now. Raises NotFoundError, RemoteError, IntegrityError."""
        return choose_version(reference, _Named(self, reference.concept), uri=self.uri)

    def list_versions(self, name: ConceptName) -> tuple[RemoteEntry, ...]:
        """Returns the versions of a concept there, smallest first. Raises RemoteError."""
        return tuple(_Named(self, name).entries)

    def search(self, words: str = "", *, limit: int = DEFAULT_SEARCH_LIMIT) -> Iterator[RemoteConcept]:
        """Yields the concepts that have all words, in order of name. Raises RemoteError."""
        return search_concepts(self._iter_names(), partial(describe_latest, self), words, limit=limit)

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none. Raises RemoteError, IntegrityError."""
        data = self.bucket.read_document(KEYS.version(name, version), _LINE_BYTES)
        return None if data is None else parse_version_line(data, name, version).digest

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there. Raises RemoteError, IntegrityError."""
        numbers = [int(entry) for entry in self.bucket.names(KEYS.tag(name, tag)) if _NUMBER.fullmatch(entry)]
        if not numbers:
            return None
        data = self.bucket.read_document(KEYS.tag_move(name, tag, numbers[-1]), _LINE_BYTES)
        try:
            version, digest = (data or b"").decode("ascii").split()
            return TagMove(numbers[-1], parse_version(version), Digest.parse(digest))
        except (ValueError, ConceptryError) as error:
            raise IntegrityError(
                f"the tag {name}:{tag} is damaged", hint=f"name a version: {name}@1.2.3"
            ) from error

    # --- bytes -------------------------------------------------------------------------------------------------

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, unchecked. Raises NotFoundError, RemoteError."""
        data = self.bucket.read_document(KEYS.manifest(version.digest), MAX_DOCUMENT_BYTES)
        if data is None:
            raise NotFoundError(f"the manifest of {version.reference} is missing on {self.uri}")
        return data

    @contextmanager
    def get(self, version: RemoteVersion, file: File, *, offset_bytes: int = 0) -> Iterator[Iterator[bytes]]:
        """Opens a file's bytes from an offset on. Raises NotFoundError, RemoteError, IntegrityError."""
        path = KEYS.blob(file.sha256)
        found_bytes = self.bucket.size(path)
        if found_bytes is None:
            raise NotFoundError(f"the blob {file.sha256} is missing on {self.uri}")
        if found_bytes != file.size:
            raise IntegrityError(f"the blob {file.sha256} has {found_bytes} bytes, {file.size} were declared")
        yield self.bucket.iter_pieces(path, file.size, offset_bytes)

    # --- writing -----------------------------------------------------------------------------------------------

    def has(self, version: Resolved, file: File) -> bool:
        """Returns whether a blob of that size is there; keys are written whole or not at all. Raises RemoteError."""
        return self.bucket.size(KEYS.blob(file.sha256)) == file.size

    def put(self, version: Resolved, file: File, source: Path, *, on_bytes: CountBytes) -> None:
        """Sends a file unless it is there. Raises IntegrityError, RemoteError, StoreError."""
        if not self.has(version, file):
            self.bucket.upload(KEYS.blob(file.sha256), source, file, on_bytes)

    def put_manifest(self, version: Resolved, data: bytes, sources: Mapping[Digest, Path]) -> bool:
        """Returns True if the version is new there, False if it was there. Raises ConflictError, RemoteError."""
        name, number = version.reference.concept, _require_version(version)
        if Digest.of_bytes(data) != version.digest:
            raise IntegrityError(f"the manifest of {version.reference} does not have digest {version.digest}")
        found = self.read_version(name, number)
        if found not in (None, version.digest):
            raise describe_conflict(version, found)
        if self.bucket.read(KEYS.manifest(version.digest), MAX_DOCUMENT_BYTES) != data:
            self.bucket.replace(KEYS.manifest(version.digest), data)
        created = self.bucket.create(
            KEYS.version(name, number), f"{version.digest} published\n".encode("ascii")
        )
        found = self.read_version(name, number)
        if found != version.digest:
            raise describe_conflict(version, found)
        return created

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Moves a tag if it still is where it was seen. Raises ConflictError, RemoteError."""
        number = _require_version(to)
        if tag == LATEST:
            raise ConflictError("the tag 'latest' cannot be moved", hint="latest is computed")
        if expected is not None and (expected.version, expected.digest) == (number, to.digest):
            return expected
        move = TagMove(1 if expected is None else expected.number + 1, number, to.digest)
        line = f"{number} {to.digest}\n".encode("ascii")
        if not self.bucket.create(KEYS.tag_move(name, tag, move.number), line):
            now = self.read_tag(name, tag)
            raise ConflictError(
                f"the tag {name}:{tag} was moved by somebody else" + (f" to {now.version}" if now else ""),
                hint="look at it again, then repeat the command if it should still move",
            )
        return move

    def yank(self, name: ConceptName, version: Version, reason: str | None) -> None:
        """Marks a version as one that nobody should choose anew; None takes the mark back. Raises NotFoundError."""
        if self.read_version(name, version) is None:
            raise NotFoundError(
                f"{name} has no version {version} on {self.uri}", hint="only what is there can be yanked"
            )
        path = KEYS.yank(name, version)
        if reason is not None:
            self.bucket.replace(path, f"{check_reason(reason)}\n".encode())
        elif self.bucket.size(path) is None:
            raise NotFoundError(f"{name}@{version} is not yanked")
        else:
            self.bucket.remove(path)

    # --- inside ------------------------------------------------------------------------------------------------

    def _iter_names(self) -> Iterator[ConceptName]:
        for namespace in parse_names(self.bucket.names(KEYS.refs), parse_namespace):
            make: Callable[[str], ConceptName] = partial(ConceptName, namespace)
            yield from parse_names(self.bucket.names(KEYS.namespace(namespace)), make)


class _Named:
    """What a bucket knows of one concept, read when it is asked for."""

    def __init__(self, remote: BucketRemote, name: ConceptName) -> None:
        self._remote = remote
        self._name = name
        self._entries: tuple[RemoteEntry, ...] | None = None

    @property
    def entries(self) -> Sequence[RemoteEntry]:
        """The versions, smallest first."""
        if self._entries is None:
            bucket, name = self._remote.bucket, self._name
            versions = parse_names(bucket.names(KEYS.versions(name)), read_version_file_name)
            marked = set(parse_names(bucket.names(KEYS.yanks(name)), read_version_file_name))
            self._entries = tuple(
                RemoteEntry(version=version, yanked=self._read_yank(version) if version in marked else None)
                for version in sorted(versions)
            )
        return self._entries

    def read_digest(self, version: Version) -> Digest | None:
        """Returns the digest of a version's manifest, None if there is none."""
        return self._remote.read_version(self._name, version)

    def read_tag(self, tag: Tag) -> TagMove | None:
        """Returns where a tag points."""
        return self._remote.read_tag(self._name, tag)

    def list_tags(self) -> list[Tag]:
        """Returns the tags."""
        return parse_names(self._remote.bucket.names(KEYS.tags(self._name)), parse_tag)

    def _read_yank(self, version: Version) -> str | None:
        data = self._remote.bucket.read(KEYS.yank(self._name, version), 4 * MAX_REASON_CHARS)
        if data is None:
            return None
        return " ".join(data.decode("utf-8", "replace").split())[:MAX_REASON_CHARS] or "no reason was given"


def _require_version(version: Resolved) -> Version:
    number = version.reference.version
    if number is None:
        raise IntegrityError(f"{version.reference} names no version")
    return number
