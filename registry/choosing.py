"""From a reference to one version, and from words to concepts, for remotes that can list what they have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, NotFoundError, suggest_nearest
from conceptry.names import LATEST, ConceptName, Reference, Tag, Version, pick_latest
from conceptry.registry.protocol import Remote, RemoteConcept, RemoteEntry, RemoteVersion, describe_concept
from conceptry.registry.resolution import describe_all_yanked
from conceptry.registry.tags import TagMove


class NamedVersions(Protocol):
    """What a remote knows of one concept; digests and tags are read when they are asked for."""

    @property
    def entries(self) -> Sequence[RemoteEntry]:
        """The versions, smallest first."""

    def read_digest(self, version: Version) -> Digest | None:
        """Returns the digest of a version's manifest, None if there is none."""

    def read_tag(self, tag: Tag) -> TagMove | None:
        """Returns where a tag points."""

    def list_tags(self) -> Iterable[Tag]:
        """Returns the tags."""


def choose_version(reference: Reference, named: NamedVersions, *, uri: str) -> RemoteVersion:
    """Returns the version that a reference means; ``latest`` passes over yanked versions.

    Raises:
        NotFoundError: with the versions or tags that there are.
    """
    name, selector = reference.concept, reference.selector
    if not named.entries:
        raise _no_concept(name, uri)
    if isinstance(selector, Digest):
        return _choose_digest(name, selector, named, uri=uri)
    if isinstance(selector, Version):
        return _at(name, selector, named, uri=uri)
    if selector == LATEST:
        latest = pick_latest(entry.version for entry in named.entries if entry.yanked is None)
        if latest is None:
            raise describe_all_yanked(name, named.entries[-1].version)
        return _at(name, latest, named, uri=uri)
    move = named.read_tag(selector)
    if move is None:
        tags = list(named.list_tags())
        hint = suggest_nearest(selector, tags) or f"its tags: {', '.join([*tags, LATEST])}"
        raise NotFoundError(f"{name} has no tag {selector!r} on {uri}", hint=hint)
    return replace(_at(name, move.version, named, uri=uri), move=move.number)


def search_concepts(
    names: Iterable[ConceptName],
    describe: Callable[[ConceptName], RemoteConcept | None],
    words: str,
    *,
    limit: int,
) -> Iterator[RemoteConcept]:
    """Yields the first ``limit`` concepts that have all words, in the order of ``names``; none is described before."""
    wanted = words.casefold().split()
    described = (describe(name) for name in names)
    return itertools.islice((one for one in described if one is not None and has_words(one, wanted)), limit)


def describe_latest(remote: Remote, name: ConceptName) -> RemoteConcept | None:
    """Returns a concept by its latest version; None where that cannot be read: one must not hide the others."""
    from conceptry.registry.manifests import check_manifest

    try:
        found = remote.resolve(Reference(name, LATEST))
        return describe_concept(check_manifest(remote.get_manifest(found), found.resolved))
    except (IntegrityError, NotFoundError):
        return None


def has_words(concept: RemoteConcept, wanted: list[str]) -> bool:
    """Returns whether a concept has all words, given in folded case, somewhere in what it is chosen by."""
    text = " ".join([str(concept.name), concept.title, *concept.tags, *concept.kinds, *concept.families])
    return all(word in text.casefold() for word in wanted)


def _choose_digest(name: ConceptName, digest: Digest, named: NamedVersions, *, uri: str) -> RemoteVersion:
    for entry in named.entries:
        if named.read_digest(entry.version) == digest:
            return RemoteVersion(reference=Reference(name, entry.version), digest=digest, yanked=entry.yanked)
    raise _no_version(name, str(digest), named, uri)


def _at(name: ConceptName, version: Version, named: NamedVersions, *, uri: str) -> RemoteVersion:
    digest = named.read_digest(version)
    if digest is None:
        raise _no_version(name, str(version), named, uri)
    yanked = next((entry.yanked for entry in named.entries if entry.version == version), None)
    return RemoteVersion(reference=Reference(name, version), digest=digest, yanked=yanked)


def _no_concept(name: ConceptName, uri: str) -> NotFoundError:
    return NotFoundError(f"no concept is called {str(name)!r} on {uri}", hint="check its namespace and name")


def _no_version(name: ConceptName, selector: str, named: NamedVersions, uri: str) -> NotFoundError:
    known = ", ".join(str(entry.version) for entry in named.entries[-5:])
    return NotFoundError(f"{name} has no version {selector} on {uri}", hint=f"its versions: {known}")
