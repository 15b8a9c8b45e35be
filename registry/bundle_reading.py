"""A bundle as it is read back: its frame compared with what would be written, its blobs hashed; then a remote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tarfile import GNU_FORMAT, TarError, TarFile
from typing import IO, TYPE_CHECKING, Final, cast

from conceptry.digests import Digest, new_hasher
from conceptry.errors import ConceptryError, IntegrityError, InvalidDigestError, NotFoundError
from conceptry.registry.bundles import (
    BASE_TYPE,
    BLOB_PREFIX,
    BLOCK_BYTES,
    CONCEPT_TYPE,
    INDEX_NAME,
    LAYOUT,
    LAYOUT_NAME,
    MANIFEST_TYPE,
    NAME,
    PROJECT_TYPE,
    RECORD_BYTES,
    TITLE,
    describe_manifest,
    format_index,
    make_header,
)
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.file_reading import is_file, open_regular
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import LOCK_FILE, PROJECT_FILE
from conceptry.registry.protocol import Capabilities, RemoteVersion

if TYPE_CHECKING:
    from conceptry.manifest import File

MAX_DOCUMENT_BYTES: Final = 64 << 20
_MANIFEST_BYTES: Final = 1 << 20
_READ_ONLY: Final = Capabilities(writable=False, compare_and_swap=False, searchable=False)


@dataclass(frozen=True, slots=True)
class _Member:
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledFile:
    """One file of the project or the base in a bundle."""

    path: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle of which every bit was checked. It speaks the part of a remote that ``sync`` needs."""

    path: Path
    uri: str
    project: bytes
    lock: bytes
    base: tuple[BundledFile, ...]
    blobs: Mapping[Digest, _Member]
    capabilities: Capabilities = _READ_ONLY

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes. Raises NotFoundError."""
        member = self._find(version.digest, f"the manifest of {version.reference}")
        return b"".join(_read(self.path, member.offset_bytes, min(member.size_bytes, _MANIFEST_BYTES + 1)))

    @contextmanager
    def get(self, version: RemoteVersion, file: File, *, offset_bytes: int = 0) -> Iterator[Iterator[bytes]]:
        """Opens a file's bytes from an offset on. Raises NotFoundError."""
        member = self._find(file.sha256, f"the file {file.path!r} of {version.reference}")
        start = min(offset_bytes, member.size_bytes)
        yield _read(self.path, member.offset_bytes + start, member.size_bytes - start)

    def open_base(self, file: BundledFile) -> Iterator[bytes]:
        """Yields the bytes of one of the base's files. Raises NotFoundError."""
        member = self._find(file.digest, f"the base's file {file.path!r}")
        return _read(self.path, member.offset_bytes, member.size_bytes)

    def _find(self, digest: Digest, label: str) -> _Member:
        member = self.blobs.get(digest)
        if member is None:
            raise NotFoundError(f"{label} is not in the bundle {str(self.path)!r}")
        return member


def open_bundle(path: Path, *, on_event: OnEvent = ignore_event) -> Bundle:
    """Returns the bundle at ``path``; every bit of it was checked.

    Raises:
        NotFoundError: if there is no such file.
        IntegrityError: if anything in it is not as it was written; the concept and file are named.
    """
    members = _list_members(path)
    layout, index = (_read_document(path, members, name) for name in (LAYOUT_NAME, INDEX_NAME))
    if layout != LAYOUT:
        raise _damaged(path, f"{LAYOUT_NAME} is not as it was written")
    blobs = {
        Digest(name.removeprefix(BLOB_PREFIX)): member
        for name, member in members.items()
        if name.startswith(BLOB_PREFIX)
    }
    try:
        return _describe(path, index, blobs, on_event)
    except (ValueError, KeyError, TypeError, AttributeError, InvalidDigestError) as error:
        raise _damaged(path, f"its list of contents is malformed ({error!r})"[:200]) from error


