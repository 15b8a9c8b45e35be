"""Versions to remotes, in the order that leaves nothing visible half there: blobs, manifest, reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, NotFoundError, RemoteError, StoreError, UsageError
from conceptry.manifest import File, Manifest
from conceptry.names import LATEST, Reference, Tag, Version
from conceptry.registry.checks import BlobChecks
from conceptry.registry.events import Meter, OnEvent, Progress, ignore_event
from conceptry.registry.manifests import check_manifest, iter_places, read_manifest_bytes
from conceptry.registry.members import list_members_to_send
from conceptry.registry.partials import Source, receive_blob
from conceptry.registry.protocol import Remote
from conceptry.registry.reading import explain_damage
from conceptry.registry.refs import Resolved, describe_conflict
from conceptry.registry.resolution import resolve_reference
from conceptry.registry.store import Store
from conceptry.registry.trash import MOST_RECALLS, recall_if_possible

T = TypeVar("T")
Member = tuple[str, File]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A version as it lies on a remote; ``created`` is False where it was there already."""

    reference: Reference
    digest: Digest
    remote: str
    created: bool
    sent_bytes: int
    members: tuple[Pushed, ...] = ()
    """What a composition names and the remote lacked, which went first."""


def push_version(
    store: Store,
    reference: Reference,
    remote: Remote,
    *,
    alone: bool = False,
    on_event: OnEvent = ignore_event,
) -> Pushed:
    """Returns the version as it lies on the remote now; see ``Registry.push``."""
    version = resolve_reference(store.layout, reference)
    missing = [] if alone else list_members_to_send(store, version, remote)
    members = tuple(_push_one(store, one, remote, on_event) for one in missing)
    return replace(_push_one(store, reference, remote, on_event), members=members)


def _push_one(store: Store, reference: Reference, remote: Remote, on_event: OnEvent) -> Pushed:
    version = resolve_reference(store.layout, reference)
    data = read_manifest_bytes(store.layout, version)
    manifest = check_manifest(data, version)
    _refuse_unpublished(version, manifest)
    there = remote.read_version(version.reference.concept, manifest.version)
    if there not in (None, version.digest):
        raise describe_conflict(version, there).inside(remote.uri)
    members = list_distinct(manifest)
    _check_here(store, version, members, on_event)
    sent_bytes = _send(store, remote, version, members, on_event=on_event)
    on_event(Progress(step="manifest", item=str(version.reference), done_bytes=0, total_bytes=len(data)))
    sources = {file.sha256: store.layout.blob(file.sha256) for _, file in members}
    created = _send_again(store, sources, partial(remote.put_manifest, version, data, sources))
    on_event(Progress(step="ref", item=str(version.reference), done_bytes=len(data), total_bytes=len(data)))
    tag = find_explicit_tag(reference)
    if tag is not None:
        name = reference.concept
        remote.move_tag(name, tag, version, expected=remote.read_tag(name, tag))
    return Pushed(
        reference=version.reference,
        digest=version.digest,
        remote=remote.uri,
        created=created,
        sent_bytes=sent_bytes,
    )


def _refuse_unpublished(version: Resolved, manifest: Manifest) -> None:
    from conceptry.registry.foreign import is_unpublished

    if is_unpublished(manifest):
        raise UsageError(
            f"{version.reference} was made of somebody's file for this project only",
            hint="concepts import publishes a file under a name and version of yours, if its licence lets you",
        )


def _check_here(store: Store, version: Resolved, members: Iterable[Member], on_event: OnEvent) -> None:
    """Nothing is sent of a version that is damaged here."""
    with BlobChecks(store.layout) as checks:
        for place, file in members:
            on_event(Progress(step="check", item=file.path, done_bytes=0, total_bytes=file.size))
            explain_damage(store, version, place, file, checks)


def _send(
    store: Store, remote: Remote, version: Resolved, members: list[Member], *, on_event: OnEvent
) -> int:
    missing = [file for _, file in members if not remote.has(version, file)]
    meter = Meter("blob", sum(file.size for file in missing), on_event)
    for file in missing:
        source, count = store.layout.blob(file.sha256), meter.start(file.path)
        _send_again(store, [file.sha256], partial(remote.put, version, file, source, on_bytes=count))
    return sum(file.size for file in missing)


def _send_again(store: Store, digests: Iterable[Digest], act: Callable[[], T]) -> T:
    """Returns what ``act`` gives, which reads blobs by their paths: again if a collection takes one meanwhile."""
    for _ in range(MOST_RECALLS):
        try:
            return act()
        except (StoreError, RemoteError) as error:
            is_gone = isinstance(error.__cause__, FileNotFoundError)
            if not is_gone or not all(recall_if_possible(store.layout, "blob", one) for one in digests):
                raise
    return act()


def receive_file(store: Store, source: Source, *, place: str, meter: Meter) -> None:
    """Brings one file into the store. Raises IntegrityError with its name and place, RemoteError, StoreError."""
    version, file, uri = source.version.reference, source.file, source.remote.uri
    try:
        receive_blob(store.layout, source, on_bytes=meter.start(file.path))
    except IntegrityError as error:
        raise IntegrityError(
            f"{version}: the file {file.path!r} on {uri} is wrong: {error.message}",
            where=f"{place}.sha256",
            hint="who pushed it can push it again, which puts the right bytes back; nothing was listed here",
        ) from error
    except NotFoundError as error:
        raise IntegrityError(
            f"{version}: the file {file.path!r} is missing on {uri}",
            where=f"{place}.sha256",
            hint="who pushed it can push it again, which puts it back; nothing was listed here",
        ) from error


def list_distinct(manifest: Manifest) -> list[Member]:
    """Returns the files of a manifest with their places, each blob once."""
    distinct: dict[Digest, Member] = {}
    for place, file in iter_places(manifest):
        distinct.setdefault(file.sha256, (place, file))
    return list(distinct.values())


def find_explicit_tag(reference: Reference) -> Tag | None:
    """Returns the tag that a reference names, None if it names a version, a digest or ``latest``."""
    selector = reference.selector
    return None if isinstance(selector, Version | Digest) or selector == LATEST else selector
