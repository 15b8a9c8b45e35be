"""From a lock to a store that has exactly what it says: missing bytes only, each asked for once, all checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock as Mutex
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, NotFoundError
from conceptry.manifest import Manifest
from conceptry.names import Reference, RemoteName
from conceptry.registry.checks import BlobChecks
from conceptry.registry.commits import ReadyVersion, commit_versions
from conceptry.registry.events import Meter, OnEvent, Progress, ignore_event
from conceptry.registry.file_reading import is_file, read_small_file
from conceptry.registry.foreign import read_foreign
from conceptry.registry.leases import hold_lease
from conceptry.registry.lockfile import Lock, LockedConcept
from conceptry.registry.manifests import check_manifest
from conceptry.registry.operations import make_scratch
from conceptry.registry.parallel import Stop, run_parallel, tell_one_by_one
from conceptry.registry.partials import Holder, Source
from conceptry.registry.places import read_place
from conceptry.registry.project import Project
from conceptry.registry.protocol import RemoteVersion
from conceptry.registry.publish import publish_folder, refuse_other_contents
from conceptry.registry.refs import Resolved, read_version
from conceptry.registry.store import Store
from conceptry.registry.transfer import Member, list_distinct, receive_file

_MANIFEST_BYTES: Final = 1 << 20

OpenSource = Callable[[RemoteName | None], Holder]


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a sync did; ``installed`` are the versions that were not here, or not whole."""

    concepts: int
    installed: tuple[Reference, ...] = ()
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One version on its way: what is known of it, and who has it."""

    locked: LockedConcept
    version: RemoteVersion
    data: bytes
    manifest: Manifest


def sync_lock(
    store: Store,
    lock: Lock,
    project: Project,
    open_source: OpenSource,
    *,
    has_foreign: bool = False,
    on_event: OnEvent = ignore_event,
) -> Synced:
    """Returns what was done until the store had all that a lock says; nothing is resolved.

    Args:
        store: what is to have it.
        lock: what is wanted.
        project: its folder has the foreign files that are named by path.
        open_source: opens the remote of that name when something of it is missing, and never before.
        has_foreign: whether what ``open_source`` opens has the packages of foreign files too, as a bundle does.
        on_event: told of the progress.

    Raises:
        ConflictError: if the store has a version with other contents.
        IntegrityError: if a remote's bytes are not those of the lock; complete versions stay, nothing else is listed.
        NotFoundError, RemoteError: if something cannot be had.
    """
    for one in lock.concepts:
        refuse_other_contents(store, Resolved(one.reference, one.manifest))
    with BlobChecks(store.layout) as checks:
        pending = [one for one in lock.concepts if not _is_whole(store, one, checks)]
    if not pending:
        return Synced(concepts=len(lock.concepts))
    store.prepare_for_writing()
    foreign = [one for one in pending if one.source is not None and not has_foreign]
    with hold_lease(store, _list_needed(pending)):
        for one in foreign:
            _sync_foreign(store, one, project)
        received = _sync_published(
            store, [one for one in pending if one not in foreign], open_source, on_event
        )
    return Synced(
        concepts=len(lock.concepts),
        installed=tuple(one.reference for one in pending),
        received_bytes=received,
    )


def _is_whole(store: Store, one: LockedConcept, checks: BlobChecks) -> bool:
    ref = read_version(store.layout, one.name, one.version)
    if ref is None or not is_file(store.layout.manifest(one.manifest)):
        return False
    return all(checks.is_intact(file.sha256, file.size_bytes) for file in one.files)


def _list_needed(concepts: Iterable[LockedConcept]) -> set[Digest]:
    return {digest for one in concepts for digest in (one.manifest, *(file.sha256 for file in one.files))}


# --- published concepts --------------------------------------------------------------------------------------------


def _sync_published(
    store: Store, pending: Sequence[LockedConcept], open_source: OpenSource, on_event: OnEvent
) -> int:
    sources: dict[RemoteName | None, Holder] = {}
    mutex = Mutex()

    def find_source(one: LockedConcept) -> Holder:
        with mutex:
            if one.remote not in sources:
                sources[one.remote] = open_source(one.remote)
            return sources[one.remote]

    stop = Stop()
    wanted = run_parallel(lambda one: _read_wanted(store, one, find_source), pending, stop=stop)
    missing = _list_missing(store, wanted)
    total_bytes = sum(file.size for _, (_, file) in missing)
    meter = Meter("blob", total_bytes, tell_one_by_one(on_event, stop))

    def receive(row: tuple[_Wanted, Member]) -> None:
        one, (place, file) = row
        source = Source(find_source(one.locked), one.version, file)
        receive_file(store, source, place=place, meter=meter)

    run_parallel(receive, missing, stop=stop)
    ready = [ReadyVersion(one.version.resolved, one.manifest, one.data) for one in wanted]
    for done, one in enumerate(commit_versions(store, ready, origin="pulled"), start=1):
        on_event(Progress(step="ref", item=str(one.reference), done_bytes=done, total_bytes=len(ready)))
    return total_bytes


def _read_wanted(store: Store, one: LockedConcept, find_source: Callable[[LockedConcept], Holder]) -> _Wanted:
    """Returns a version with its manifest, which is asked for only where the store does not have it."""
    version = RemoteVersion(
        reference=one.reference, digest=one.manifest, commit=one.commit, identity=one.identity
    )
    data = read_small_file(store.layout.manifest(one.manifest), _MANIFEST_BYTES)
    if data is None or Digest.of_bytes(data) != one.manifest:
        data = find_source(one).get_manifest(version)
    return _Wanted(one, version, data, check_manifest(data, version.resolved))


def _list_missing(store: Store, wanted: Iterable[_Wanted]) -> list[tuple[_Wanted, Member]]:
    """Returns each blob that is not here, once, with a version that has it."""
    found: dict[Digest, tuple[_Wanted, Member]] = {}
    with BlobChecks(store.layout) as checks:
        for one in wanted:
            for place, file in list_distinct(one.manifest):
                if file.sha256 not in found and not checks.is_intact(file.sha256, file.size):
                    found[file.sha256] = one, (place, file)
    return list(found.values())


# --- foreign files -------------------------------------------------------------------------------------------------


def _sync_foreign(store: Store, one: LockedConcept, project: Project) -> None:
    requirement = project.find(one.name)
    if requirement is None or requirement.foreign is None or one.source is None:
        raise NotFoundError(f"nothing says where the file of {one.reference} is", hint="concepts lock")
    with make_scratch() as folder:
        package = read_foreign(project, requirement, read_place(folder))
        if package.source.sha256 != one.source.sha256:
            raise IntegrityError(
                f"{one.source.text} has digest {package.source.sha256}, but {one.source.sha256} was locked",
                hint="take the file back, or lock the one that is there: concepts lock",
            )
        if package.digest != one.manifest:
            raise IntegrityError(
                f"this version of conceptry reads {one.source.text} otherwise than the one that locked it",
                hint=f"concepts lock --upgrade-package {one.name}",
            )
        publish_folder(store, package.folder, origin="pulled")
