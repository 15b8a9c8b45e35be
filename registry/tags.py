"""Tags: names that move. Files are the truth; nothing here caches.

A tag is a folder of numbered moves, each made by creating the next number. Two writers cannot make the same move, so
moving a tag is a compare-and-swap without a lock, and the moves are the tag's history.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from typing import Final

from conceptry.digests import Digest
from conceptry.errors import ConflictError, IntegrityError
from conceptry.names import LATEST, ConceptName, Tag, Version, parse_tag, parse_version
from conceptry.registry.file_reading import names_in, read_once_whole, read_small_file
from conceptry.registry.files import BLOB_MODE, move_file, write_file
from conceptry.registry.paths import Layout
from conceptry.registry.refs import READING_SECONDS, Resolved, parse_names, read_version

_LIMIT_BYTES: Final = 256
# Moves of the first format have no time.
_LINE: Final = re.compile(
    r"([0-9A-Za-z.+-]{1,64}) (sha256:[0-9a-f]{64})(?: (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?\n", re.ASCII
)
_NUMBER: Final = re.compile(r"[0-9]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class TagMove:
    """Where a tag points, and since which move (counted from 1)."""

    number: int
    version: Version
    digest: Digest
    time: str | None = None
    """When it was moved (UTC), by the clock of who moved it; for people only."""


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
    moved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"{version} {to.digest} {moved}\n".encode("ascii")
    path = layout.tag_move(name, tag, number)
    if not write_file(path, line, temporary=layout.temporary(), mode=BLOB_MODE):
        now = read_tag(layout, name, tag)
        raise ConflictError(
            f"the tag {name}:{tag} was moved by somebody else" + (f" to {now.version}" if now else ""),
            hint="look at it again, then repeat the command if it should still move",
        )
    return TagMove(number, version, to.digest, moved)


def drop_damaged_moves(layout: Layout, name: ConceptName, tag: Tag) -> TagMove | None:
    """Returns where a tag points once its last moves that are damaged or lead nowhere are in the trash.

    Raises:
        StoreError: if the store cannot be written.
    """
    for number in reversed(_list_moves(layout, name, tag)):
        with contextlib.suppress(IntegrityError):
            move = _read_move(layout, name, tag, number)
            if read_version(layout, name, move.version) is not None:
                return move
        path = layout.tag_move(name, tag, number)
        move_file(path, layout.quarantined(Digest.of_bytes(read_small_file(path, _LIMIT_BYTES) or b"")))
    return None


def list_tags(layout: Layout, name: ConceptName) -> tuple[Tag, ...]:
    """Returns the tags of a concept in order, without ``latest``, which is computed."""
    return tuple(parse_names(names_in(layout.tags(name)), parse_tag))


def _list_moves(layout: Layout, name: ConceptName, tag: Tag) -> list[int]:
    return [int(entry) for entry in names_in(layout.tag(name, tag)) if _NUMBER.fullmatch(entry)]


def _read_move(layout: Layout, name: ConceptName, tag: Tag, number: int) -> TagMove:
    path = layout.tag_move(name, tag, number)
    data = read_once_whole(path, _LIMIT_BYTES, is_whole=_is_whole, patience_seconds=READING_SECONDS)
    match = _LINE.fullmatch((data or b"").decode("ascii", "replace"))
    if match is None:
        raise IntegrityError(
            f"the tag {name}:{tag} is damaged",
            where=layout.describe(path),
            hint=f"name a version: {name}@1.2.3",
        )
    return TagMove(number, parse_version(match[1]), Digest.parse(match[2]), match[3])


def _is_whole(data: bytes) -> bool:
    return data.endswith(b"\n")
