"""One deterministic file with a whole project, for sites without a network: an OCI image layout in a tar.

``oci-layout``, ``index.json`` and ``blobs/sha256/<hex>``, in this order and blobs in order of name, all times zero:
equal projects are equal bytes. Any OCI tool reads it. Every bit counts when it is read back: blobs by their digest,
all else by comparison with what would have been written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tarfile import GNU_FORMAT, TarFile, TarInfo
from typing import IO, Any, Final, cast

from conceptry.digests import Digest, new_hasher
from conceptry.errors import IntegrityError
from conceptry.registry.file_reading import open_regular, read_small_file
from conceptry.registry.files import STATE_MODE, NewFile, write_new_file
from conceptry.registry.lockfile import Lock
from conceptry.registry.manifests import check_manifest, read_manifest_bytes
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.registry.places import LOCK_FILE, PROJECT_FILE, draw_name_beside
from conceptry.registry.refs import Resolved

LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
LAYOUT_NAME: Final = "oci-layout"
INDEX_NAME: Final = "index.json"
BLOB_PREFIX: Final = "blobs/sha256/"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
PROJECT_TYPE: Final = "application/vnd.conceptry.project.v1"
CONCEPT_TYPE: Final = "application/vnd.conceptry.concept.v1"
BASE_TYPE: Final = "application/vnd.conceptry.base.v1"
CONFIG_TYPE: Final = "application/vnd.conceptry.manifest.v1+json"
TITLE: Final = "org.opencontainers.image.title"
NAME: Final = "org.opencontainers.image.ref.name"
_EMPTY: Final = b"{}"
_HEAD_BYTES: Final = 4096
BLOCK_BYTES: Final = 512
RECORD_BYTES: Final = 10240

Opener = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Content:
    """One blob to be written: its size, its bytes when they are wanted, and what it is, for messages."""

    size_bytes: int
    read: Opener
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """A bundle that was written."""

    path: Path
    digest: Digest
    size_bytes: int
    concepts: int
    base_files: int


@dataclass(frozen=True, slots=True)
class BaseFile:
    """One file of a base on its way into a bundle."""

    path: str
    place: Path
    digest: Digest
    size_bytes: int


class _Parts:
    """Gathers blobs and the manifests that describe them."""

    def __init__(self) -> None:
        self.contents: dict[Digest, Content] = {}
        self.manifests: list[dict[str, Any]] = []

    def add_bytes(self, data: bytes, label: str, media_type: str) -> dict[str, Any]:
        digest = Digest.of_bytes(data)
        self.contents.setdefault(digest, Content(len(data), lambda: iter((data,)), label))
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    def add_file(
        self, place: Path, digest: Digest, size_bytes: int, *, label: str, media_type: str
    ) -> dict[str, Any]:
        self.contents.setdefault(digest, Content(size_bytes, lambda: _read_pieces(place), label))
        return {"mediaType": media_type, "digest": str(digest), "size": size_bytes}

    def add_manifest(
        self, kind: str, name: str, config: dict[str, Any], layers: list[dict[str, Any]]
    ) -> None:
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": kind,
            "config": config,
            "layers": layers,
        }
        row = self.add_bytes(_dump(document), f"the list of {name}", MANIFEST_TYPE)
        self.manifests.append(describe_manifest(kind, name, row))


def write_bundle(
    target: Path,
    layout: Layout,
    lock: Lock,
    *,
    project: bytes,
    lock_data: bytes,
    base: Iterable[BaseFile] = (),
) -> Bundled:
    """Returns the bundle at ``target``, which appears when it is whole; every byte of a concept was hashed on the way.

    Raises:
        IntegrityError: if something in the store is missing or damaged, with its concept and file.
        StoreError: if the disk refuses.
    """
    parts = _Parts()
    empty = parts.add_bytes(_EMPTY, "nothing", EMPTY_TYPE)
    files = [
        {**parts.add_bytes(data, name, "application/toml"), "annotations": {TITLE: name}}
        for name, data in ((LOCK_FILE, lock_data), (PROJECT_FILE, project))
    ]
    parts.add_manifest(PROJECT_TYPE, "project", empty, files)
    for one in lock.concepts:
        _add_concept(parts, layout, Resolved(one.reference, one.manifest))
    rows = sorted(base, key=lambda file: file.path)
    if rows:
        parts.add_manifest(BASE_TYPE, "base", empty, [_add_base_file(parts, file) for file in rows])
    index = format_index(parts.manifests)
    with write_new_file(draw_name_beside(target)) as file:
        _write_tar(file, index, parts.contents)
        file.commit(target, mode=STATE_MODE, replace=True)
        return Bundled(
            path=target,
            digest=file.digest,
            size_bytes=file.size_bytes,
            concepts=len(lock.concepts),
            base_files=len(rows),
        )


def begins_as_bundle(path: Path) -> bool:
    """Returns whether the file at ``path`` begins as the bundle of a project does, or is empty. Raises StoreError."""
    data = read_small_file(path, _HEAD_BYTES) or b""
    first = make_header(LAYOUT_NAME, len(LAYOUT)).tobuf(GNU_FORMAT) + LAYOUT.ljust(BLOCK_BYTES, b"\0")
    return not data or (data.startswith(first) and PROJECT_TYPE.encode("ascii") in data)


def describe_manifest(kind: str, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the line of the index for one manifest."""
    return {**row, "artifactType": kind, "annotations": {NAME: name}}


