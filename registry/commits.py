"""Several versions listed together: one change of references for all of them, so that a pull of many waits once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conceptry.manifest import Manifest
from conceptry.registry.index import record_versions
from conceptry.registry.manifests import add_manifest
from conceptry.registry.parallel import Stop, run_parallel
from conceptry.registry.publish import Published, list_needed
from conceptry.registry.refs import Origin, Resolved, VersionRef, write_version
from conceptry.registry.store import Store
from conceptry.registry.trash import recall_item


class ReadyVersion(NamedTuple):
    """A version whose blobs are in the store."""

    version: Resolved
    manifest: Manifest
    data: bytes


def commit_versions(store: Store, rows: Sequence[ReadyVersion], *, origin: Origin) -> list[Published]:
    """Returns the versions in their order, listed from now on.

    Raises:
        ConflictError: if somebody published one of them with other contents meanwhile.
        StoreError: if the disk refuses; what is listed by then is whole, and the same command goes on.
    """
    layout, stop = store.layout, Stop()

    def write(row: ReadyVersion) -> Published:
        reference, digest = row.version
        ref = VersionRef(digest, origin)
        created = write_version(layout, reference.concept, row.manifest.version, ref)
        return Published(reference, digest, created)

    run_parallel(lambda row: add_manifest(layout, row.data), rows, stop=stop)
    with store.change_refs() as change:
        published = run_parallel(write, rows, stop=stop)
        record_versions(store, change, [(row.version, row.manifest, origin) for row in rows])
    for row in rows:  # a collection may have taken them while nothing named them
        recall_item(layout, "manifest", row.version.digest)
        for digest in list_needed(row.version, row.manifest):
            recall_item(layout, "blob", digest)
    return published
