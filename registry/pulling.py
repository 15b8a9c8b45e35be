"""Versions from remotes, many at once: a name is resolved once, a missing blob asked for once, all are listed last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conceptry.digests import Digest
from conceptry.manifest import Manifest
from conceptry.names import Reference, Tag, Version
from conceptry.registry.checks import BlobChecks
from conceptry.registry.commits import ReadyVersion, commit_versions
from conceptry.registry.events import Meter, OnEvent, ignore_event
from conceptry.registry.leases import hold_lease
from conceptry.registry.manifests import check_manifest
from conceptry.registry.members import ListRemotes, find_remote_members, refuse_members
from conceptry.registry.memory import check_answer, forget_remote, remember_answer
from conceptry.registry.parallel import WORKERS, Stop, run_parallel, tell_one_by_one
from conceptry.registry.partials import Source
from conceptry.registry.protocol import Remote, RemoteVersion
from conceptry.registry.publish import Published, list_needed, refuse_other_contents
from conceptry.registry.store import Store
from conceptry.registry.tags import move_tag, read_tag
from conceptry.registry.transfer import Member, find_explicit_tag, list_distinct, receive_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A version as it came from a remote; ``created`` is False where it was here already."""

    reference: Reference
    digest: Digest
    remote: str
    created: bool
    received_bytes: int
    commit: str | None = None
    yanked: str | None = None
    """Why its publisher wants nobody to choose it anew, None if nothing speaks against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """What a person may allow, and how many requests run at once."""

    allow_downgrade: bool = False
    """``latest`` may be lower than it was."""

    accept_new_identity: bool = False
    """What the remote said of these concepts before is forgotten, and its answer believed as if it were the first."""

    workers: int = WORKERS


@dataclass(frozen=True, slots=True)
class _Wanted:
    asked: Reference
    remote: Remote
    version: RemoteVersion
    data: bytes
    manifest: Manifest


_Missing = dict[Digest, tuple[_Wanted, Member]]
_DEFAULT = PullOptions()


def pull_versions(
    store: Store,
    wanted: Sequence[tuple[Reference, Remote]],
    *,
    options: PullOptions = _DEFAULT,
    on_event: OnEvent = ignore_event,
    others: ListRemotes = tuple,
) -> tuple[Pulled, ...]:
    """Returns the versions that came from their remotes; see ``Registry.pull``. All are listed, or none is.

    Those that compositions name come along, after the others; ``others`` are further remotes that may have them.
    """
    stop = Stop()
    resolved = _resolve_all(store, wanted, options=options, stop=stop)
    resolved += _resolve_members(store, resolved, others, options=options, stop=stop)
    store.prepare_for_writing()
    with hold_lease(store, _list_all_needed(resolved)):
        missing = _list_missing(store, resolved)
        _receive(store, missing, tell_one_by_one(on_event, stop), stop=stop, workers=options.workers)
        ready = [ReadyVersion(one.version.resolved, one.manifest, one.data) for one in resolved]
        published = commit_versions(store, ready, origin="pulled")
        run_parallel(lambda one: _note(store, one, options), resolved, stop=stop, workers=options.workers)
    received = {digest: one for digest, (one, _) in missing.items()}
    return tuple(_describe(one, done, received) for one, done in zip(resolved, published, strict=True))


def _resolve_all(
    store: Store, wanted: Sequence[tuple[Reference, Remote]], *, options: PullOptions, stop: Stop
) -> list[_Wanted]:
    return run_parallel(
        lambda row: _resolve(store, *row, options=options), wanted, stop=stop, workers=options.workers
    )


def _resolve_members(
    store: Store, resolved: Sequence[_Wanted], others: ListRemotes, *, options: PullOptions, stop: Stop
) -> list[_Wanted]:
    """Returns what compositions name and this store lacks. Raises NotFoundError, IncompatibleError."""
    composed = [one for one in resolved if one.manifest.members]
    if not composed:
        return []
    places = find_remote_members(store, [(one.manifest, one.remote) for one in composed], others)
    asked = {one.version.resolved for one in resolved}
    found = _resolve_all(store, places, options=options, stop=stop)
    refuse_members(
        [one.manifest for one in composed], {one.manifest.name: one.manifest for one in (*resolved, *found)}
    )
    return [one for one in found if one.version.resolved not in asked]


def _resolve(store: Store, asked: Reference, remote: Remote, *, options: PullOptions) -> _Wanted:
    version = remote.resolve(asked)
    if not options.accept_new_identity:
        tag = _tag_of(asked)
        check_answer(store.layout, remote.uri, version, tag=tag, allow_downgrade=options.allow_downgrade)
    refuse_other_contents(store, version.resolved)
    data = remote.get_manifest(version)
    return _Wanted(asked, remote, version, data, check_manifest(data, version.resolved))


def _list_all_needed(resolved: Iterable[_Wanted]) -> set[Digest]:
    return {digest for one in resolved for digest in list_needed(one.version.resolved, one.manifest)}


def _list_missing(store: Store, resolved: Iterable[_Wanted]) -> _Missing:
    """Returns each blob that is not here, once, with the first version that has it."""
    found: _Missing = {}
    with BlobChecks(store.layout) as checks:
        for one in resolved:
            for place, file in list_distinct(one.manifest):
                if file.sha256 not in found and not checks.is_intact(file.sha256, file.size):
                    found[file.sha256] = one, (place, file)
    return found


def _receive(store: Store, missing: _Missing, on_event: OnEvent, *, stop: Stop, workers: int) -> None:
    meter = Meter("blob", sum(file.size for _, (_, file) in missing.values()), on_event)

    def receive(row: tuple[_Wanted, Member]) -> None:
        one, (place, file) = row
        receive_file(store, Source(one.remote, one.version, file), place=place, meter=meter)

    run_parallel(receive, list(missing.values()), stop=stop, workers=workers)


def _note(store: Store, one: _Wanted, options: PullOptions) -> None:
    """Lets the tag that was asked for follow, and remembers what the remote said."""
    name, tag, uri = one.asked.concept, find_explicit_tag(one.asked), one.remote.uri
    if tag is not None:
        here = read_tag(store.layout, name, tag)
        move_tag(store.layout, name, tag, one.version.resolved, expected=here)
    if options.accept_new_identity:
        forget_remote(store, uri, name)
    remember_answer(store, uri, one.version, tag=_tag_of(one.asked))


def _describe(one: _Wanted, published: Published, received: dict[Digest, _Wanted]) -> Pulled:
    files = (file for _, file in list_distinct(one.manifest))
    return Pulled(
        reference=published.reference,
        digest=published.digest,
        remote=one.remote.uri,
        created=published.created,
        received_bytes=sum(file.size for file in files if received.get(file.sha256) is one),
        commit=one.version.commit,
        yanked=one.version.yanked,
    )


def _tag_of(reference: Reference) -> Tag | None:
    """The tag that was asked for, ``latest`` among them."""
    selector = reference.selector
    return None if isinstance(selector, Version | Digest) else selector
