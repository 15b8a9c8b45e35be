"""Hashing what was adopted: one pass over each file that is pending; whatever is done stays done when it is stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from conceptry.digests import new_hasher
from conceptry.errors import ConceptryError, StoreError
from conceptry.registry.adopted_files import AdoptedFile, Collection, replace_files, write_collection
from conceptry.registry.adoption_looking import make_stamp
from conceptry.registry.blobs import CountBytes
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.file_reading import look_at, open_regular
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import CollectionLayout
from conceptry.registry.store import Store

SAVE_EVERY_SECONDS: Final = 5.0
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashed:
    """What hashing a collection found."""

    collection: Collection
    count: int
    size_bytes: int
    found_again: int
    """How many were known by their digest from another place."""

    failed: tuple[tuple[str, str], ...]
    """Paths that could not be hashed, and why."""


def hash_collection(store: Store, collection: Collection, *, on_event: OnEvent = ignore_event) -> Hashed:
    """Returns the collection with every pending file hashed; an interrupted run goes on where it was.

    Raises:
        StoreError: if the store cannot be written.
    """
    layout = CollectionLayout(collection.folder)
    pending = [file for file in collection.files if file.state == "pending"]
    meter = Meter("check", sum(file.size_bytes for file in pending), on_event)
    done: list[AdoptedFile] = []
    failed: list[tuple[str, str]] = []
    saved = time.monotonic()
    try:
        for file in pending:
            try:
                done.append(hash_file(layout, file, on_bytes=meter.start(file.path)))
            except ConceptryError as error:
                failed.append((file.path, error.message))
            if time.monotonic() > saved + SAVE_EVERY_SECONDS:
                write_collection(store, replace_files(collection, done))
                saved = time.monotonic()
    finally:
        result, found_again = _join_moved(replace_files(collection, done))
        write_collection(store, result)
    return Hashed(
        collection=result,
        count=len(done),
        size_bytes=sum(file.size_bytes for file in done),
        found_again=found_again,
        failed=tuple(failed),
    )


def hash_file(layout: CollectionLayout, file: AdoptedFile, *, on_bytes: CountBytes) -> AdoptedFile:
    """Returns the file with the digests of its bytes, and of those after a safetensors header.

    Raises:
        StoreError: if it cannot be read, or is written to meanwhile.
    """
    path = layout.entry(file.path)
    if not is_unchanged(layout, file):
        raise _changed(layout, file)
    whole, data = new_hasher(), new_hasher()
    with explain_os_errors("read", path), open_regular(path) as opened:
        start: int | None = None
        at = 0
        for chunk in opened.iter_chunks():
            if start is None:
                start = _find_data(chunk)
            whole.update(chunk)
            data.update(memoryview(chunk)[max(0, start - at) :])
            at += len(chunk)
            on_bytes(len(chunk))
    if not is_unchanged(layout, file):
        raise _changed(layout, file)
    has_header = start is not None and start <= at
    return replace(file, sha256=whole.hexdigest(), data_sha256=data.hexdigest() if has_header else None)


def _changed(layout: CollectionLayout, file: AdoptedFile) -> StoreError:
    return StoreError(
        f"{file.path!r} is not as it was when it was looked at",
        hint=f"concepts adopt {layout.root}",
    )


def _join_moved(collection: Collection) -> tuple[Collection, int]:
    """Returns the collection where a missing file whose bytes lie elsewhere now is known there by its old name."""
    missing = {file.sha256: file for file in collection.files if file.missing and file.sha256}
    again = {file.path: missing[file.sha256 or ""] for file in _iter_new(collection, missing)}
    gone = {old.path for old in again.values()}
    files = tuple(
        _take_over(file, again[file.path]) if file.path in again else file
        for file in collection.files
        if file.path not in gone
    )
    return replace(collection, files=files), len(again)


def _take_over(file: AdoptedFile, old: AdoptedFile) -> AdoptedFile:
    return replace(file, name=old.name, made=old.made, answers=old.answers, known_as=old.known_as or old.path)


def _iter_new(collection: Collection, missing: Mapping[str, AdoptedFile]) -> Iterator[AdoptedFile]:
    """Yields the first file of each digest that is missing elsewhere, unless it was used under its own name."""
    seen: set[str | None] = set()
    for file in collection.files:
        if not file.missing and file.made is None and file.sha256 in missing and file.sha256 not in seen:
            seen.add(file.sha256)
            yield file


def is_unchanged(layout: CollectionLayout, file: AdoptedFile) -> bool:
    """Returns whether the file still lies there as it was last looked at."""
    status = look_at(layout.entry(file.path))
    return status is not None and make_stamp(status) == file.stamp


def _find_data(beginning: bytes) -> int:
    """Returns where the tensors of a safetensors file begin; beyond every end for other files."""
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    return _LENGTH_BYTES + length if beginning[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" else 1 << 63
