"""A copy of every lock that was ever synced, with the project's path: roots for garbage collection, and the quick way.

A copy also says which files of the store the lock needs, as JSON that is read in a millisecond. So an unchanged
project is known to be in order without reading TOML or manifests: the same bytes of both files, and each file there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError
from conceptry.names import ConceptName, parse_version
from conceptry.registry.file_reading import is_file, look_at, names_in, read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.generations import is_settled, read_generation
from conceptry.registry.paths import Layout
from conceptry.registry.refs import read_version
from conceptry.registry.roots import keep_root
from conceptry.registry.store import Store

if TYPE_CHECKING:
    from conceptry.registry.lockfile import Lock

_LIMIT_BYTES: Final = 256 << 20
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class KeptLock:
    """One lock that was synced: its exact bytes, where it lay, and what it needs."""

    path: str
    data: bytes
    digests: frozenset[Digest]


def keep_lock(store: Store, lock_path: Path, data: bytes, lock: Lock, *, project: bytes) -> None:
    """Remembers a lock that was synced, beside those that were synced before it. Raises StoreError.

    Args:
        store: where the copy goes; garbage collection spares what it names.
        lock_path: where the lock lies.
        data: its exact bytes.
        lock: what they say.
        project: the bytes of the ``concepts.toml`` that the lock answers.
    """
    layout, place = store.layout, _identify(lock_path)
    document = {
        "format": _FORMAT,
        "path": str(lock_path.absolute()),
        "project": Digest.of_bytes(project).hex,
        "lock": data.decode("utf-8"),
        "generation": read_generation(layout),
        "versions": [[str(one.name), str(one.version), one.manifest.hex] for one in lock.concepts],
        "blobs": [[hex, *_look(layout, hex)] for hex in sorted(_list_blobs(lock))],
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    target = layout.kept_lock(place, Digest.of_bytes(data))
    if read_small_file(target, _LIMIT_BYTES) != text:
        write_file(target, text, temporary=layout.temporary(), replace=True)
    digests = {digest for kept in list_kept_locks(layout, lock_path) for digest in kept.digests}
    keep_root(store, "lock", lock_path, digests)


def list_kept_locks(layout: Layout, lock_path: Path) -> Iterator[KeptLock]:
    """Yields the locks that were ever synced at a path; what cannot be read is left out."""
    place = _identify(lock_path)
    for name in names_in(layout.project(place)):
        try:
            document = _read(layout.kept_lock(place, Digest(name.removesuffix(".json"))))
            needed = [row[2] for row in document["versions"]] + [row[0] for row in document["blobs"]]
            digests = frozenset(Digest(text) for text in needed)
            yield KeptLock(document["path"], document["lock"].encode("utf-8"), digests)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, ConceptryError):
            continue


def count_in_order(layout: Layout, lock_path: Path, data: bytes, project: bytes) -> int | None:
    """Returns the number of concepts if exactly this lock was synced for exactly this project and all of it is here.

    None is no answer: then the lock itself has to be read. Files are looked at and not read again; a blob that was
    changed in place is found when it is used.
    """
    place = _identify(lock_path)
    try:
        document = _read(layout.kept_lock(place, Digest.of_bytes(data)))
        same = document["format"] == _FORMAT and document["project"] == Digest.of_bytes(project).hex
        if not same or not is_file(layout.root_copy(place)):
            return None
        generation = read_generation(layout)
        unchanged = is_settled(generation) and document["generation"] == generation
        if not unchanged and not all(_is_listed(layout, *row) for row in document["versions"]):
            return None
        if any(_look(layout, hex) != tuple(look) for hex, *look in document["blobs"]):
            return None
        return len(document["versions"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ConceptryError):
        return None


def _read(path: Path) -> dict[str, Any]:
    document = json.loads(read_small_file(path, _LIMIT_BYTES) or b"{}")
    return document if isinstance(document, dict) else {}


def _list_blobs(lock: Lock) -> set[str]:
    return {file.sha256.hex for one in lock.concepts for file in one.files}


def _look(layout: Layout, hex: str) -> tuple[int, int]:
    """Returns size and time of a blob, which both change where it is written in place."""
    status = look_at(layout.blob_text(Digest(hex)))
    return (-1, -1) if status is None else (status.st_size, status.st_mtime_ns)


def _is_listed(layout: Layout, name: str, version: str, manifest: str) -> bool:
    ref = read_version(layout, ConceptName.parse(name), parse_version(version))
    return ref is not None and ref.digest.hex == manifest and is_file(layout.manifest(ref.digest))


def _identify(lock_path: Path) -> Digest:
    """Returns what a lock's copies are named by: the same digest of its path as its root's."""
    return Digest.of_bytes(str(lock_path.absolute()).encode("utf-8", "surrogateescape"))
