"""Yanking a version, taking it out of the listing, and bringing it back. Manifest and blobs stay until gc."""

from __future__ import annotations

import contextlib
import time
from itertools import islice

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, UsageError
from conceptry.names import ConceptName, Reference, Version
from conceptry.registry import refs
from conceptry.registry.index import forget_version, record_version, record_yank
from conceptry.registry.manifests import read_manifest
from conceptry.registry.refs import Resolved
from conceptry.registry.resolution import resolve_reference
from conceptry.registry.store import Store
from conceptry.registry.trash import recall_item
from conceptry.registry.yanks import write_yank


def remove_version(store: Store, reference: Reference) -> Resolved:
    """Returns the version whose reference is in the trash now.

    Raises:
        NotFoundError: if there is no such version.
        UsageError: if the reference names none (``ns/name``, ``ns/name:tag``) although there are several.
        StoreError: if the store cannot be written.
    """
    version = resolve_reference(store.layout, reference)
    name, number = version.reference.concept, version.reference.version
    others = len(refs.list_versions(store.layout, name)) - 1
    if number is None or (others and not isinstance(reference.selector, Version | Digest)):
        raise UsageError(
            f"{name} has {others + 1} versions, and {reference} does not say which",
            hint=f"concepts remove {version.reference}",
        )
    with store.change_refs() as change:
        refs.remove_version(store.layout, name, number, time_ns=time.time_ns())
        forget_version(store, change, version.reference)
    return version


def yank_version(store: Store, reference: Reference, reason: str | None) -> Resolved:
    """Returns the version that is marked now, or not any more where the reason is None; see ``Registry.yank``."""
    version = resolve_reference(store.layout, reference)
    name, number = version.reference.concept, version.reference.version
    if number is None or not isinstance(reference.selector, Version | Digest):
        raise UsageError(f"{reference} names no version", hint=f"did you mean {version.reference}?")
    with store.change_refs() as change:
        write_yank(store.layout, name, number, reason)
        record_yank(store, change, name)
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
        _bring_back(store, reference.concept, reference.version)
        ref = refs.restore_version(store.layout, reference.concept, reference.version)
        version = Resolved(reference, ref.digest)
        try:
            manifest = read_manifest(store.layout, version)
        except IntegrityError:
            refs.remove_version(store.layout, reference.concept, reference.version, time_ns=time.time_ns())
            raise
        record_version(store, change, version, manifest, ref.origin)
    return version


def _bring_back(store: Store, name: ConceptName, version: Version) -> None:
    """What a collection took of a version is back before it is listed."""
    for _, ref in islice(refs.iter_removed_refs(store.layout, name, version), 1):
        with contextlib.suppress(IntegrityError):
            for file in read_manifest(
                store.layout, Resolved(Reference(name, version), ref.digest)
            ).iter_files():
                recall_item(store.layout, "blob", file.sha256)
