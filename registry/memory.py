"""What each remote said before: which repository a name was, which bytes a version had, how far a tag had come.

A remote that answers otherwise later was taken over, or shows an old state. The first answer is believed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IdentityChangedError
from conceptry.names import LATEST, ConceptName, Tag, Version, parse_tag, parse_version
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.paths import Layout
from conceptry.registry.protocol import RemoteVersion
from conceptry.registry.store import Store

_LIMIT_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Memory:
    """What a remote said of one concept."""

    identity: str | None = None
    """Which repository it is beyond its name."""

    versions: Mapping[Version, Digest] = field(default_factory=dict)
    """The manifest of each version that was seen; it never changes."""

    tags: Mapping[Tag, Version] = field(default_factory=dict)
    """The last place of each tag; of ``latest``, which is computed, the greatest."""

    moves: Mapping[Tag, int] = field(default_factory=dict)
    """The last move that was seen of each tag that people move, where the remote counts them."""


def recall(layout: Layout, uri: str, name: ConceptName) -> Memory:
    """Returns what a remote said of a concept before; nothing where it was never asked, or the record is damaged."""
    data = read_small_file(_locate(layout, uri, name), _LIMIT_BYTES)
    try:
        document: dict[str, Any] = json.loads(data or b"{}")
        identity = document.get("identity")
        return Memory(
            identity if isinstance(identity, str) else None,
            {parse_version(key): Digest.parse(value) for key, value in document.get("versions", {}).items()},
            {parse_tag(key): parse_version(value) for key, value in document.get("tags", {}).items()},
            {parse_tag(key): int(value) for key, value in document.get("moves", {}).items()},
        )
    except (ValueError, TypeError, AttributeError, ConceptryError):
        return Memory()


def check_answer(
    layout: Layout, uri: str, answer: RemoteVersion, *, tag: Tag | None = None, allow_downgrade: bool = False
) -> None:
    """Raises IdentityChangedError if an answer contradicts what the remote said before.

    ``tag`` is what was asked for, None if it was a version or a digest. ``allow_downgrade`` lets ``latest`` go back,
    as it does once the greatest version was yanked, and a tag to an earlier move; identities and versions never change.
    A tag that people move may go to an older version, by a move that is new: moves are counted.
    """
    name, version = answer.reference.concept, answer.reference.version
    known = recall(layout, uri, name)
    if None not in (known.identity, answer.identity) and known.identity != answer.identity:
        raise IdentityChangedError(
            f"{name} on {uri} is another repository than before ({answer.identity}, not {known.identity})",
            hint="ask its publisher what happened before you take anything from there",
        )
    digest = known.versions.get(version) if version else None
    if digest not in (None, answer.digest):
        raise IdentityChangedError(
            f"{answer.reference} on {uri} has other contents than before ({answer.digest}, not {digest})",
            hint="a published version never changes: ask its publisher what happened",
        )
    reached = known.tags.get(tag) if tag == LATEST else None
    if reached and version and version < reached and not allow_downgrade:
        raise IdentityChangedError(
            f"the latest version of {name} on {uri} is {version}, but {reached} was there before",
            hint=f"name the version: {name}@{version}, or add --allow-downgrade if {reached} was withdrawn",
        )
    _check_move(known, uri, answer, tag, allow_downgrade=allow_downgrade)


def _check_move(
    known: Memory, uri: str, answer: RemoteVersion, tag: Tag | None, *, allow_downgrade: bool
) -> None:
    seen = known.moves.get(tag, 0) if tag is not None else 0
    if answer.move is None or tag is None or answer.move > seen or allow_downgrade:
        return
    if answer.move == seen and known.tags.get(tag) == answer.reference.version:
        return
    what = "an earlier move" if answer.move < seen else "another place by the same move"
    raise IdentityChangedError(
        f"the tag {answer.reference.concept}:{tag} on {uri} is at {answer.reference.version} by {what} than was seen"
        f" before (move {answer.move}, after {known.tags.get(tag)} by move {seen})",
        hint=f"the remote shows an old state: name the version ({answer.reference}), or add --allow-downgrade",
    )


def remember_answer(store: Store, uri: str, answer: RemoteVersion, *, tag: Tag | None = None) -> None:
    """Remembers an answer that was checked. Raises StoreError."""
    name, version = answer.reference.concept, answer.reference.version
    known = recall(store.layout, uri, name)
    versions, tags, moves = dict(known.versions), dict(known.tags), dict(known.moves)
    if version is not None:
        versions[version] = answer.digest
        if tag is not None:
            tags[tag] = version
            if answer.move is not None:
                moves[tag] = answer.move
    identity = answer.identity or known.identity
    now = replace(known, identity=identity, versions=versions, tags=tags, moves=moves)
    if now != known:
        _write(store, uri, name, now)


def forget_remote(store: Store, uri: str, name: ConceptName) -> None:
    """Forgets what a remote said of a concept, so that its next answer is believed. Raises StoreError."""
    _write(store, uri, name, Memory())


def _write(store: Store, uri: str, name: ConceptName, memory: Memory) -> None:
    document = {
        "uri": uri,
        "name": str(name),
        "identity": memory.identity,
        "versions": {str(key): str(value) for key, value in sorted(memory.versions.items())},
        "tags": {key: str(value) for key, value in sorted(memory.tags.items())},
        "moves": dict(sorted(memory.moves.items())),
    }
    data = (json.dumps(document, indent=1) + "\n").encode("ascii")
    store.prepare_for_writing()
    place = _locate(store.layout, uri, name)
    write_file(place, data, temporary=store.layout.temporary(), mode=0o600, replace=True)


def _locate(layout: Layout, uri: str, name: ConceptName) -> Path:
    return layout.memory(Digest.of_bytes(f"{uri} {name}".encode("utf-8", "surrogateescape")))
