"""What was taken away and can come back: collected blobs and manifests, found there by their digests.

A collection writes down what it takes before it takes it, so that it can be undone, also one that was killed.
Whoever misses a blob or manifest looks here and brings it back, so a collection never has to be right about others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, NotFoundError, StoreError
from conceptry.names import ConceptName, Version, parse_namespace
from conceptry.registry.file_reading import look_at, names_in, read_small_file
from conceptry.registry.files import (
    ensure_folder,
    move_file,
    remove_empty_folder,
    remove_file,
    replace_name,
    sync_folder,
    write_file,
)
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.paths import ItemKind, Layout, read_version_file_name
from conceptry.registry.refs import parse_names

ITEM_KINDS: Final[tuple[ItemKind, ...]] = ("record", "manifest", "blob")
MOST_RECALLS: Final = 8
"""How often to look for what was there a moment ago: collections may take it, and others bring it back, meanwhile."""

_LIMIT_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """One blob, manifest or record that nothing needs."""

    kind: ItemKind
    digest: Digest
    size_bytes: int


def recall_item(layout: Layout, kind: ItemKind, digest: Digest) -> bool:
    """Returns True if a missing blob, manifest or record was in the trash and is back in its place.

    Raises:
        StoreError: if it is there and cannot be moved.
    """
    source, target = layout.trashed_item(kind, digest), layout.item(kind, digest)
    if look_at(source) is None or look_at(target) is not None:
        return False
    return move_file(source, target)


def recall_if_possible(layout: Layout, kind: ItemKind, digest: Digest) -> bool:
    """Returns True if a missing item is in its place now, whoever brought it back; see ``MOST_RECALLS``.

    A store that cannot be written keeps it in the trash.
    """
    with contextlib.suppress(StoreError):
        recall_item(layout, kind, digest)
    return look_at(layout.item(kind, digest)) is not None


def take_away(layout: Layout, items: Iterable[Item], *, time_ns: int) -> None:
    """Moves items to the trash, written down before. Raises StoreError; what was not moved stays."""
    taken = list(items)
    rows = [[item.kind, str(item.digest), item.size_bytes] for item in taken]
    data = (json.dumps({"items": rows}) + "\n").encode("ascii")
    write_file(layout.collection(time_ns), data, temporary=layout.temporary())
    for kind in ITEM_KINDS:
        chosen = [item.digest for item in taken if item.kind == kind]
        if not chosen:
            continue
        ensure_folder(layout.trashed_items(kind))
        for digest in chosen:
            with explain_os_errors("move", layout.item(kind, digest)), contextlib.suppress(FileNotFoundError):
                replace_name(layout.item(kind, digest), layout.trashed_item(kind, digest))
        with explain_os_errors("move to", layout.trashed_items(kind)):
            sync_folder(layout.trashed_items(kind))
            sync_folder(layout.items(kind))


def undo_collection(layout: Layout) -> tuple[Item, ...]:
    """Returns what the last collection had taken away, which is back in its place.

    Raises:
        NotFoundError: if there is none, or the trash was emptied since.
    """
    for entry in reversed(names_in(layout.collections)):
        items = _read_collection(layout, entry)
        for item in items:
            recall_item(layout, item.kind, item.digest)
        # What an undo that was killed had brought back counts, so that running it again succeeds.
        back = tuple(item for item in items if look_at(layout.item(item.kind, item.digest)) is not None)
        remove_file(layout.collection_entry(entry))
        if back:
            return back
    raise NotFoundError(
        "no collection is left to be undone", hint="concepts gc --dry-run shows what one would take"
    )


def iter_trash(layout: Layout) -> Iterator[Item]:
    """Yields the collected items that are in the trash."""
    for kind in ITEM_KINDS:
        for digest in parse_names(names_in(layout.trashed_items(kind)), Digest):
            status = look_at(layout.trashed_item(kind, digest))
            if status is not None:
                yield Item(kind, digest, status.st_size)


def weigh_trash(layout: Layout) -> list[int]:
    """Returns the sizes of all files in the trash, in bytes."""
    statuses = [look_at(path) for path in [*_iter_damaged(layout), *_iter_removed_files(layout)]]
    return [item.size_bytes for item in iter_trash(layout)] + [
        status.st_size for status in statuses if status
    ]


def empty_trash(layout: Layout, needed: frozenset[tuple[ItemKind, Digest]]) -> tuple[int, int]:
    """Returns how many files were deleted for good, and their bytes; what is needed after all goes back instead."""
    count = size_bytes = 0
    removed = list(iter_removed(layout))
    for item in list(iter_trash(layout)):
        if (item.kind, item.digest) in needed and recall_item(layout, item.kind, item.digest):
            continue
        deleted = remove_file(layout.trashed_item(item.kind, item.digest))
        count, size_bytes = count + deleted, size_bytes + item.size_bytes * deleted
    for path in [*_iter_damaged(layout), *_iter_removed_files(layout)]:
        status = look_at(path)
        if status is not None and remove_file(path):
            count, size_bytes = count + 1, size_bytes + status.st_size
    for name, version in {(name, version): None for name, version, _ in removed}:
        remove_empty_folder(layout.trashed_versions(name, version))
    for entry in names_in(layout.collections):
        with contextlib.suppress(ConceptryError):
            remove_file(layout.collection_entry(entry))
    return count, size_bytes


def iter_removed(layout: Layout) -> Iterator[tuple[ConceptName, Version, str]]:
    """Yields each removed reference: its concept, its version, and the name of its file, which begins with the time."""
    for namespace in parse_names(names_in(layout.trashed_refs), parse_namespace):
        known = parse_names(names_in(layout.trashed_namespace(namespace)), partial(ConceptName, namespace))
        for name in known:
            for version in parse_names(names_in(layout.trashed_concept(name)), read_version_file_name):
                for entry in names_in(layout.trashed_versions(name, version)):
                    yield name, version, entry


def _iter_damaged(layout: Layout) -> Iterator[Path]:
    for entry in names_in(layout.damaged):
        with contextlib.suppress(ConceptryError):
            yield layout.damaged_entry(entry)


def _iter_removed_files(layout: Layout) -> Iterator[Path]:
    for name, version, entry in list(iter_removed(layout)):
        with contextlib.suppress(ConceptryError):
            yield layout.trashed_entry(name, version, entry)


def _read_collection(layout: Layout, entry: str) -> list[Item]:
    try:
        document = json.loads(read_small_file(layout.collection_entry(entry), _LIMIT_BYTES) or b"")
        return [Item(kind, Digest.parse(digest), size) for kind, digest, size in document["items"]]
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, ConceptryError):
        return []
