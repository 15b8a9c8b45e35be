"""A folder as a remote: laid out like a store, without an index, shared by anything that shares folders.

It needs no locks. Blobs and manifests are named by their digests; a version and each move of a tag is the creation of
a name, which succeeds for exactly one of several writers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import IntegrityError, NotFoundError, RemoteError
from conceptry.names import LATEST, ConceptName, Reference, Tag, Version
from conceptry.registry import refs, tags, yanks
from conceptry.registry.blobs import CountBytes, add_blob_from_file, is_intact
from conceptry.registry.catalogs import update_lists
from conceptry.registry.choosing import search_concepts
from conceptry.registry.file_reading import is_file, is_folder, open_regular, read_small_file
from conceptry.registry.files import ensure_folder, write_file
from conceptry.registry.generations import begin_change
from conceptry.registry.manifests import add_manifest
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.registry.places import locate_file_uri
from conceptry.registry.protocol import (
    DEFAULT_SEARCH_LIMIT,
    EVERYTHING,
    Capabilities,
    RemoteConcept,
    RemoteEntry,
    RemoteVersion,
    describe_concept,
)
from conceptry.registry.refs import Resolved, VersionRef
from conceptry.registry.resolution import resolve_reference
from conceptry.registry.tags import TagMove

if TYPE_CHECKING:
    from conceptry.manifest import File

FORMAT: Final = 1
_LIMIT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class DirectoryRemote:
    """The remote at ``file:///path``; the folder is made by the first push."""

    uri: str
    layout: Layout
    capabilities: Capabilities = EVERYTHING

    @classmethod
    def open(cls, uri: str) -> DirectoryRemote:
        """Returns the remote at an address. Raises UsageError, RemoteError."""
        layout = Layout(locate_file_uri(uri))
        _check_format(uri, layout)
        return cls(uri, layout)

    def resolve(self, reference: Reference) -> RemoteVersion:
        """Returns what a reference means there now. Raises NotFoundError, RemoteError."""
        self._check_present()
        local = Reference(reference.concept, reference.selector)
        try:
            found = resolve_reference(self.layout, local)
        except NotFoundError as error:
            raise NotFoundError(f"{error.message} on {self.uri}", hint=error.hint) from error
        yanked = yanks.read_yank(self.layout, found.reference.concept, _require_version(found))
        selector, name = reference.selector, found.reference.concept
        plain = isinstance(selector, Version | Digest) or selector == LATEST
        move = None if plain else tags.read_tag(self.layout, name, Tag(str(selector)))
        return RemoteVersion(
            reference=found.reference,
            digest=found.digest,
            yanked=yanked,
            move=move.number if move is not None and move.version == found.reference.version else None,
        )

    def list_versions(self, name: ConceptName) -> tuple[RemoteEntry, ...]:
        """Returns the versions of a concept there, smallest first. Raises RemoteError."""
        self._check_present()
        return tuple(
            RemoteEntry(version=version, yanked=yanks.read_yank(self.layout, name, version))
            for version in refs.list_versions(self.layout, name)
        )

    def search(self, words: str = "", *, limit: int = DEFAULT_SEARCH_LIMIT) -> Iterator[RemoteConcept]:
        """Yields the concepts that have all words, in order of name. Raises RemoteError."""
        self._check_present()
        return search_concepts(refs.list_names(self.layout), self._describe, words, limit=limit)

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none. Raises IntegrityError."""
        ref = refs.read_version(self.layout, name, version)
        return ref.digest if ref else None

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, unchecked, at most one more than the limit. Raises NotFoundError."""
        data = read_small_file(self.layout.manifest(version.digest), MAX_DOCUMENT_BYTES)
        if data is None:
            raise NotFoundError(f"the manifest of {version.reference} is missing on {self.uri}")
        return data

    @contextmanager
    def get(self, version: RemoteVersion, file: File, *, offset_bytes: int = 0) -> Iterator[Iterator[bytes]]:
        """Opens a file's bytes from an offset on. Raises NotFoundError, StoreError."""
        path = self.layout.blob(file.sha256)
        with explain_os_errors("read", path), contextlib.ExitStack() as stack:
            try:
                opened = stack.enter_context(open_regular(path))
            except FileNotFoundError:
                raise NotFoundError(f"the blob {file.sha256} is missing on {self.uri}") from None
            yield opened.iter_chunks(offset_bytes)

    def has(self, version: Resolved, file: File) -> bool:
        """Returns whether a blob is there and every byte of it is right. Raises StoreError."""
        return is_intact(self.layout, file.sha256, file.size)

    def put(self, version: Resolved, file: File, source: Path, *, on_bytes: CountBytes) -> None:
        """Copies a blob there unless it is there and intact. Raises IntegrityError, StoreError."""
        self._prepare()
        add_blob_from_file(self.layout, source, file.sha256, file.size, on_bytes=on_bytes)

    def put_manifest(self, version: Resolved, data: bytes, sources: Mapping[Digest, Path]) -> bool:
        """Returns True if the version is new there, False if it was there already. Raises ConflictError, StoreError."""
        number = _require_version(version)
        self._prepare()
        if Digest.of_bytes(data) != version.digest:
            raise IntegrityError(f"the manifest of {version.reference} does not have digest {version.digest}")
        found = refs.read_version(self.layout, version.reference.concept, number)
        if found is not None and found.digest != version.digest:
            raise refs.describe_conflict(version, found.digest)
        add_manifest(self.layout, data)
        with self._outdate_index():
            ref = VersionRef(version.digest, "published")
            created = refs.write_version(self.layout, version.reference.concept, number, ref)
        self._update_lists(version.reference.concept)
        return created

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there. Raises IntegrityError."""
        return tags.read_tag(self.layout, name, tag)

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Moves a tag if it still is where it was seen. Raises ConflictError, StoreError."""
        self._prepare()
        moved = tags.move_tag(self.layout, name, tag, to, expected=expected)
        self._update_lists(name)
        return moved

    def yank(self, name: ConceptName, version: Version, reason: str | None) -> None:
        """Marks a version as one that nobody should choose anew; None takes the mark back. Raises NotFoundError."""
        self._check_present()
        with self._outdate_index():
            yanks.write_yank(self.layout, name, version, reason)
        self._update_lists(name)

    def _describe(self, name: ConceptName) -> RemoteConcept | None:
        """What cannot be read is left out: one damaged concept must not hide the others."""
        from conceptry.registry.manifests import read_manifest

        try:
            manifest = read_manifest(self.layout, resolve_reference(self.layout, Reference(name, LATEST)))
        except (IntegrityError, NotFoundError):
            return None
        return describe_concept(manifest)

    def _update_lists(self, name: ConceptName) -> None:
        """A store has none: its owner's commands would leave them behind."""
        if not is_file(self.layout.generation):
            update_lists(self.layout, name, self._describe)

    @contextmanager
    def _outdate_index(self) -> Iterator[None]:
        """The folder may be somebody's store: then its index falls behind, however this ends."""
        with begin_change(self.layout) if is_file(self.layout.generation) else contextlib.nullcontext():
            yield

    def _check_present(self) -> None:
        if not is_folder(self.layout.root):
            raise RemoteError(
                f"the remote {self.uri} has no folder at {str(self.layout.root)!r}",
                hint="is the disk or share mounted? the first concepts push makes the folder",
            )

    def _prepare(self) -> None:
        if is_file(self.layout.marker):
            return
        ensure_folder(self.layout.root)
        document = json.dumps({"format": FORMAT, "program": "conceptry"}, sort_keys=True) + "\n"
        write_file(self.layout.marker, document.encode("ascii"), temporary=self.layout.temporary())


def _check_format(uri: str, layout: Layout) -> None:
    data = read_small_file(layout.marker, _LIMIT_BYTES)
    if data is None:
        return
    try:
        found = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteError(f"{str(layout.marker)!r} does not say which format the remote has") from error
    if found != FORMAT:
        raise RemoteError(
            f"the remote {uri} has format {found!r}, this version knows {FORMAT}",
            hint="update conceptry: python -m pip install --upgrade conceptry",
        )


def _require_version(version: Resolved) -> Version:
    number = version.reference.version
    if number is None:
        raise IntegrityError(f"{version.reference} names no version")
    return number
