"""The two lists in a directory remote that let it be read where folders cannot be listed: over plain HTTP.

``refs/<namespace>/<name>/versions.json`` has a concept's versions, yanks and tags; ``catalog.json`` has what people
choose concepts by. Both say nothing that the other files do not, are written anew after each change, and are believed
by nobody: a manifest still is what its digest says.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConceptryError, IntegrityError
from conceptry.names import ConceptName, Tag, Version, parse_namespace, parse_tag, parse_version
from conceptry.registry import refs, tags, yanks
from conceptry.registry.file_reading import names_in, read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.paths import Layout
from conceptry.registry.protocol import RemoteConcept, RemoteEntry
from conceptry.registry.tags import TagMove

MAX_LIST_BYTES: Final = 8 << 20
_FORMAT: Final = 1
_ROUNDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionList:
    """What a remote says of one concept."""

    name: ConceptName
    entries: tuple[RemoteEntry, ...]
    digests: Mapping[Version, Digest]
    moves: Mapping[Tag, TagMove]

    def read_digest(self, version: Version) -> Digest | None:
        """Returns the digest of a version's manifest, None if there is none."""
        return self.digests.get(version)

    def read_tag(self, tag: Tag) -> TagMove | None:
        """Returns where a tag points."""
        return self.moves.get(tag)

    def list_tags(self) -> Iterable[Tag]:
        """Returns the tags."""
        return sorted(self.moves)

    def to_bytes(self) -> bytes:
        """Returns the list as canonical JSON."""
        rows = [
            {"version": str(e.version), "digest": str(self.digests[e.version]), "yanked": e.yanked}
            for e in self.entries
        ]
        moves = [
            {"tag": tag, "version": str(move.version), "digest": str(move.digest), "number": move.number}
            for tag, move in sorted(self.moves.items())
        ]
        return canonical_json({"format": _FORMAT, "name": str(self.name), "versions": rows, "tags": moves})


def parse_version_list(data: bytes, name: ConceptName) -> VersionList:
    """Returns the list in ``data``. Raises IntegrityError if it is malformed, or another concept's."""
    try:
        document = _parse(data)
        if document["name"] != str(name):
            raise ValueError(f"it is of {document['name']!r}")
        entries = [
            RemoteEntry(version=parse_version(row["version"]), yanked=_optional_text(row["yanked"]))
            for row in document["versions"]
        ]
        digests = {parse_version(row["version"]): Digest.parse(row["digest"]) for row in document["versions"]}
        moves = {
            parse_tag(row["tag"]): TagMove(
                int(row["number"]), parse_version(row["version"]), Digest.parse(row["digest"])
            )
            for row in document["tags"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConceptryError) as error:
        raise _damaged(f"the list of versions of {name}", error) from error
    ordered = tuple(sorted(entries, key=lambda entry: entry.version))
    return VersionList(name=name, entries=ordered, digests=digests, moves=moves)


def parse_catalog(data: bytes) -> tuple[RemoteConcept, ...]:
    """Returns the concepts in ``data``, in order of name. Raises IntegrityError if it is malformed."""
    try:
        rows = [
            RemoteConcept(
                name=ConceptName.parse(row["name"]),
                title=str(row["title"]),
                kinds=_texts(row["kinds"]),
                families=_texts(row["families"]),
                tags=_texts(row["tags"]),
                license=_optional_text(row["license"]),
            )
            for row in _parse(data)["concepts"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConceptryError) as error:
        raise _damaged("the list of concepts", error) from error
    return tuple(sorted(rows, key=lambda row: row.name))


def derive_version_list(layout: Layout, name: ConceptName) -> VersionList:
    """Returns what the files of a folder say of a concept; what is damaged is left out."""
    entries, digests, moves = [], {}, {}
    for version in refs.list_versions(layout, name):
        try:
            ref = refs.read_version(layout, name, version)
        except IntegrityError:
            continue
        if ref is not None:
            entries.append(RemoteEntry(version=version, yanked=yanks.read_yank(layout, name, version)))
            digests[version] = ref.digest
    for tag in tags.list_tags(layout, name):
        try:
            move = tags.read_tag(layout, name, tag)
        except IntegrityError:
            continue
        if move is not None:
            moves[tag] = move
    return VersionList(name=name, entries=tuple(entries), digests=digests, moves=moves)


def update_lists(
    layout: Layout, name: ConceptName, describe: Callable[[ConceptName], RemoteConcept | None]
) -> None:
    """Brings both lists up to date after a change of one concept.

    Of several who do so at once, whoever writes last looks again afterwards, so that nobody's change is lost.

    Raises:
        StoreError: if the disk refuses; then the lists are behind until the next push.
    """
    _settle(layout, layout.version_list(name), lambda _: derive_version_list(layout, name).to_bytes())
    _settle(layout, layout.catalog, lambda before: _derive_catalog(layout, name, describe, before))


def _settle(layout: Layout, path: Any, derive: Callable[[bytes | None], bytes]) -> None:
    """Writes until what is there is what the files say."""
    for _ in range(_ROUNDS):
        before = read_small_file(path, MAX_LIST_BYTES)
        wanted = derive(before)
        if wanted == before:
            return
        write_file(path, wanted, temporary=layout.temporary(), replace=True)


def _derive_catalog(
    layout: Layout,
    changed: ConceptName,
    describe: Callable[[ConceptName], RemoteConcept | None],
    before: bytes | None,
) -> bytes:
    """Takes over what is known; the changed concept and those that are missing are described anew."""
    try:
        known = {row.name: row for row in parse_catalog(before or b"")}
    except IntegrityError:
        known = {}
    present = set(_iter_names(layout))
    rows = [
        row
        for name in sorted(present)
        if (row := known[name] if name in known and name != changed else describe(name)) is not None
    ]
    documents = [{**asdict(row), "name": str(row.name)} for row in rows]
    return canonical_json({"format": _FORMAT, "concepts": documents})


def _iter_names(layout: Layout) -> Iterable[ConceptName]:
    for namespace in refs.parse_names(names_in(layout.refs), parse_namespace):
        names = names_in(layout.namespace(namespace))
        yield from refs.parse_names(names, functools.partial(ConceptName, namespace))


def _parse(data: bytes) -> dict[str, Any]:
    document = json.loads(data)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT}")
    return document


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("not a list of texts")
    return tuple(value)


def _optional_text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _damaged(what: str, error: Exception) -> IntegrityError:
    reason = " ".join(str(error).split())[:120]
    return IntegrityError(
        f"{what} is damaged: {reason}", hint="pushing anything into that folder writes its lists anew"
    )
