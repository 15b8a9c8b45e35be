"""From a folder with a ``concept.json`` to a version in the store: blobs, manifest, reference, index row."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from conceptry.concepts import MANIFEST_NAME
from conceptry.digests import Digest, canonical_json
from conceptry.documents import MAX_DOCUMENT_BYTES, load_strict_json
from conceptry.errors import ConceptryError, InvalidFileError, InvalidManifestError, NotFoundError
from conceptry.manifest import File, Manifest, parse_manifest
from conceptry.names import Reference
from conceptry.registry.blobs import CountBytes, add_blob_from_file, move_blob
from conceptry.registry.duplicates import find_same_tensors
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.file_reading import look_at, read_small_file
from conceptry.registry.files import STATE_MODE, write_file
from conceptry.registry.index import record_version
from conceptry.registry.leases import hold_lease
from conceptry.registry.manifests import add_manifest, iter_places
from conceptry.registry.places import RECORD_FILE, locate_manifest, locate_member, locate_record
from conceptry.registry.refs import (
    Origin,
    Resolved,
    VersionRef,
    describe_conflict,
    find_version,
    write_version,
)
from conceptry.registry.store import Store
from conceptry.registry.trash import recall_item
from conceptry.written_files import FileStamp

MAX_RECORD_BYTES: Final = 16 << 20
NOTHING: Final[Mapping[FileStamp, Digest]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Published:
    """A version in the local store; ``created`` is False where it was there already."""

    reference: Reference
    digest: Digest
    created: bool
    same_tensors: tuple[str, ...] = ()
    """Other versions in the store that have a file with the same tensors (``ns/name@1.0.0``)."""


def publish_folder(
    store: Store,
    folder: Path,
    *,
    origin: Origin = "published",
    written: Mapping[FileStamp, Digest] = NOTHING,
    on_event: OnEvent = ignore_event,
) -> Published:
    """Returns the version that the folder became; see ``Registry.publish``."""
    data, manifest = read_folder_manifest(folder)
    version = Resolved(Reference(manifest.name, manifest.version), Digest.of_bytes(data))
    refuse_other_contents(store, version)
    store.prepare_for_writing()
    meter = Meter("blob", manifest.size_bytes, on_event)
    seen: set[Digest] = set()
    with hold_lease(store, list_needed(version, manifest)):
        for place, file in iter_places(manifest):
            _check_member(folder, file, place)
            if file.sha256 not in seen:
                on_bytes = meter.start(file.path)
                if _move_member(store, folder, file, written):
                    on_bytes(file.size)
                else:
                    _add_member(store, folder, file, place=place, on_bytes=on_bytes)
                seen.add(file.sha256)
        record = _read_record(folder)
        published = commit_version(store, version, manifest, data=data, record=record, origin=origin)
    return replace(published, same_tensors=find_same_tensors(store, version, manifest))


def _read_record(folder: Path) -> bytes | None:
    record = read_small_file(locate_record(folder), MAX_RECORD_BYTES)
    if record is not None and len(record) > MAX_RECORD_BYTES:
        raise InvalidFileError(
            f"{RECORD_FILE!r} has more than {MAX_RECORD_BYTES} bytes",
            hint="shorten it, or move it away: no version needs one",
        )
    return record


def list_needed(version: Resolved, manifest: Manifest) -> set[Digest]:
    """Returns what a lease for a version names: its manifest and its blobs."""
    return {version.digest, *(file.sha256 for file in manifest.iter_files())}


def read_folder_manifest(folder: Path) -> tuple[bytes, Manifest]:
    """Returns the canonical bytes of a folder's ``concept.json``, and the manifest in them.

    A document written by hand with other blanks or another order of keys is brought into the canonical form; what
    it says is not changed.

    Raises:
        NotFoundError: if there is none.
        InvalidManifestError: if it breaks the schema or its limits.
    """
    data = read_small_file(locate_manifest(folder), MAX_DOCUMENT_BYTES)
    if data is None:
        raise NotFoundError(f"no {MANIFEST_NAME} in {str(folder)!r}", hint="name a folder that holds one")
    manifest = parse_manifest(data)
    canonical = canonical_json(load_strict_json(data))
    if len(canonical) > MAX_DOCUMENT_BYTES:
        raise InvalidManifestError(
            f"the manifest has {len(canonical)} bytes, at most {MAX_DOCUMENT_BYTES} are allowed"
        )
    return canonical, manifest


def refuse_other_contents(store: Store, version: Resolved) -> None:
    """Raises ConflictError if the version exists with another manifest, before a byte is copied."""
    reference = version.reference
    found = find_version(store.layout, reference.concept, reference.version) if reference.version else None
    if found is not None and found.digest != version.digest:
        raise describe_conflict(version, found.digest)


def commit_version(
    store: Store,
    version: Resolved,
    manifest: Manifest,
    *,
    data: bytes,
    record: bytes | None = None,
    origin: Origin,
) -> Published:
    """Returns the version, listed from now on; its blobs must be in the store.

    Raises:
        ConflictError: if somebody published the version with other contents meanwhile.
        StoreError: if the disk refuses; then the version is not listed.
    """
    layout, reference = store.layout, version.reference
    add_manifest(layout, data)
    if record is not None:
        write_file(layout.record(version.digest), record, temporary=layout.temporary(), mode=STATE_MODE)
    with store.change_refs() as change:
        ref = VersionRef(version.digest, origin)
        created = write_version(layout, reference.concept, manifest.version, ref)
        record_version(store, change, version, manifest, origin)
    for digest in list_needed(version, manifest):  # a collection may have taken them while nothing named them
        recall_item(layout, "blob", digest)
    recall_item(layout, "manifest", version.digest)
    return Published(reference, version.digest, created)


def _move_member(store: Store, folder: Path, file: File, written: Mapping[FileStamp, Digest]) -> bool:
    path = locate_member(folder, file)
    status = look_at(path) if written else None
    stamp = None if status is None else FileStamp.of(status)
    if stamp is None or written.get(stamp) != file.sha256:
        return False
    return move_blob(store.layout, path, file.sha256, written=stamp)


def _add_member(store: Store, folder: Path, file: File, *, place: str, on_bytes: CountBytes) -> None:
    """The bytes that are hashed are the bytes that are kept, even if the file changes meanwhile."""
    try:
        add_blob_from_file(
            store.layout, locate_member(folder, file), file.sha256, file.size, on_bytes=on_bytes
        )
    except ConceptryError as error:
        if type(error).code != "integrity":
            raise
        raise InvalidFileError(
            f"{file.path!r}: {error.message}",
            where=f"{place}.sha256",
            hint="the file was changed after concept.json was written: write both again",
        ) from error


def _check_member(folder: Path, file: File, place: str) -> None:
    path = locate_member(folder, file)
    status = look_at(path)
    inside = path.resolve() == locate_member(folder.resolve(), file)
    if status is None or not inside or not stat.S_ISREG(status.st_mode):
        raise InvalidFileError(f"{file.path!r} is missing or no regular file", where=f"{place}.path")
    size_bytes = status.st_size
    if size_bytes != file.size:
        raise InvalidFileError(
            f"{file.path!r} has {size_bytes} bytes, not {file.size}",
            where=f"{place}.size",
            hint="the file was changed after concept.json was written: write both again",
        )
