"""Leases: what an operation in progress is about to need, so that no garbage collection takes it meanwhile.

They save work. An operation looks again once its reference is written, and a collection once it has moved things, so
one of the two always sees the other.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, StoreError
from conceptry.registry.file_reading import look_at, names_in, read_small_file
from conceptry.registry.files import remove_file, write_file
from conceptry.registry.paths import Layout
from conceptry.registry.processes import describe_process, is_running
from conceptry.registry.store import Store

ELSEWHERE_SECONDS: Final = 7 * 86_400
"""How long a process of another machine counts as running, since nobody here can tell."""

_LIMIT_BYTES: Final = 16 << 20


@contextmanager
def hold_lease(store: Store, digests: Iterable[Digest]) -> Iterator[None]:
    """Keeps manifests and blobs from being collected during the block. Raises StoreError."""
    path = store.layout.lease()
    document = {"by": describe_process(), "digests": sorted(str(digest) for digest in digests)}
    data = (json.dumps(document) + "\n").encode("ascii")
    write_file(path, data, temporary=store.layout.temporary(), mode=0o600)
    try:
        yield
    finally:
        with contextlib.suppress(StoreError):  # gc finds that its process is gone
            remove_file(path)


def list_leased(layout: Layout) -> frozenset[Digest]:
    """Returns what operations in progress need. Raises StoreError."""
    found: set[Digest] = set()
    for name in names_in(layout.leases):
        if not is_abandoned(layout, name):
            found |= _read_lease(layout, name)
    return frozenset(found)


def remove_abandoned(layout: Layout) -> int:
    """Returns how many leases of processes that are gone were removed. Raises StoreError."""
    return sum(
        remove_file(layout.lease_entry(name))
        for name in names_in(layout.leases)
        if is_abandoned(layout, name)
    )


def is_abandoned(layout: Layout, name: str) -> bool:
    """Returns whether the process that holds a lease is gone, as far as can be told here."""
    running = is_running(name)
    if running is not None:
        return not running
    try:
        status = look_at(layout.lease_entry(name))
    except ConceptryError:
        return False  # not put there by us
    return status is not None and time.time() - status.st_mtime > ELSEWHERE_SECONDS


def _read_lease(layout: Layout, name: str) -> set[Digest]:
    try:
        document = json.loads(read_small_file(layout.lease_entry(name), _LIMIT_BYTES) or b"")
        return {Digest.parse(text) for text in document["digests"]}
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, ConceptryError):
        return set()
