"""The concepts that a composition names: they go to remotes and come from them together with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IdentityChangedError,
    IncompatibleError,
    NotFoundError,
    UsageError,
)
from conceptry.licenses import read_permissions
from conceptry.manifest import Manifest, NamedMember
from conceptry.names import ConceptName, Reference
from conceptry.registry.manifests import read_manifest
from conceptry.registry.protocol import Remote
from conceptry.registry.refs import Resolved, read_version
from conceptry.registry.store import Store

if TYPE_CHECKING:
    from conceptry.registry.universe import Package

ListRemotes = Callable[[], Iterable[Remote]]


def find_remote_members(
    store: Store, manifests: Sequence[tuple[Manifest, Remote]], others: ListRemotes
) -> list[tuple[Reference, Remote]]:
    """Returns where the concepts are that compositions name and this store lacks, each once.

    The composition's own remote is asked first, then the ``others``; the digest decides, so it makes no difference who
    has it.

    Raises:
        NotFoundError: for one that nobody has.
    """
    found: dict[NamedMember, tuple[Reference, Remote]] = {}
    for manifest, remote in manifests:
        for member in manifest.members:
            here = read_version(store.layout, member.concept, member.version)
            if member not in found and (here is None or here.digest != member.digest):
                found[member] = (
                    Reference(member.concept, member.version),
                    _find(manifest, member, remote, others),
                )
    return list(found.values())


def _find(manifest: Manifest, member: NamedMember, first: Remote, others: ListRemotes) -> Remote:
    asked = [first.uri]
    if first.read_version(member.concept, member.version) == member.digest:
        return first
    for remote in others():
        if remote.uri in asked:
            continue
        asked.append(remote.uri)
        try:
            if remote.read_version(member.concept, member.version) == member.digest:
                return remote
        except ConceptryError:
            continue  # another remote may have it
    raise NotFoundError(
        f"{manifest.name}@{manifest.version} names {member.label} with the digest {member.digest.short}, "
        f"which is not on {', '.join(asked)}",
        hint="ask who pushed it to push that, too; nothing was listed here",
    )


def refuse_members(manifests: Iterable[Manifest], known: Mapping[ConceptName, Manifest]) -> None:
    """Raises IncompatibleError for a composition that names another one, which leaves no room for a circle."""
    for manifest in manifests:
        for member in manifest.members:
            if member.concept in known and known[member.concept].members:
                raise IncompatibleError(
                    f"{manifest.name}@{manifest.version} names {member.label}, which is a composition itself",
                    hint="a composition names concepts only",
                )


def refuse_other_members(packages: Mapping[ConceptName, Package]) -> None:
    """Checks the members of all compositions that are locked together.

    Raises:
        IdentityChangedError: if a concept is another than the one that a composition names.
        IncompatibleError: if one is a composition itself.
    """
    manifests = {name: package.manifest for name, package in packages.items()}
    refuse_members(manifests.values(), manifests)
    for name, package in packages.items():
        for member in package.manifest.members:
            found = packages[member.concept].version
            if found.digest != member.digest:
                raise IdentityChangedError(
                    f"{name}@{package.manifest.version} names {member.label} with the digest {member.digest.short}, "
                    f"and {packages[member.concept].remote or 'the local store'} has {found.digest.short}",
                    hint="ask who keeps that remote which of the two is right",
                )


def list_members_to_send(store: Store, version: Resolved, remote: Remote) -> list[Reference]:
    """Returns the concepts that a composition names and the remote lacks, after all of them were looked at.

    Raises:
        NotFoundError: if one is neither here nor there.
        UsageError: if one was never published.
        ConflictError: if the remote has it with other contents.
        IncompatibleError: if its licence lets nobody pass it on.
    """
    return list(_iter_members_to_send(store, version, remote))


def _iter_members_to_send(store: Store, version: Resolved, remote: Remote) -> Iterator[Reference]:
    from conceptry.registry.foreign import is_unpublished

    for member in read_manifest(store.layout, version).members:
        said = f"{version.reference} names {member.label} with the digest {member.digest.short}"
        there = remote.read_version(member.concept, member.version)
        if there == member.digest:
            continue
        if there is not None:
            raise ConflictError(
                f"{said}, and {remote.uri} has {there.short}", hint="push both to another remote"
            )
        here = read_version(store.layout, member.concept, member.version)
        if here is None or here.digest != member.digest:
            raise NotFoundError(
                f"{said}, which is neither here nor on {remote.uri}",
                hint=f"concepts pull REMOTE::{version.reference} brings what it names",
            )
        reference = Reference(member.concept, member.version)
        manifest = read_manifest(store.layout, Resolved(reference, member.digest))
        if is_unpublished(manifest):
            raise UsageError(
                f"{said}, which was made of somebody's file on this machine",
                hint="concepts import publishes a file under a name and version of yours; then compose anew",
            )
        if read_permissions(manifest.license).redistribution == "no":
            raise IncompatibleError(
                f"{said}, and its licence lets nobody pass it on",
                hint="add --alone, and say from where it is to be had",
            )
        yield reference
