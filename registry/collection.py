"""Garbage collection: what nothing needs goes to the trash, and comes back if something needed it after all.

Marked are all references (whatever was trained, imported, pulled or pushed has one), versions removed a short while
ago, copies of locks and compositions, and leases of operations in progress. If one of these cannot be read, it is
unknown what it needs, and nothing is collected.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.documents import MAX_DOCUMENT_BYTES
from conceptry.errors import ConceptryError, IntegrityError, InvalidNameError
from conceptry.manifest import parse_manifest
from conceptry.names import Reference
from conceptry.registry.file_reading import look_at, names_in, read_small_file
from conceptry.registry.leases import ELSEWHERE_SECONDS, list_leased, remove_abandoned
from conceptry.registry.locks import hold_lock
from conceptry.registry.manifests import read_manifest
from conceptry.registry.partials import list_partials
from conceptry.registry.paths import ItemKind, Layout
from conceptry.registry.processes import is_running
from conceptry.registry.refs import (
    Resolved,
    list_names,
    list_versions,
    parse_names,
    read_trashed,
    read_version,
)
from conceptry.registry.roots import list_roots
from conceptry.registry.staging import remove_tree, weigh_tree
from conceptry.registry.store import Store
from conceptry.registry.trash import (
    ITEM_KINDS,
    Item,
    empty_trash,
    iter_removed,
    recall_item,
    take_away,
    weigh_trash,
)

GRACE_SECONDS: Final = 14 * 86_400
PARTIAL_SECONDS: Final = 7 * 86_400

Needed = frozenset[tuple[ItemKind, Digest]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection took away, or would take."""

    items: tuple[Item, ...]
    """Blobs, manifests and records, which are in the trash now."""

    leftovers: int
    """Temporary files, partial downloads and leases of commands that are gone; these are deleted."""

    leftover_bytes: int

    @property
    def size_bytes(self) -> int:
        """The bytes that are in the trash now."""
        return sum(item.size_bytes for item in self.items)


def collect_garbage(
    store: Store, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False
) -> Collected:
    """Returns what was taken away: what nothing needs and nobody touched for ``grace_seconds``.

    Raises:
        IntegrityError: if a reference, manifest or lock copy is damaged, since nobody knows what it needs.
        StoreError: if the store cannot be written.
    """
    layout = store.layout
    if not store.exists:
        return Collected(items=(), leftovers=0, leftover_bytes=0)
    if dry_run:
        items = _find_garbage(layout, grace_seconds)
        leftovers = list(_iter_leftovers(layout, grace_seconds))
        return Collected(
            items=items, leftovers=len(leftovers), leftover_bytes=sum(size for _, size in leftovers)
        )
    with hold_lock(layout.collection_lock):
        items = _find_garbage(layout, grace_seconds)
        if items:
            take_away(layout, items, time_ns=time.time_ns())
            back = _bring_back(layout, items, grace_seconds)
            items = tuple(item for item in items if item not in back)
        count = size_bytes = 0
        for path, size in list(_iter_leftovers(layout, grace_seconds)):
            if removed := remove_tree(path):
                count, size_bytes = count + removed, size_bytes + size
        count += remove_abandoned(layout)
    return Collected(items=items, leftovers=count, leftover_bytes=size_bytes)


def delete_trash(store: Store, *, dry_run: bool = False) -> tuple[int, int]:
    """Returns how many files of the trash were deleted for good, or would be, and their bytes.

    Raises:
        IntegrityError, StoreError: as for ``collect_garbage``.
    """
    if not store.exists:
        return 0, 0
    if dry_run:
        sizes = weigh_trash(store.layout)
        return len(sizes), sum(sizes)
    with hold_lock(store.layout.collection_lock):
        return empty_trash(store.layout, mark_needed(store.layout, grace_seconds=0))


def mark_needed(layout: Layout, *, grace_seconds: float) -> Needed:
    """Returns every blob, manifest and record that something needs. Raises IntegrityError, StoreError."""
    needed: set[tuple[ItemKind, Digest]] = set()
    manifests = set(_iter_versions(layout)) | set(_iter_removed_lately(layout, grace_seconds))
    for version in manifests:
        _mark_version(layout, version, needed)
    for digest in (*(digest for root in list_roots(layout) for digest in root.digests), *list_leased(layout)):
        _mark_digest(layout, digest, needed)
    return frozenset(needed)


