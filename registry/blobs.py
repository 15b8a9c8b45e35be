"""Bytes named by their digest, in a store or a directory remote."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import IntegrityError
from conceptry.registry.file_reading import digest_file, look_at, read_chunks
from conceptry.registry.files import (
    BLOB_MODE,
    NewFile,
    change_mode,
    give_new_name,
    move_file,
    remove_file,
    write_new_file,
)
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import Layout
from conceptry.written_files import FileStamp

CountBytes = Callable[[int], None]

_LARGE_BYTES: Final = 8 << 20
"""From here on a thread that hashes beside the one that writes saves more than it costs."""


def ignore_bytes(count: int) -> None:
    """Takes the number of bytes that went by, for callers without a progress bar."""


def has_blob(layout: Layout, digest: Digest, size_bytes: int) -> bool:
    """Returns whether a file of that name and size is there; its bytes are not read."""
    status = look_at(layout.blob(digest))
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_size == size_bytes


def is_intact(layout: Layout, digest: Digest, size_bytes: int) -> bool:
    """Returns whether the blob is there and every byte of it is right."""
    if not has_blob(layout, digest, size_bytes):
        return False
    with explain_os_errors("read", layout.blob(digest)):
        try:
            return digest_file(layout.blob(digest)) == (digest, size_bytes)
        except FileNotFoundError:  # a collection took it after the look above
            return False


def add_blob(
    layout: Layout,
    digest: Digest,
    size_bytes: int,
    chunks: Iterable[bytes],
    *,
    on_bytes: CountBytes = ignore_bytes,
) -> None:
    """Writes ``chunks`` as the blob called ``digest``, replacing a damaged one.

    Raises:
        IntegrityError: if the chunks are not those bytes; nothing is kept.
        StoreError: if the disk refuses; nothing is kept.
    """
    with write_new_file(layout.temporary()) as file:
        found = _write(file, _count(chunks, size_bytes, on_bytes), is_large=size_bytes >= _LARGE_BYTES)
        check_received(found, file.size_bytes, digest=digest, size_bytes=size_bytes)
        commit_blob(layout, file, digest, size_bytes)


def add_blob_from_file(
    layout: Layout, source: Path, digest: Digest, size_bytes: int, *, on_bytes: CountBytes = ignore_bytes
) -> bool:
    """Returns True after copying ``source`` into the blob called ``digest``, False if that is there and intact.

    Raises:
        IntegrityError: if the source does not hold those bytes.
        StoreError: if the disk refuses.
    """
    if is_intact(layout, digest, size_bytes):
        return False
    add_blob(layout, digest, size_bytes, _read_source(source), on_bytes=on_bytes)
    return True


def move_blob(layout: Layout, source: Path, digest: Digest, *, written: FileStamp) -> bool:
    """Returns True once a file of the store's private folder is the blob called ``digest``, without being read.

    ``written`` is what the system said of it when this process had written and hashed it. False if it says something
    else now, before or after the change of names, or if the file lies elsewhere: then nobody vouches for its bytes.

    Raises:
        StoreError: if the disk refuses.
    """
    if not source.is_relative_to(layout.temporaries) or not _is_untouched(source, written):
        return False
    change_mode(source, BLOB_MODE)
    target = layout.blob(digest)
    while not give_new_name(source, target):
        if settle_blob(layout, digest, written.size_bytes):
            return True
    remove_file(source)
    status = look_at(target)
    if status is not None and FileStamp.of(status).has_bytes_of(written):
        return True
    quarantine_blob(layout, digest)
    return False


def _is_untouched(source: Path, written: FileStamp) -> bool:
    status = look_at(source)
    return (
        status is not None
        and stat.S_ISREG(status.st_mode)
        and status.st_nlink == 1
        and FileStamp.of(status) == written
    )


def _write(file: NewFile, chunks: Iterable[bytes], *, is_large: bool) -> Digest:
    """Returns the digest of what was written; that of a large file is computed meanwhile."""
    if not is_large:
        for chunk in chunks:
            file.write(chunk)
        return file.digest
    from conceptry.formats.hashing import BackgroundHash

    with BackgroundHash() as hasher:
        for chunk in chunks:
            hasher.update(chunk)
            file.write_unhashed(chunk)
    return hasher.digest()


def _count(chunks: Iterable[bytes], size_bytes: int, on_bytes: CountBytes) -> Iterator[bytes]:
    """Yields the chunks up to the first one that is too much."""
    total = 0
    for chunk in chunks:
        yield chunk
        total += len(chunk)
        on_bytes(len(chunk))
        if total > size_bytes:
            break


def commit_blob(layout: Layout, file: NewFile, digest: Digest, size_bytes: int) -> None:
    """Gives a complete and checked file its name; a file of that name with other bytes goes to the trash.

    Raises:
        StoreError: if the disk refuses.
    """
    target = layout.blob(digest)
    while not file.commit(target, mode=BLOB_MODE, named_by_contents=True):
        if settle_blob(layout, digest, size_bytes):
            return


def settle_blob(layout: Layout, digest: Digest, size_bytes: int) -> bool:
    """Returns True if the blob that had its name first is intact; else that is out of the way now. Raises StoreError.

    Only what was there before and after its bytes were found wrong is moved: what came meanwhile may be right.
    """
    path = layout.blob(digest)
    before = look_at(path)
    if is_intact(layout, digest, size_bytes):
        return True
    after = look_at(path)
    if before is not None and after is not None and FileStamp.of(before) == FileStamp.of(after):
        quarantine_blob(layout, digest)
    return False


def quarantine_blob(layout: Layout, digest: Digest) -> None:
    """Moves a damaged blob out of the way. Raises StoreError."""
    move_file(layout.blob(digest), layout.quarantined(digest))


def check_received(found: Digest, found_bytes: int, *, digest: Digest, size_bytes: int) -> None:
    """Raises IntegrityError unless what arrived has the declared size and digest."""
    if found_bytes != size_bytes:
        raise IntegrityError(f"{found_bytes} bytes arrived, {size_bytes} were declared")
    if found != digest:
        raise IntegrityError(f"the bytes have digest {found}, not {digest}")


def _read_source(source: Path) -> Iterator[bytes]:
    with explain_os_errors("read", source):
        yield from read_chunks(source)
