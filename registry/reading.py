"""Versions out of the store: checked before they are handed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conceptry.concepts import Concept
from conceptry.digests import Digest
from conceptry.errors import IntegrityError
from conceptry.manifest import File, Manifest
from conceptry.names import Reference, Tag, Version
from conceptry.registry.blobs import has_blob
from conceptry.registry.checks import BlobChecks
from conceptry.registry.file_reading import is_file, look_at
from conceptry.registry.manifests import iter_places, read_manifest
from conceptry.registry.refs import Origin, Resolved, list_versions, read_version
from conceptry.registry.store import Store
from conceptry.registry.tags import TagMove, list_tags, read_tag_history
from conceptry.registry.trash import MOST_RECALLS, recall_if_possible
from conceptry.registry.yanks import read_yank
from conceptry.written_files import FileStamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the store knows of one version."""

    reference: Reference
    digest: Digest
    manifest: Manifest
    origin: Origin
    tags: tuple[Tag, ...]
    """The tags that point to this version."""

    versions: tuple[Version, ...]
    """All versions of the concept here, smallest first."""

    yanked: str | None = None
    """Why nobody should choose it anew, None if nothing speaks against it."""

    history: Mapping[Tag, tuple[TagMove, ...]] = field(default_factory=dict)
    """All tags of the concept, each with its moves, oldest first."""

    record: Path | None
    """What training left beside the version (``train.json``)."""


def read_concept(store: Store, version: Resolved) -> Concept:
    """Returns the concept with the places of its blobs, each hashed since it last changed.

    Raises:
        IntegrityError: naming the concept, the file and its place in the manifest.
    """
    manifest = read_manifest(store.layout, version)
    blobs: dict[Digest, Path] = {}
    with BlobChecks(store.layout) as checks:
        for place, file in iter_places(manifest):
            if file.sha256 not in blobs:
                explain_damage(store, version, place, file, checks)
                blobs[file.sha256] = store.layout.blob(file.sha256)
    return Concept(manifest=manifest, digest=version.digest, blobs=blobs)


def explain_damage(store: Store, version: Resolved, place: str, file: File, checks: BlobChecks) -> None:
    """Raises IntegrityError if a file's blob is missing or its bytes are wrong."""
    path = store.layout.blob(file.sha256)
    for _ in range(MOST_RECALLS):
        before = look_at(path)
        if checks.is_intact(file.sha256, file.size):
            return
        after = look_at(path)
        lay_still = before is not None and after is not None and FileStamp.of(before) == FileStamp.of(after)
        if lay_still or not recall_if_possible(store.layout, "blob", file.sha256):
            break
    status = look_at(path)
    if status is None:
        reason, part = f"the file {file.path!r} is missing", "sha256"
    elif not has_blob(store.layout, file.sha256, file.size):
        reason, part = f"the file {file.path!r} has {status.st_size} bytes, not {file.size}", "size"
    else:
        reason, part = f"the bytes of the file {file.path!r} are not {file.sha256}", "sha256"
    raise IntegrityError(
        f"{version.reference}: {reason}, in {store.layout.describe(path)}",
        where=f"{place}.{part}",
        hint=f"pull or publish {version.reference} again, which puts the right bytes back",
    )


def describe_version(store: Store, version: Resolved) -> Shown:
    """Returns what the store knows of a version; blobs are not read. Raises IntegrityError, NotFoundError."""
    layout, name = store.layout, version.reference.concept
    manifest = read_manifest(layout, version)
    record = layout.record(version.digest)
    ref = read_version(layout, name, manifest.version)
    history = {tag: read_tag_history(layout, name, tag) for tag in list_tags(layout, name)}
    return Shown(
        reference=version.reference,
        digest=version.digest,
        manifest=manifest,
        origin=ref.origin if ref else "pulled",
        tags=tuple(tag for tag, moves in history.items() if moves and moves[-1].digest == version.digest),
        yanked=read_yank(layout, name, manifest.version),
        history=history,
        versions=list_versions(layout, name),
        record=record if is_file(record) else None,
    )