def format_index(manifests: list[dict[str, Any]]) -> bytes:
    """Returns the bytes of ``index.json``."""
    return _dump({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})


def _add_concept(parts: _Parts, layout: Layout, version: Resolved) -> None:
    data = read_manifest_bytes(layout, version)
    manifest = check_manifest(data, version)
    label = str(version.reference)
    layers = [
        {
            **parts.add_file(
                layout.blob(file.sha256),
                file.sha256,
                file.size,
                label=f"the file {file.path!r} of {label}",
                media_type=file.media_type,
            ),
            "annotations": {TITLE: file.path},
        }
        for file in {file.path: file for file in manifest.iter_files()}.values()
    ]
    config = parts.add_bytes(data, f"the manifest of {label}", CONFIG_TYPE)
    parts.add_manifest(CONCEPT_TYPE, label, config, layers)


def _add_base_file(parts: _Parts, file: BaseFile) -> dict[str, Any]:
    row = parts.add_file(
        file.place,
        file.digest,
        file.size_bytes,
        label=f"the base's file {file.path!r}",
        media_type="application/octet-stream",
    )
    return {**row, "annotations": {TITLE: file.path}}


def _write_tar(file: NewFile, index: bytes, contents: Mapping[Digest, Content]) -> None:
    with TarFile.open(fileobj=cast("IO[bytes]", file), mode="w|", format=GNU_FORMAT) as tar:
        for name, data in ((LAYOUT_NAME, LAYOUT), (INDEX_NAME, index)):
            tar.addfile(make_header(name, len(data)), io.BytesIO(data))
        for digest in sorted(contents):
            content = contents[digest]
            with explain_os_errors("write", file.path):
                reader = _CheckedReader(content, digest)
                tar.addfile(
                    make_header(f"{BLOB_PREFIX}{digest.hex}", content.size_bytes), cast("IO[bytes]", reader)
                )
                reader.check()


def make_header(name: str, size_bytes: int) -> TarInfo:
    """Returns the header of a member: no time, no owner, readable by all."""
    header = TarInfo(name)
    header.size = size_bytes
    header.mode = STATE_MODE
    return header


class _CheckedReader:
    """A blob's bytes as a file, hashed while they are read."""

    def __init__(self, content: Content, digest: Digest) -> None:
        self._content = content
        self._digest = digest
        self._pieces = content.read()
        self._rest = b""
        self._count_bytes = 0
        self._hasher = new_hasher()

    def read(self, count: int = -1) -> bytes:
        try:
            while len(self._rest) < count and (piece := next(self._pieces, b"")):
                self._rest += piece
        except FileNotFoundError:
            raise IntegrityError(
                f"{self._content.label} is missing in the store", hint="concepts sync"
            ) from None
        data, self._rest = self._rest[:count], self._rest[count:]
        self._hasher.update(data)
        self._count_bytes += len(data)
        if len(data) < count:
            raise self._damaged()
        return data

    def check(self) -> None:
        if self._hasher.hexdigest() != self._digest.hex:
            raise self._damaged()

    def _damaged(self) -> IntegrityError:
        return IntegrityError(
            f"{self._content.label} is damaged in the store", hint="concepts verify, then concepts sync"
        )


def _read_pieces(place: Path) -> Iterator[bytes]:
    with open_regular(place) as file:
        yield from file.iter_chunks()


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