def _iter_versions(layout: Layout) -> Iterator[Resolved]:
    for name in list_names(layout):
        for version in list_versions(layout, name):
            ref = read_version(layout, name, version)
            if ref is not None:
                yield Resolved(Reference(name, version), ref.digest)


def _iter_removed_lately(layout: Layout, grace_seconds: float) -> Iterator[Resolved]:
    for name, version, entry in iter_removed(layout):
        removed_ns = entry.partition("-")[0]
        if removed_ns.isdigit() and time.time_ns() - int(removed_ns) < grace_seconds * 1e9:
            ref = read_trashed(layout, name, version, entry)
            if ref is not None:
                yield Resolved(Reference(name, version), ref.digest)


def _mark_version(layout: Layout, version: Resolved, needed: set[tuple[ItemKind, Digest]]) -> None:
    needed |= {("manifest", version.digest), ("record", version.digest)}
    try:
        manifest = read_manifest(layout, version)
    except ConceptryError as error:
        raise IntegrityError(
            f"nothing was collected: {error.message}, so nobody knows which files it needs",
            where=error.where,
            hint=f"concepts doctor repairs it, or concepts remove {version.reference}",
        ) from error
    needed |= {("blob", file.sha256) for file in manifest.iter_files()}


def _mark_digest(layout: Layout, digest: Digest, needed: set[tuple[ItemKind, Digest]]) -> None:
    """A digest alone may be of a manifest or of a blob; one that is not here needs nothing."""
    needed |= {("manifest", digest), ("record", digest), ("blob", digest)}
    place = layout.manifest(digest)
    for path in (place, layout.trashed_item("manifest", digest), place):  # it may go and come back meanwhile
        data = read_small_file(path, MAX_DOCUMENT_BYTES)
        if data is not None and Digest.of_bytes(data) == digest:
            needed |= {("blob", file.sha256) for file in parse_manifest(data).iter_files()}
            return


def _find_garbage(layout: Layout, grace_seconds: float) -> tuple[Item, ...]:
    needed = mark_needed(layout, grace_seconds=grace_seconds)
    return tuple(item for item in _iter_old(layout, grace_seconds) if (item.kind, item.digest) not in needed)


def _iter_old(layout: Layout, grace_seconds: float) -> Iterator[Item]:
    for kind in ITEM_KINDS:
        names = [name.removesuffix(".json") for name in names_in(layout.items(kind))]
        for digest in parse_names(names, Digest):
            status = look_at(layout.item(kind, digest))
            if status is not None and time.time() - status.st_mtime >= grace_seconds:
                yield Item(kind, digest, status.st_size)


def _bring_back(layout: Layout, items: Iterable[Item], grace_seconds: float) -> set[Item]:
    """Somebody may have begun to need them between the mark and the move; whoever comes later looks in the trash."""
    needed = mark_needed(layout, grace_seconds=grace_seconds)
    wanted = {item for item in items if (item.kind, item.digest) in needed}
    for item in wanted:
        recall_item(layout, item.kind, item.digest)
    return wanted


def _iter_leftovers(layout: Layout, grace_seconds: float) -> Iterator[tuple[Path, int]]:
    """Temporary files of processes that are gone, and partial downloads that nobody went on with."""
    for name in names_in(layout.temporaries):
        with contextlib.suppress(InvalidNameError):
            path = layout.temporary_entry(name)
            status, running = look_at(path), is_running(name)
            if status is None:
                continue
            if running is False or (running is None and time.time() - status.st_mtime > ELSEWHERE_SECONDS):
                yield path, weigh_tree(path)
    for name, path in list_partials(layout):
        status = look_at(path)
        if status is None:
            continue
        arrived = _has_arrived(layout, name)
        if arrived or time.time() - status.st_mtime >= min(grace_seconds, PARTIAL_SECONDS):
            yield path, status.st_size


def _has_arrived(layout: Layout, name: str) -> bool:
    try:
        status = look_at(layout.blob(Digest(name.partition("-")[0])))
    except ConceptryError:
        return True  # no blob has such a name: nobody can go on with it
    return status is not None
