"""References: which manifest a version is, and where a tag points. Files are the truth; nothing here caches.

``versions/<version>`` holds one line, ``sha256:... published`` or ``... pulled``, and never changes. A tag is a folder
of numbered moves, each made by creating the next number: two writers cannot make the same move, so moving a tag is a
compare-and-swap without a lock, and the moves are the tag's history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, TypeVar

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, ConflictError, IntegrityError, NotFoundError, suggest_nearest
from conceptry.names import (
    LATEST,
    ConceptName,
    Reference,
    Tag,
    Version,
    parse_namespace,
    parse_tag,
    parse_version,
    pick_latest,
)
from conceptry.registry.files import (
    BLOB_MODE,
    ensure_folder,
    explain_os_errors,
    names_in,
    read_small_file,
    sync_folder,
    write_file,
)
from conceptry.registry.paths import Layout, read_version_file_name

Origin = Literal["published", "pulled"]
T = TypeVar("T")

_LIMIT_BYTES: Final = 256
_VERSION_LINE: Final = re.compile(r"(sha256:[0-9a-f]{64}) (published|pulled)\n", re.ASCII)
_MOVE_LINE: Final = re.compile(r"([0-9A-Za-z.+-]{1,64}) (sha256:[0-9a-f]{64})\n", re.ASCII)
_MOVE_NAME: Final = re.compile(r"[0-9]{8}", re.ASCII)


class Resolved(NamedTuple):
    """One version of a concept, and the digest of its manifest."""

    reference: Reference
    digest: Digest


@dataclass(frozen=True, slots=True)
class VersionRef:
    """What a version is: its manifest, and whether it was made here or came from a remote."""

    digest: Digest
    origin: Origin


@dataclass(frozen=True, slots=True)
class TagMove:
    """Where a tag points, and since which move (counted from 1)."""

    number: int
    version: Version
    digest: Digest


# --- versions ------------------------------------------------------------------------------------------------------


def read_version(layout: Layout, name: ConceptName, version: Version) -> VersionRef | None:
    """Returns what a version is, None if there is none. Raises IntegrityError if its file is malformed."""
    path = layout.version(name, version)
    data = read_small_file(path, _LIMIT_BYTES)
    if data is None:
        return None
    match = _VERSION_LINE.fullmatch(data.decode("ascii", "replace"))
    if match is None:
        raise IntegrityError(
            f"the reference {name}@{version} is damaged", where=layout.describe(path), hint=_verify_hint(name)
        )
    return VersionRef(Digest.parse(match[1]), "pulled" if match[2] == "pulled" else "published")


def write_version(layout: Layout, name: ConceptName, version: Version, ref: VersionRef) -> bool:
    """Returns True if the version is new, False if it exists and is the same.

    Raises:
        ConflictError: if it exists with another manifest; it is left as it is.
    """
    line = f"{ref.digest} {ref.origin}\n".encode("ascii")
    path = layout.version(name, version)
    if write_file(path, line, temporary=layout.temporary(), mode=BLOB_MODE):
        return True
    found = read_version(layout, name, version)
    if found is None or found.digest != ref.digest:
        raise describe_conflict(
            Resolved(Reference(name, version), ref.digest), found.digest if found else None
        )
    return False


def describe_conflict(version: Resolved, found: Digest | None) -> ConflictError:
    """Returns the error for a version that exists with other contents."""
    there = f"{found}, not {version.digest}" if found else "and was removed meanwhile"
    return ConflictError(
        f"{version.reference} exists already with other contents ({there})",
        hint="give the new contents a new version; a published version never changes",
    )


def list_versions(layout: Layout, name: ConceptName) -> tuple[Version, ...]:
    """Returns the versions of a concept, smallest first."""
    found = _parse_names(names_in(layout.versions(name)), read_version_file_name)
    return tuple(sorted(found))


def list_names(layout: Layout) -> Iterator[ConceptName]:
    """Yields the names of all concepts that have a version, in order."""
    for namespace in _parse_names(names_in(layout.refs), parse_namespace):
        for name in _parse_names(names_in(layout.namespace(namespace)), partial(ConceptName, namespace)):
            if list_versions(layout, name):
                yield name


def remove_version(layout: Layout, name: ConceptName, version: Version, *, time_ns: int) -> None:
    """Moves a version's reference to the trash; its manifest and blobs stay.

    Raises:
        NotFoundError: if there is no such version.
    """
    path, trashed = layout.version(name, version), layout.trashed_version(name, version, time_ns)
    ensure_folder(trashed.parent)
    with explain_os_errors("remove", path):
        try:
            path.rename(trashed)
        except FileNotFoundError:
            raise _missing_version(layout, name, str(version)) from None
        sync_folder(trashed.parent)
        sync_folder(path.parent)


def restore_version(layout: Layout, name: ConceptName, version: Version) -> VersionRef:
    """Returns the reference that was removed last under this version, which is back in place.

    Raises:
        NotFoundError: if none was removed.
        ConflictError: if the version was published anew with other contents.
    """
    for trashed in reversed(layout.list_trashed(name, version)):
        line = _VERSION_LINE.fullmatch(
            (read_small_file(trashed, _LIMIT_BYTES) or b"").decode("ascii", "replace")
        )
        if line is None:
            continue
        ref = VersionRef(Digest.parse(line[1]), "pulled" if line[2] == "pulled" else "published")
        write_version(layout, name, version, ref)
        with explain_os_errors("restore", trashed):
            trashed.unlink(missing_ok=True)
        return ref
    raise NotFoundError(f"no removed version {name}@{version} is in the trash", hint="concepts list --all")


# --- tags ----------------------------------------------------------------------------------------------------------


def read_tag(layout: Layout, name: ConceptName, tag: Tag) -> TagMove | None:
    """Returns where a tag points, None if there is no such tag. Raises IntegrityError if its last move is malformed."""
    numbers = _list_moves(layout, name, tag)
    return _read_move(layout, name, tag, numbers[-1]) if numbers else None


def read_tag_history(layout: Layout, name: ConceptName, tag: Tag) -> tuple[TagMove, ...]:
    """Returns all moves of a tag, oldest first. Raises IntegrityError if one is malformed."""
    return tuple(_read_move(layout, name, tag, number) for number in _list_moves(layout, name, tag))


def move_tag(
    layout: Layout, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None
) -> TagMove:
    """Returns the tag's new place, if it still was where the caller saw it last.

    Raises:
        ConflictError: if somebody else moved the tag since ``expected`` was read.
    """
    version = to.reference.version
    if version is None or tag == LATEST:
        raise ConflictError(f"the tag {tag!r} cannot be moved to {to.reference}", hint="latest is computed")
    if expected is not None and (expected.version, expected.digest) == (version, to.digest):
        return expected
    number = 1 if expected is None else expected.number + 1
    line = f"{version} {to.digest}\n".encode("ascii")
    path = layout.tag_move(name, tag, number)
    if not write_file(path, line, temporary=layout.temporary(), mode=BLOB_MODE):
        now = read_tag(layout, name, tag)
        raise ConflictError(
            f"the tag {name}:{tag} was moved by somebody else" + (f" to {now.version}" if now else ""),
            hint="look at it again, then repeat the command if it should still move",
        )
    return TagMove(number, version, to.digest)


def list_tags(layout: Layout, name: ConceptName) -> tuple[Tag, ...]:
    """Returns the tags of a concept in order, without ``latest``, which is computed."""
    return tuple(_parse_names(names_in(layout.tags(name)), parse_tag))


# --- resolving -----------------------------------------------------------------------------------------------------


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
        latest = pick_latest(list_versions(layout, name))
        if latest is None:
            raise _missing_concept(layout, name)
        return _resolve_version(layout, name, latest)
    move = read_tag(layout, name, selector)
    if move is None:
        raise _missing_tag(layout, name, selector)
    return Resolved(Reference(name, move.version), _resolve_version(layout, name, move.version).digest)


def _resolve_version(layout: Layout, name: ConceptName, version: Version) -> Resolved:
    ref = read_version(layout, name, version)
    if ref is None:
        raise _missing_version(layout, name, str(version))
    return Resolved(Reference(name, version), ref.digest)


def _resolve_digest(layout: Layout, name: ConceptName, digest: Digest) -> Resolved:
    for version in list_versions(layout, name):
        ref = read_version(layout, name, version)
        if ref is not None and ref.digest == digest:
            return Resolved(Reference(name, version), digest)
    raise _missing_version(layout, name, str(digest))


def _missing_concept(layout: Layout, name: ConceptName) -> NotFoundError:
    hint = suggest_nearest(str(name), [str(known) for known in list_names(layout)])
    return NotFoundError(
        f"no concept is called {str(name)!r}", hint=hint or "concepts list shows what is here"
    )


def _missing_version(layout: Layout, name: ConceptName, selector: str) -> NotFoundError:
    versions = list_versions(layout, name)
    if not versions:
        return _missing_concept(layout, name)
    known = ", ".join(str(version) for version in versions[-5:])
    return NotFoundError(f"{name} has no version {selector}", hint=f"its versions: {known}")


def _missing_tag(layout: Layout, name: ConceptName, tag: Tag) -> NotFoundError:
    tags = list_tags(layout, name)
    if not tags and not list_versions(layout, name):
        return _missing_concept(layout, name)
    hint = suggest_nearest(tag, tags) or f"its tags: {', '.join([*tags, LATEST])}"
    return NotFoundError(f"{name} has no tag {tag!r}", hint=hint)


def _list_moves(layout: Layout, name: ConceptName, tag: Tag) -> list[int]:
    return [int(entry) for entry in names_in(layout.tag(name, tag)) if _MOVE_NAME.fullmatch(entry)]


def _read_move(layout: Layout, name: ConceptName, tag: Tag, number: int) -> TagMove:
    path = layout.tag_move(name, tag, number)
    match = _MOVE_LINE.fullmatch((read_small_file(path, _LIMIT_BYTES) or b"").decode("ascii", "replace"))
    if match is None:
        raise IntegrityError(
            f"the tag {name}:{tag} is damaged", where=layout.describe(path), hint=_verify_hint(name)
        )
    return TagMove(number, parse_version(match[1]), Digest.parse(match[2]))


def _parse_names(names: list[str], parse: Callable[[str], T]) -> list[T]:
    """What does not parse was not put there by us, and is none of our names."""
    found: list[T] = []
    for name in names:
        try:
            found.append(parse(name))
        except ConceptryError:
            continue
    return found


def _verify_hint(name: ConceptName) -> str:
    return f"concepts verify {name}"
