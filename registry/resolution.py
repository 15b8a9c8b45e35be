"""From a reference to one version and its digest, once for each command."""

from __future__ import annotations

from conceptry.digests import Digest
from conceptry.errors import NotFoundError, suggest_nearest
from conceptry.names import LATEST, ConceptName, Reference, Tag, Version, pick_latest
from conceptry.registry.paths import Layout
from conceptry.registry.refs import Resolved, list_versions, missing_concept, missing_version, read_version
from conceptry.registry.tags import list_tags, read_tag
from conceptry.registry.yanks import read_yank


def resolve_reference(layout: Layout, reference: Reference) -> Resolved:
    """Returns the version that a reference means here, and its digest, read once.

    Raises:
        NotFoundError: with the nearest known name or version.
        IntegrityError: if the reference's file is malformed.
    """
    name, selector = reference.concept, reference.selector
    if isinstance(selector, Version):
        return _resolve_version(layout, name, selector)
    if isinstance(selector, Digest):
        return _resolve_digest(layout, name, selector)
    if selector == LATEST:
        return _resolve_latest(layout, name)
    move = read_tag(layout, name, selector)
    if move is None:
        raise _missing_tag(layout, name, selector)
    return Resolved(Reference(name, move.version), _resolve_version(layout, name, move.version).digest)


def _resolve_latest(layout: Layout, name: ConceptName) -> Resolved:
    versions = list_versions(layout, name)
    latest = pick_latest(version for version in versions if read_yank(layout, name, version) is None)
    if latest is not None:
        return _resolve_version(layout, name, latest)
    if not versions:
        raise missing_concept(layout, name)
    raise describe_all_yanked(name, versions[-1])


def describe_all_yanked(name: ConceptName, version: Version) -> NotFoundError:
    """Returns the error for a concept of which every version was yanked."""
    return NotFoundError(
        f"every version of {name} is yanked", hint=f"name one to have it all the same: {name}@{version}"
    )


def _resolve_version(layout: Layout, name: ConceptName, version: Version) -> Resolved:
    ref = read_version(layout, name, version)
    if ref is None:
        raise missing_version(layout, name, str(version))
    return Resolved(Reference(name, version), ref.digest)


def _resolve_digest(layout: Layout, name: ConceptName, digest: Digest) -> Resolved:
    for version in list_versions(layout, name):
        ref = read_version(layout, name, version)
        if ref is not None and ref.digest == digest:
            return Resolved(Reference(name, version), digest)
    raise missing_version(layout, name, str(digest))


def _missing_tag(layout: Layout, name: ConceptName, tag: Tag) -> NotFoundError:
    tags = list_tags(layout, name)
    if not tags and not list_versions(layout, name):
        return missing_concept(layout, name)
    hint = suggest_nearest(tag, tags) or f"its tags: {', '.join([*tags, LATEST])}"
    return NotFoundError(f"{name} has no tag {tag!r}", hint=hint)
