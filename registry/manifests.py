"""Manifests as they lie in a store: read with a limit, hashed before they are believed, parsed once."""

from __future__ import annotations

from collections.abc import Iterator

from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import IntegrityError, InvalidManifestError
from conceptry.manifest import File, Manifest, parse_manifest
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.files import BLOB_MODE, move_file, write_file
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved
from conceptry.registry.trash import MOST_RECALLS, recall_if_possible


def read_manifest(layout: Layout, version: Resolved) -> Manifest:
    """Returns the manifest of a version.

    Raises:
        IntegrityError: if it is missing, if its bytes are not those that the reference names, or if it is malformed.
    """
    return check_manifest(read_manifest_bytes(layout, version), version)


def read_manifest_bytes(layout: Layout, version: Resolved) -> bytes:
    """Returns a manifest's exact bytes. Raises IntegrityError if they are missing or not those of its digest."""
    path = layout.manifest_text(version.digest)
    data = read_small_file(path, MAX_DOCUMENT_BYTES)
    for _ in range(MOST_RECALLS):
        if data is not None or not recall_if_possible(layout, "manifest", version.digest):
            break
        data = read_small_file(path, MAX_DOCUMENT_BYTES)
    reason = None
    if data is None:
        reason = "is missing"
    elif not version.digest.is_of(data):
        reason = f"has digest {Digest.of_bytes(data)}, not {version.digest}"
    if data is None or reason is not None:
        raise IntegrityError(
            f"the manifest of {version.reference} {reason}",
            where=layout.describe(layout.manifest(version.digest)),
            hint=f"pull {version.reference.concept} again from where it came, or concepts remove {version.reference}",
        )
    return data


def check_manifest(data: bytes, version: Resolved) -> Manifest:
    """Returns the manifest in ``data``, which must be that version's and no other's.

    Raises:
        IntegrityError: if the bytes have another digest, are malformed, or are of another concept or version.
    """
    if len(data) > MAX_DOCUMENT_BYTES or Digest.of_bytes(data) != version.digest:
        raise IntegrityError(f"the manifest of {version.reference} does not have digest {version.digest}")
    try:
        manifest = parse_manifest(data)
    except InvalidManifestError as error:
        raise InvalidManifestError(
            f"the manifest of {version.reference} is not valid: {error.message}",
            where=error.where,
            hint=error.hint,
        ) from error
    found = f"{manifest.name}@{manifest.version}"
    if found != str(version.reference):
        raise InvalidManifestError(f"the manifest is of {found}, not of {version.reference}", where="name")
    return manifest


def add_manifest(layout: Layout, data: bytes) -> Digest:
    """Returns the digest of a manifest, which is in the store now; a damaged one of that name is replaced.

    Raises:
        StoreError: if the disk refuses.
    """
    digest = Digest.of_bytes(data)
    path = layout.manifest(digest)
    while (found := read_small_file(path, MAX_DOCUMENT_BYTES)) != data:
        if found is not None:
            quarantine_manifest(layout, digest)
        if write_file(path, data, temporary=layout.temporary(), mode=BLOB_MODE, named_by_contents=True):
            break
    return digest


def quarantine_manifest(layout: Layout, digest: Digest) -> None:
    """Moves a damaged manifest out of the way. Raises StoreError."""
    move_file(layout.manifest(digest), layout.quarantined(digest))


def iter_places(manifest: Manifest) -> Iterator[tuple[str, File]]:
    """Yields each file of a manifest with its place in the document (``builds[0].parts[0].files[2]``)."""
    for b, build in enumerate(manifest.builds):
        for p, part in enumerate(build.parts):
            for f, file in enumerate(part.files):
                yield f"builds[{b}].parts[{p}].files[{f}]", file
