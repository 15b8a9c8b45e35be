"""Blobs on their way in: what arrived before an interruption is kept, and goes on from there.

Each attempt writes a file of its own, which nobody else ever opens for writing, so nothing rests on a lock. The
beginning that an earlier attempt left is copied into it and hashed on the way, so it does not matter who wrote that.
"""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, InvalidNameError, NotFoundError, StoreError
from conceptry.registry.blobs import CountBytes, check_received, commit_blob
from conceptry.registry.file_reading import look_at, names_in, read_chunks
from conceptry.registry.files import NewFile, remove_file, replace_name, write_new_file
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.registry.processes import is_running
from conceptry.registry.protocol import RemoteVersion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from conceptry.manifest import File


class Holder(Protocol):
    """The part of a remote that a sync needs: bytes by digest, and no names."""

    @property
    def uri(self) -> str:
        """The address, for messages."""

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, unchecked. Raises NotFoundError, RemoteError."""

    def get(
        self, version: RemoteVersion, file: File, *, offset_bytes: int = 0
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Opens a file's bytes from an offset on, unchecked. Raises NotFoundError, RemoteError."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of one blob come from."""

    remote: Holder
    version: RemoteVersion
    file: File


def receive_blob(layout: Layout, source: Source, *, on_bytes: CountBytes) -> None:
    """Brings a blob from a remote into the store, going on where an interrupted attempt ended.

    Raises:
        IntegrityError: if the remote's bytes are not those of the digest; nothing is kept.
        NotFoundError: if the remote does not have them; nothing is kept.
        RemoteError: if the remote fails; what arrived is kept for the next attempt.
        StoreError: if the disk refuses; nothing is kept.
    """
    beginnings = _find_beginnings(layout, source.file)
    try:
        if beginnings and _receive(layout, source, beginnings[0], on_bytes=on_bytes):
            return
        _receive(layout, source, None, on_bytes=on_bytes)
    except (IntegrityError, NotFoundError, StoreError):
        _drop(beginnings)
        raise
    _drop(beginnings)


def list_partials(layout: Layout) -> list[tuple[str, Path]]:
    """Returns the files of interrupted attempts and their names, live attempts of other processes left out."""
    found: list[tuple[str, Path]] = []
    for name in names_in(layout.partials):
        _, _, owner = name.partition("-")
        if not owner or is_running(owner) is False:
            with contextlib.suppress(InvalidNameError):
                found.append((name, layout.partial_entry(name)))
    return found


def _find_beginnings(layout: Layout, file: File) -> list[Path]:
    """What earlier attempts left of a blob, the longest first."""
    sizes: dict[Path, int] = {}
    for name, path in list_partials(layout):
        status = look_at(path) if name.startswith(file.sha256.hex) else None
        if status is not None and stat.S_ISREG(status.st_mode) and 0 < status.st_size <= file.size:
            sizes[path] = status.st_size
    return sorted(sizes, key=lambda path: sizes[path], reverse=True)


def _receive(layout: Layout, source: Source, beginning: Path | None, *, on_bytes: CountBytes) -> bool:
    """Returns False if the bytes that began with ``beginning`` are the wrong ones, as they may be its fault."""
    digest, size_bytes = source.file.sha256, source.file.size
    with write_new_file(layout.arriving(digest)) as file:
        try:
            if beginning is not None:
                _copy_beginning(file, beginning)
                on_bytes(file.size_bytes)
            _append(file, source, on_bytes=on_bytes)
        except (IntegrityError, NotFoundError, StoreError, OSError):
            raise
        except BaseException:
            _keep(layout, file, digest)
            raise
        if beginning is not None and (file.digest, file.size_bytes) != (digest, size_bytes):
            return False
        check_received(file.digest, file.size_bytes, digest=digest, size_bytes=size_bytes)
        commit_blob(layout, file, digest, size_bytes)
    if beginning is not None:
        _drop([beginning])
    return True


def _copy_beginning(file: NewFile, beginning: Path) -> None:
    with explain_os_errors("read", beginning):
        for chunk in read_chunks(beginning):
            file.write(chunk)


def _append(file: NewFile, source: Source, *, on_bytes: CountBytes) -> None:
    """Never takes more than one piece beyond the declared size."""
    size_bytes = source.file.size
    if file.size_bytes == size_bytes and size_bytes > 0:
        return
    with source.remote.get(source.version, source.file, offset_bytes=file.size_bytes) as chunks:
        for chunk in chunks:
            file.write(chunk)
            on_bytes(len(chunk))
            if file.size_bytes > size_bytes:
                break


def _keep(layout: Layout, file: NewFile, digest: Digest) -> None:
    """A failure here loses bytes that can be fetched again; the failure that led here is the one to report."""
    if file.size_bytes == 0:
        return
    with contextlib.suppress(OSError):
        file.close()
        known = look_at(layout.partial(digest))
        if known is None or known.st_size <= file.size_bytes:
            replace_name(file.path, layout.partial(digest))


def _drop(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(StoreError):
            remove_file(path)
