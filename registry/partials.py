"""Blobs on their way in: what arrived before an interruption is kept, and goes on from there.

A resumed file is hashed again from its first byte, so it does not matter who wrote the beginning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, NotFoundError, StoreError
from conceptry.registry.blobs import CountBytes, add_blob, check_received
from conceptry.registry.files import BLOB_MODE, digest_file, ensure_folder, explain_os_errors, sync_folder
from conceptry.registry.locks import try_lock
from conceptry.registry.paths import Layout
from conceptry.registry.protocol import Remote, RemoteVersion

if TYPE_CHECKING:
    from conceptry.manifest import File


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of one blob come from."""

    remote: Remote
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
    digest, size_bytes = source.file.sha256, source.file.size
    with _open_partial(layout, digest) as descriptor:
        if descriptor is None:
            with source.remote.get(source.version, source.file) as chunks:
                add_blob(layout, digest, size_bytes, chunks, on_bytes=on_bytes)
            return
        try:
            _fill_partial(layout, source, descriptor=descriptor, on_bytes=on_bytes)
            _commit_partial(layout, digest, descriptor)
        except (IntegrityError, NotFoundError, StoreError):
            layout.partial(digest).unlink(missing_ok=True)
            raise


def _fill_partial(layout: Layout, source: Source, *, descriptor: int, on_bytes: CountBytes) -> None:
    digest, size_bytes = source.file.sha256, source.file.size
    start = os.fstat(descriptor).st_size
    if 0 < start <= size_bytes:
        on_bytes(start)
        _append(layout, source, descriptor=descriptor, on_bytes=on_bytes)
        if _digest_partial(layout, digest) == (digest, size_bytes):
            return
    with explain_os_errors("write", layout.partial(digest)):
        os.ftruncate(descriptor, 0)
    _append(layout, source, descriptor=descriptor, on_bytes=on_bytes)
    found, found_bytes = _digest_partial(layout, digest)
    check_received(found, found_bytes, digest=digest, size_bytes=size_bytes)


def _append(layout: Layout, source: Source, *, descriptor: int, on_bytes: CountBytes) -> None:
    """Never takes more than one piece beyond the declared size."""
    digest, size_bytes = source.file.sha256, source.file.size
    written = os.fstat(descriptor).st_size
    if written == size_bytes and written > 0:
        return
    with source.remote.get(source.version, source.file, offset_bytes=written) as chunks:
        for chunk in chunks:
            with explain_os_errors("write", layout.partial(digest)):
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            written += len(chunk)
            on_bytes(len(chunk))
            if written > size_bytes:
                break


def _digest_partial(layout: Layout, digest: Digest) -> tuple[Digest, int]:
    with explain_os_errors("read", layout.partial(digest)):
        return digest_file(layout.partial(digest))


def _commit_partial(layout: Layout, digest: Digest, descriptor: int) -> None:
    """The name moves instead of a second one being made, so that a partial is never a finished blob's other name."""
    target = layout.blob(digest)
    ensure_folder(target.parent)
    with explain_os_errors("write", target):
        os.fchmod(descriptor, BLOB_MODE)
        os.fsync(descriptor)
        layout.partial(digest).replace(target)
        sync_folder(target.parent)


@contextmanager
def _open_partial(layout: Layout, digest: Digest) -> Iterator[int | None]:
    """Yields the open partial file at its end, None where another process is filling it right now."""
    path = layout.partial(digest)
    ensure_folder(path.parent)
    with explain_os_errors("write", path):
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor if try_lock(descriptor) else None
    finally:
        os.close(descriptor)
