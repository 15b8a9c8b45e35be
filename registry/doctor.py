"""Finding what is wrong with a store, and putting right what can be: by name, and never by throwing bytes away.

Damaged files go to the trash. Their bytes come back from there, from a remote that has the version, or not at all;
then the finding stays, and says which command helps.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from conceptry.errors import ConceptryError, StoreError
from conceptry.names import Reference
from conceptry.registry import refs
from conceptry.registry.blobs import is_intact, quarantine_blob
from conceptry.registry.collection import collect_garbage
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.file_reading import look_at
from conceptry.registry.files import change_mode
from conceptry.registry.index import is_index_equal, rebuild_index
from conceptry.registry.manifests import quarantine_manifest
from conceptry.registry.operations import current_operations
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved
from conceptry.registry.roots import list_roots
from conceptry.registry.store import Store
from conceptry.registry.tags import drop_damaged_moves
from conceptry.registry.trash import recall_if_possible
from conceptry.registry.verify import Finding, verify_store

if TYPE_CHECKING:
    from conceptry.digests import Digest

FetchVersion = Callable[[Resolved], bool]
"""Puts a version's manifest and blobs back from a remote; False where none has it."""

State = Literal["found", "repaired", "lost"]
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One thing that was wrong, and what became of it."""

    fault: str
    path: str
    message: str
    state: State
    """``found``: not touched, as asked. ``repaired``: right again. ``lost``: nothing here can put it right."""

    done: str
    """What was done, or what to do."""

    reference: Reference | None = None


def examine_store(
    store: Store,
    *,
    fetch: FetchVersion | None = None,
    dry_run: bool = False,
    on_event: OnEvent = ignore_event,
) -> tuple[Diagnosis, ...]:
    """Returns everything that was wrong with a store, and what was done about each; nothing for a healthy store.

    Raises:
        StoreError: if the store cannot be read at all.
    """
    if not store.exists:
        return ()
    if dry_run:
        findings = verify_store(store, repair_index=False, on_event=on_event)
        return (*_find_around(store), *(_keep(finding) for finding in findings))
    healed: list[Diagnosis] = list(_repair_around(store))
    for finding in verify_store(store, repair_index=False, on_event=on_event):
        healed.append(_treat(store, finding, fetch))
    rebuild_index(store)
    return tuple(healed)


# --- what verify finds ---------------------------------------------------------------------------------------------


def _keep(finding: Finding) -> Diagnosis:
    return _describe(finding, "found", _ADVICE[finding.fault])


_ADVICE: Final[dict[str, str]] = {
    "reference": "would look for the version on the remotes, else put the reference into the trash",
    "manifest": "would look for it in the trash and on the remotes",
    "missing": "would look for it in the trash and on the remotes",
    "size": "would look for its bytes in the trash and on the remotes",
    "bytes": "would look for its bytes in the trash and on the remotes",
    "tag": "would let the tag point to where it was before",
    "stray": "would put it into the trash",
}


def _treat(store: Store, finding: Finding, fetch: FetchVersion | None) -> Diagnosis:
    try:
        return _TREATMENTS[finding.fault](store, finding, fetch)
    except ConceptryError as error:
        return _describe(finding, "lost", f"could not be repaired: {error.message}")


def _treat_bytes(store: Store, finding: Finding, fetch: FetchVersion | None) -> Diagnosis:
    digest, version = finding.digest, _resolve(store, finding)
    if digest is None:
        return _describe(finding, "lost", "nothing says what its bytes should be")
    if look_at(store.layout.blob(digest)) is not None:
        quarantine_blob(store.layout, digest)
    return _bring_back(store, finding, fetch, version=version, kind="blob", digest=digest)


def _treat_manifest(store: Store, finding: Finding, fetch: FetchVersion | None) -> Diagnosis:
    version = _resolve(store, finding)
    if version is None:
        return _describe(finding, "lost", "nothing says which manifest it should be")
    if look_at(store.layout.manifest(version.digest)) is not None:
        quarantine_manifest(store.layout, version.digest)
    return _bring_back(store, finding, fetch, version=version, kind="manifest", digest=version.digest)


def _bring_back(
    store: Store,
    finding: Finding,
    fetch: FetchVersion | None,
    *,
    version: Resolved | None,
    kind: Literal["blob", "manifest"],
    digest: Digest,
) -> Diagnosis:
    if recall_if_possible(store.layout, kind, digest) and _is_right(store, kind, digest):
        return _describe(finding, "repaired", "brought back from the trash")
    if version is not None and fetch is not None and fetch(version):
        return _describe(finding, "repaired", "brought back from a remote")
    who = finding.reference or "the version"
    advice = f"no remote that is known here has it: publish {who} again, or concepts remove {who}"
    return _describe(finding, "lost", advice)


def _is_right(store: Store, kind: Literal["blob", "manifest"], digest: Digest) -> bool:
    status = look_at(store.layout.item(kind, digest))
    if status is None:
        return False
    return kind == "manifest" or is_intact(store.layout, digest, status.st_size)


def _treat_reference(store: Store, finding: Finding, fetch: FetchVersion | None) -> Diagnosis:
    """A reference that cannot be read names nothing; in the trash it is still there for somebody who can read it."""
    import time

    reference = finding.reference
    if reference is None or reference.version is None:
        return _describe(finding, "lost", "nothing says which version it is")
    with store.change_refs():
        refs.remove_version(store.layout, reference.concept, reference.version, time_ns=time.time_ns())
    return _describe(finding, "repaired", f"put into the trash; pull or publish {reference} again")


def _treat_tag(store: Store, finding: Finding, fetch: FetchVersion | None) -> Diagnosis:
    name, tag = finding.tag if finding.tag is not None else (None, None)
    if name is None or tag is None:
        return _describe(finding, "lost", "nothing says which tag it is")
    with store.change_refs():
        move = drop_damaged_moves(store.layout, name, tag)
    where = f"points to {move.version} again" if move else "is gone, since it never pointed anywhere else"
    return _describe(finding, "repaired", f"{name}:{tag} {where}")


def _treat_stray(store: Store, finding: Finding, fetch: FetchVersion | None) -> Diagnosis:
    if finding.digest is None:
        return _describe(finding, "lost", "not put there by conceptry: remove it by hand if nobody needs it")
    quarantine_blob(store.layout, finding.digest)
    return _describe(finding, "repaired", "put into the trash")


_TREATMENTS: Final[dict[str, Callable[[Store, Finding, FetchVersion | None], Diagnosis]]] = {
    "reference": _treat_reference,
    "manifest": _treat_manifest,
    "missing": _treat_bytes,
    "size": _treat_bytes,
    "bytes": _treat_bytes,
    "tag": _treat_tag,
    "stray": _treat_stray,
}


def _resolve(store: Store, finding: Finding) -> Resolved | None:
    reference = finding.reference
    if reference is None or reference.version is None:
        return None
    ref = refs.read_version(store.layout, reference.concept, reference.version)
    return None if ref is None else Resolved(reference, ref.digest)


def _describe(finding: Finding, state: State, done: str) -> Diagnosis:
    return Diagnosis(
        fault=finding.fault,
        path=finding.path,
        message=finding.message,
        state=state,
        done=done,
        reference=finding.reference,
    )


# --- what is around the versions -----------------------------------------------------------------------------------


def _find_around(store: Store) -> Iterator[Diagnosis]:
    for path, mode in _iter_loose(store):
        yield _describe_loose(store.layout, path, mode, "found", "would be made private")
    if not is_index_equal(store):
        yield _describe_index(store.layout, "found", "would be built anew")
    leftovers = (
        collect_garbage(store, grace_seconds=float("inf"), dry_run=True).leftovers
        if _is_readable(store)
        else 0
    )
    if leftovers:
        yield _describe_leftovers(store.layout, leftovers, "found", "would be deleted")
    yield from _find_roots(store)


def _repair_around(store: Store) -> Iterator[Diagnosis]:
    for path, mode in list(_iter_loose(store)):
        try:
            change_mode(path, stat.S_IMODE(mode) & ~_OTHERS_MAY_WRITE)
        except StoreError as error:
            yield _describe_loose(store.layout, path, mode, "lost", error.message)
        else:
            yield _describe_loose(store.layout, path, mode, "repaired", "made private")
    if not is_index_equal(store):
        rebuild_index(store)
        yield _describe_index(store.layout, "repaired", "built anew from the files")
    with contextlib.suppress(ConceptryError):
        leftovers = collect_garbage(store, grace_seconds=float("inf")).leftovers
        if leftovers:
            yield _describe_leftovers(store.layout, leftovers, "repaired", "deleted")
    yield from _find_roots(store)


def _is_readable(store: Store) -> bool:
    try:
        collect_garbage(store, grace_seconds=float("inf"), dry_run=True)
    except ConceptryError:
        return False
    return True


def _iter_loose(store: Store) -> Iterator[tuple[Path, int]]:
    """Folders that others may write, in a store that is not shared; what they hold could be anybody's."""
    if store.is_shared or not current_operations().capabilities.has_owners:
        return
    layout = store.layout
    for folder in layout.folders:
        status = look_at(folder)
        if status is not None and stat.S_ISDIR(status.st_mode) and status.st_mode & _OTHERS_MAY_WRITE:
            yield folder, status.st_mode


def _find_roots(store: Store) -> Iterator[Diagnosis]:
    try:
        list_roots(store.layout)
    except ConceptryError as error:
        yield Diagnosis(
            fault="root",
            path=error.where or "roots",
            message=error.message,
            state="lost",
            done=error.hint or "",
        )


def _describe_loose(layout: Layout, path: Path, mode: int, state: State, done: str) -> Diagnosis:
    message = f"other users may write here (mode {stat.S_IMODE(mode):o})"
    return Diagnosis(fault="permissions", path=layout.describe(path), message=message, state=state, done=done)


def _describe_index(layout: Layout, state: State, done: str) -> Diagnosis:
    message = "the index does not say what the files say"
    return Diagnosis(
        fault="index", path=layout.describe(layout.index), message=message, state=state, done=done
    )


def _describe_leftovers(layout: Layout, count: int, state: State, done: str) -> Diagnosis:
    message = f"{count} leftovers of interrupted commands"
    path = layout.describe(layout.temporaries)
    return Diagnosis(fault="leftovers", path=path, message=message, state=state, done=done)