class _Seekable:
    """The bundle as a file for tarfile, which reads headers and passes over all else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_bytes = 0

    def read(self, count: int) -> bytes:
        """Returns the next bytes."""
        data = b"".join(_read(self._path, self._offset_bytes, count))
        self._offset_bytes += len(data)
        return data

    def seek(self, offset_bytes: int) -> int:
        """Goes on from another place."""
        self._offset_bytes = offset_bytes
        return offset_bytes

    def tell(self) -> int:
        """Returns the place of the next byte."""
        return self._offset_bytes


# --- the frame -----------------------------------------------------------------------------------------------------


def _list_members(path: Path) -> dict[str, _Member]:
    """Returns the members by name; each header, each padding and the end are compared with what would be written."""
    members: dict[str, _Member] = {}
    if not is_file(path):
        raise NotFoundError(f"no file {str(path)!r}", hint="concepts bundle writes one")
    try:
        with TarFile.open(fileobj=cast("IO[bytes]", _Seekable(path)), mode="r:") as tar:
            for header in tar:
                expected = make_header(header.name, header.size)
                known = header.name in (LAYOUT_NAME, INDEX_NAME) or _is_blob(header.name)
                frame = expected.tobuf(GNU_FORMAT)
                found = b"".join(_read(path, header.offset, len(frame)))
                if not known or header.name in members or found != frame:
                    raise _damaged(path, f"the header of {header.name[:100]!r} is not as it was written")
                members[header.name] = _Member(header.offset_data, header.size)
                _check_zeros(path, header.offset_data + header.size, -header.size % BLOCK_BYTES)
    except (TarError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it is no bundle, or was cut short ({error})") from error
    end = max(
        (one.offset_bytes + one.size_bytes + -one.size_bytes % BLOCK_BYTES for one in members.values()),
        default=0,
    )
    size_bytes = end + 2 * BLOCK_BYTES + -(end + 2 * BLOCK_BYTES) % RECORD_BYTES
    _check_zeros(path, end, size_bytes - end, last=True)
    return members


def _is_blob(name: str) -> bool:
    try:
        return name.startswith(BLOB_PREFIX) and bool(Digest(name.removeprefix(BLOB_PREFIX)))
    except ConceptryError:
        return False


def _check_zeros(path: Path, offset_bytes: int, count: int, *, last: bool = False) -> None:
    found = b"".join(_read(path, offset_bytes, count + last))
    if found != bytes(count):
        raise _damaged(path, f"the bytes from {offset_bytes} on are not as they were written")


def _read_document(path: Path, members: Mapping[str, _Member], name: str) -> bytes:
    member = members.get(name)
    if member is None or member.size_bytes > MAX_DOCUMENT_BYTES:
        raise _damaged(path, f"it has no {name}")
    return b"".join(_read(path, member.offset_bytes, member.size_bytes))


# --- the contents --------------------------------------------------------------------------------------------------


def _describe(path: Path, data: bytes, blobs: Mapping[Digest, _Member], on_event: OnEvent) -> Bundle:
    labels: dict[Digest, str] = {}
    files: dict[str, list[BundledFile]] = {PROJECT_TYPE: [], BASE_TYPE: []}
    rows = []
    for row in json.loads(data)["manifests"]:
        digest = Digest.parse(row["digest"])
        manifest = _read_blob(path, blobs, digest, f"the list of {row['annotations'][NAME]}")
        document = json.loads(manifest)
        config, kind = Digest.parse(document["config"]["digest"]), document["artifactType"]
        name = _name_part(
            kind, _read_blob(path, blobs, config, f"the manifest of {row['annotations'][NAME]}")
        )
        size = {"mediaType": MANIFEST_TYPE, "digest": str(digest), "size": len(manifest)}
        rows.append(describe_manifest(kind, name, size))
        labels |= {digest: f"the list of {name}", config: f"the manifest of {name}"}
        for layer in document["layers"]:
            title, found = layer["annotations"][TITLE], Digest.parse(layer["digest"])
            labels[found] = f"the file {title!r} of {name}"
            if kind in files:
                files[kind].append(BundledFile(path=title, digest=found, size_bytes=layer["size"]))
    if format_index(rows) != data:
        raise _damaged(path, f"{INDEX_NAME} is not as it was written")
    _check_blobs(path, blobs, labels, on_event)
    project = {file.path: _read_blob(path, blobs, file.digest, file.path) for file in files[PROJECT_TYPE]}
    return Bundle(
        path=path,
        uri=f"the bundle {path.name}",
        project=project[PROJECT_FILE],
        lock=project[LOCK_FILE],
        base=tuple(files[BASE_TYPE]),
        blobs=blobs,
    )


def _name_part(kind: str, config: bytes) -> str:
    """Returns what the index must call a part: a concept by its own manifest, the others by their kind."""
    if kind != CONCEPT_TYPE:
        return "project" if kind == PROJECT_TYPE else "base"
    document = json.loads(config)
    return f"{document['name']}@{document['version']}"


def _check_blobs(
    path: Path, blobs: Mapping[Digest, _Member], labels: Mapping[Digest, str], on_event: OnEvent
) -> None:
    missing = [label for digest, label in labels.items() if digest not in blobs]
    if missing:
        raise _damaged(path, f"{missing[0]} is missing")
    meter = Meter("check", sum(member.size_bytes for member in blobs.values()), on_event)
    for digest, member in blobs.items():
        label = labels.get(digest, f"the blob {digest}")
        hasher, count = new_hasher(), meter.start(label)
        for piece in _read(path, member.offset_bytes, member.size_bytes):
            hasher.update(piece)
            count(len(piece))
        if hasher.hexdigest() != digest.hex:
            raise _damaged(path, f"{label} is damaged")


def _read_blob(path: Path, blobs: Mapping[Digest, _Member], digest: Digest, label: str) -> bytes:
    member = blobs.get(digest)
    if member is None or member.size_bytes > MAX_DOCUMENT_BYTES:
        raise _damaged(path, f"{label} is missing")
    data = b"".join(_read(path, member.offset_bytes, member.size_bytes))
    if Digest.of_bytes(data) != digest:
        raise _damaged(path, f"{label} is damaged")
    return data


def _read(path: Path, offset_bytes: int, count: int) -> Iterator[bytes]:
    """Yields ``count`` bytes from an offset on, fewer only where the file ends."""
    if count <= 0:
        return
    with explain_os_errors("read", path), open_regular(path) as file:
        for piece in file.iter_chunks(offset_bytes):
            yield piece[:count]
            count -= len(piece)
            if count <= 0:
                return


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"the bundle {str(path)!r} is damaged: {reason}", hint="copy it again from where it was made"
    )
