"""Taking a version out of the listing, and bringing it back. Manifest and blobs stay until garbage collection."""

from __future__ import annotations

import time

from conceptry.errors import IntegrityError, UsageError
from conceptry.names import Reference
from conceptry.registry import refs
from conceptry.registry.index import forget_version, record_version
from conceptry.registry.manifests import read_manifest
from conceptry.registry.refs import Resolved
from conceptry.registry.store import Store


def remove_version(store: Store, version: Resolved) -> Resolved:
    """Returns the version whose reference is in the trash now. Raises NotFoundError, StoreError."""
    name, number = version.reference.concept, version.reference.version
    if number is None:
        raise UsageError(f"{version.reference} names no version", hint="write namespace/name@1.2.3")
    with store.change_refs() as change:
        refs.remove_version(store.layout, name, number, time_ns=time.time_ns())
        forget_version(store, change, version.reference)
    return version


def restore_version(store: Store, reference: Reference) -> Resolved:
    """Returns the version that was removed last under this reference, listed again.

    Raises:
        UsageError: if the reference names no version.
        NotFoundError: if none was removed.
        ConflictError: if the version was published anew with other contents.
    """
    if reference.version is None:
        raise UsageError(f"{reference} names no version", hint="write namespace/name@1.2.3")
    with store.change_refs() as change:
        ref = refs.restore_version(store.layout, reference.concept, reference.version)
        version = Resolved(reference, ref.digest)
        try:
            manifest = read_manifest(store.layout, version)
        except IntegrityError:
            refs.remove_version(store.layout, reference.concept, reference.version, time_ns=time.time_ns())
            raise
        record_version(store, change, version, manifest, ref.origin)
    return version
