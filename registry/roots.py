"""What keeps versions alive beside references: copies of locks that were synced, and compositions, by their paths.

Garbage collection reads these and never a project: a disk that is not mounted loses nothing. A copy stays until
``concepts gc --forget PATH``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IntegrityError, NotFoundError, suggest_nearest
from conceptry.registry.file_reading import names_in, read_small_file
from conceptry.registry.files import remove_file, write_file
from conceptry.registry.paths import Layout
from conceptry.registry.store import Store

RootKind = Literal["lock", "composition"]

_KINDS: Final = get_args(RootKind)
_LIMIT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What one file outside the store needs: the manifests and blobs that it names."""

    kind: RootKind
    path: str
    """Where the file lay when it was last synced; for people, and for ``--forget``."""

    digests: frozenset[Digest]


def keep_root(store: Store, kind: RootKind, path: Path, digests: Iterable[Digest]) -> None:
    """Remembers what the file at ``path`` needs, in the place of what it needed before. Raises StoreError."""
    text = str(path.absolute())
    document = {"kind": kind, "path": text, "digests": sorted(str(digest) for digest in digests)}
    data = (json.dumps(document, indent=1) + "\n").encode("ascii")
    store.prepare_for_writing()
    place = store.layout.root_copy(_identify(text))
    if read_small_file(place, _LIMIT_BYTES) != data:
        write_file(place, data, temporary=store.layout.temporary(), replace=True)


def list_roots(layout: Layout) -> tuple[Root, ...]:
    """Returns what files outside the store need, in order of path.

    Raises:
        IntegrityError: if a copy cannot be read; what it kept alive is unknown then, so nothing may be collected.
    """
    roots = [_read_root(layout, name) for name in names_in(layout.roots)]
    return tuple(sorted((root for root in roots if root), key=lambda root: root.path))


def forget_root(store: Store, path: Path, *, dry_run: bool = False) -> Root:
    """Returns what the file at ``path``, or in the folder ``path``, needed; it keeps nothing alive any more.

    Raises:
        NotFoundError: if nothing is known of it.
    """
    known = {root.path: root for root in list_roots(store.layout)}
    text = str(path.absolute())
    for candidate in (text, *(name for name in known if name.rpartition("/")[0] == text)):
        if candidate in known and (dry_run or remove_file(store.layout.root_copy(_identify(candidate)))):
            return known[candidate]
    hint = (
        suggest_nearest(text, known) or "concepts gc --dry-run --json lists what is kept, and for which files"
    )
    raise NotFoundError(f"nothing is kept for {text!r}", hint=hint)


def _identify(path: str) -> Digest:
    return Digest.of_bytes(path.encode("utf-8", "surrogateescape"))


def _read_root(layout: Layout, name: str) -> Root | None:
    try:
        place = layout.root_copy(Digest(name.removesuffix(".json")))
    except ConceptryError:
        return None  # not put there by us
    data = read_small_file(place, _LIMIT_BYTES)
    if data is None:
        return None  # forgotten meanwhile
    try:
        document: dict[str, Any] = json.loads(data)
        kind, path = document["kind"], document["path"]
        digests = frozenset(Digest.parse(text) for text in document["digests"])
        if kind not in _KINDS or not isinstance(path, str):
            raise TypeError(kind)
    except (ValueError, KeyError, TypeError, AttributeError, ConceptryError) as error:
        raise IntegrityError(
            "the copy of a lock in the store is damaged",
            where=layout.describe(place),
            hint="run concepts sync in the project that it belongs to, or remove the file if that is gone",
        ) from error
    return Root(kind=kind, path=path, digests=digests)
