"""References to versions: which manifest a version is. Files are the truth; nothing here caches.

``versions/<version>`` holds one line, ``sha256:... published`` or ``sha256:... pulled``, and never changes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, TypeVar

from conceptry.digests import Digest
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IntegrityError,
    InvalidNameError,
    NotFoundError,
    suggest_nearest,
)
from conceptry.names import ConceptName, Reference, Version, parse_namespace
from conceptry.registry.file_reading import names_in, read_once_whole, read_small_file
from conceptry.registry.files import BLOB_MODE, move_file, remove_file, write_file
from conceptry.registry.paths import Layout, read_version_file_name

Origin = Literal["published", "pulled"]
T = TypeVar("T")

READING_SECONDS: Final = 0.25
"""For how long who reads a line waits for somebody who writes it."""

_LIMIT_BYTES: Final = 256
_TRIES: Final = 3
_WRITING_SECONDS: Final = 2.0
_CUT_SHORT: Final = re.compile(rb"sha256:[0-9a-f]{0,64}(?: [a-z]{0,9})?")
_LINE: Final = re.compile(r"sha256:([0-9a-f]{64}) (published|pulled)\n", re.ASCII)


class Resolved(NamedTuple):
    """One version of a concept, and the digest of its manifest."""

    reference: Reference
    digest: Digest


@dataclass(frozen=True, slots=True)
class VersionRef:
    """What a version is: its manifest, and whether it was made here or came from a remote."""

    digest: Digest
    origin: Origin


def read_version(layout: Layout, name: ConceptName, version: Version) -> VersionRef | None:
    """Returns what a version is, None if there is none. Raises IntegrityError if its file is malformed."""
    data = read_small_file(layout.version_text(name, version), _LIMIT_BYTES)
    if data is None:
        return None
    ref = _parse_line(data)
    if ref is None and _is_cut_short(data):
        path = layout.version(name, version)
        data = read_once_whole(path, _LIMIT_BYTES, is_whole=_is_whole, patience_seconds=READING_SECONDS)
        ref = _parse_line(data or b"")
    if ref is None:
        raise IntegrityError(
            f"the reference {name}@{version} is damaged",
            where=layout.describe(layout.version(name, version)),
            hint=f"concepts remove {name}@{version}, then publish or pull it again",
        )
    return ref


def find_version(layout: Layout, name: ConceptName, version: Version) -> VersionRef | None:
    """Returns what a version is for somebody who writes it; one that a crash cut short while it was made is none.

    Raises:
        IntegrityError: if its file is malformed in any other way.
    """
    data = read_small_file(layout.version(name, version), _LIMIT_BYTES)
    if data is not None and _is_cut_short(data):
        return None
    return read_version(layout, name, version)


def write_version(layout: Layout, name: ConceptName, version: Version, ref: VersionRef) -> bool:
    """Returns True if the version is new, False if it exists and is the same.

    Raises:
        ConflictError: if it exists with another manifest; it is left as it is.
    """
    line = f"{ref.digest} {ref.origin}\n".encode("ascii")
    path = layout.version(name, version)
    for _ in range(_TRIES):
        if write_file(path, line, temporary=layout.temporary(), mode=BLOB_MODE):
            return True
        if not _put_cut_short_aside(layout, name, version):
            break
    found = read_version(layout, name, version)
    if found is None or found.digest != ref.digest:
        raise describe_conflict(
            Resolved(Reference(name, version), ref.digest), found.digest if found else None
        )
    return False


def _put_cut_short_aside(layout: Layout, name: ConceptName, version: Version) -> bool:
    """Returns whether the name of a version is free: it was, or what a crash had cut short there is gone.

    Where files have no second names, it may be another who has the file open, and is waited for. Then it is moved, and
    looked at where nobody else finds it: if it was completed in that moment it comes back, and if not, its writer sees
    that the name holds something else by now, and that the version is not his.

    Raises:
        StoreError: if the store cannot be written.
    """
    path = layout.version(name, version)
    data = read_once_whole(path, _LIMIT_BYTES, is_whole=_is_whole, patience_seconds=_WRITING_SECONDS)
    if data is None or not _is_cut_short(data):
        return data is None
    aside = layout.trashed_version(name, version, time.time_ns())
    if not move_file(path, aside):
        return True
    data = read_small_file(aside, _LIMIT_BYTES) or b""
    is_cut_short = _is_cut_short(data)
    if not is_cut_short and not write_file(path, data, temporary=layout.temporary(), mode=BLOB_MODE):
        return True  # a third one has it: what was completed stays in the trash
    remove_file(aside)
    return is_cut_short


def _is_whole(data: bytes) -> bool:
    return not _is_cut_short(data)


def _is_cut_short(data: bytes) -> bool:
    return b"sha256:".startswith(data) or _CUT_SHORT.fullmatch(data) is not None


def describe_conflict(version: Resolved, found: Digest | None) -> ConflictError:
    """Returns the error for a version that exists with other contents."""
    there = f"{found}, not {version.digest}" if found else "and was removed meanwhile"
    return ConflictError(
        f"{version.reference} exists already with other contents ({there})",
        hint="give the new contents a new version; a published version never changes",
    )


def list_versions(layout: Layout, name: ConceptName) -> tuple[Version, ...]:
    """Returns the versions of a concept, smallest first."""
    found = parse_names(names_in(layout.versions_text(name)), read_version_file_name)
    return tuple(sorted(found))


def list_names(layout: Layout) -> Iterator[ConceptName]:
    """Yields the names of all concepts that have a version, in order."""
    return (name for name, _ in iter_concepts(layout))


def iter_concepts(layout: Layout) -> Iterator[tuple[ConceptName, tuple[Version, ...]]]:
    """Yields all concepts that have a version, in order of name, each with its versions, smallest first."""
    for namespace in parse_names(names_in(layout.refs), parse_namespace):
        for name in parse_names(names_in(layout.namespace(namespace)), partial(ConceptName, namespace)):
            if versions := list_versions(layout, name):
                yield name, versions


def remove_version(layout: Layout, name: ConceptName, version: Version, *, time_ns: int) -> None:
    """Moves a version's reference to the trash; its manifest and blobs stay.

    Raises:
        NotFoundError: if there is no such version.
    """
    if not move_file(layout.version(name, version), layout.trashed_version(name, version, time_ns)):
        raise missing_version(layout, name, str(version))


def read_trashed(layout: Layout, name: ConceptName, version: Version, entry: str) -> VersionRef | None:
    """Returns what a removed reference said, None if it is malformed."""
    try:
        path = layout.trashed_entry(name, version, entry)
    except InvalidNameError:
        return None
    return _parse_line(read_small_file(path, _LIMIT_BYTES) or b"")


def restore_version(layout: Layout, name: ConceptName, version: Version) -> VersionRef:
    """Returns the reference that was removed last under this version, which is back in place.

    Raises:
        NotFoundError: if none was removed.
        ConflictError: if the version was published anew with other contents.
    """
    for entry, ref in iter_removed_refs(layout, name, version):
        write_version(layout, name, version, ref)
        remove_file(layout.trashed_entry(name, version, entry))
        return ref
    raise NotFoundError(f"no removed version {name}@{version} is in the trash", hint="concepts list --all")


def iter_removed_refs(
    layout: Layout, name: ConceptName, version: Version
) -> Iterator[tuple[str, VersionRef]]:
    """Yields what was removed under a version, the last first, by the entry of the trash."""
    for entry in reversed(names_in(layout.trashed_versions(name, version))):
        ref = read_trashed(layout, name, version, entry)
        if ref is not None:
            yield entry, ref


def missing_concept(layout: Layout, name: ConceptName) -> NotFoundError:
    """Returns the error for a name that nothing has, with the nearest known one."""
    hint = suggest_nearest(str(name), [str(known) for known in list_names(layout)])
    return NotFoundError(
        f"no concept is called {str(name)!r}", hint=hint or "concepts list shows what is here"
    )


def missing_version(layout: Layout, name: ConceptName, selector: str) -> NotFoundError:
    """Returns the error for a version that a concept does not have, with those that it has."""
    versions = list_versions(layout, name)
    if not versions:
        return missing_concept(layout, name)
    known = ", ".join(str(version) for version in versions[-5:])
    return NotFoundError(f"{name} has no version {selector}", hint=f"its versions: {known}")


def parse_names(names: list[str], parse: Callable[[str], T]) -> list[T]:
    """Returns the values that file names write; what does not parse was not put there by us."""
    found: list[T] = []
    for name in names:
        try:
            found.append(parse(name))
        except ConceptryError:
            continue
    return found


def parse_version_line(data: bytes, name: ConceptName, version: Version) -> VersionRef:
    """Returns what the bytes of a version's file say. Raises IntegrityError if they are malformed."""
    ref = _parse_line(data)
    if ref is None:
        raise IntegrityError(
            f"the reference {name}@{version} is damaged",
            hint="who pushed it can look there: concepts verify finds it",
        )
    return ref


def _parse_line(data: bytes) -> VersionRef | None:
    match = _LINE.fullmatch(data.decode("ascii", "replace"))
    if match is None:
        return None
    return VersionRef(Digest(match[1]), "pulled" if match[2] == "pulled" else "published")
