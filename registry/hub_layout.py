"""How concepts lie on the Hugging Face Hub: one repository a concept, named and laid out so that other tools read it.

``main`` has the newest version as plain files; the git tag ``v1.2.3`` is a version, and is made last. What may change
(moving tags, yanks) is one record on ``main``, changed by commits that name their parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from conceptry.digests import Digest, canonical_json
from conceptry.documents import load_strict_json
from conceptry.errors import ConceptryError, IntegrityError, UsageError
from conceptry.names import ConceptName, Tag, Version, parse_tag, parse_version
from conceptry.registry.answers import find_origin
from conceptry.registry.credentials import find_hub_endpoint
from conceptry.registry.tags import TagMove

MANIFEST_PATH: Final = "concept.json"
RECORD_PATH: Final = "conceptry.json"
CARD_PATH: Final = "README.md"
GENERIC_TAG: Final = "conceptry"

_OUR_PATHS: Final = frozenset({MANIFEST_PATH, RECORD_PATH, CARD_PATH.casefold()})
_MEMBERS: Final = "members/"
_MAX_REPOSITORY_CHARS: Final = 96
_MAX_MOVES: Final = 200  # of one tag; older ones are forgotten, their numbers are not used again
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A namespace on a Hub: ``hf://namespace``, perhaps ``?endpoint=https://hub.example`` and ``&private=true``."""

    uri: str
    namespace: str
    endpoint: str
    private: bool

    @classmethod
    def parse(cls, uri: str) -> HubAddress:
        """Returns the namespace that an address names. Raises UsageError."""
        parts = urlsplit(uri)
        query = parse_qs(parts.query, keep_blank_values=True)
        endpoint = query.pop("endpoint", [find_hub_endpoint()])[-1].rstrip("/")
        private = query.pop("private", ["false"])[-1]
        wrong = parts.scheme != "hf" or not _is_hub_name(parts.netloc) or parts.path.strip("/")
        if wrong or query or parts.fragment or private not in ("true", "false"):
            raise UsageError(
                f"not an address of a namespace on the Hub: {uri[:200]!r}",
                hint="write hf://namespace, hf://namespace?private=true or ?endpoint=https://hub.example",
            )
        origin = find_origin(endpoint)
        if not origin.startswith("https:") and urlsplit(origin).hostname not in (
            "localhost",
            "127.0.0.1",
            "::1",
        ):
            raise UsageError(f"the Hub at {origin} is not encrypted", hint="write ?endpoint=https://...")
        return cls(uri, parts.netloc, endpoint, private == "true")

    def name_repository(self, name: ConceptName) -> str:
        """Returns the repository of a concept: ``namespace/name``, or ``namespace/other.name`` for other namespaces.

        Two concepts could meet in one repository; its record says whose it is. Raises UsageError for what the Hub
        takes for no name.
        """
        own = name.namespace == self.namespace.lower()
        repository = name.name if own else f"{name.namespace}.{name.name}"
        if "--" in repository or len(repository) > _MAX_REPOSITORY_CHARS or repository.endswith(".git"):
            raise UsageError(
                f"{name} cannot be the name of a repository on the Hub ({repository[:120]!r})",
                hint="names there have at most 96 characters, no '--', and do not end with .git",
            )
        return f"{self.namespace}/{repository}"

    def locate(self, repository: str, revision: str, path: str) -> str:
        """Returns the web address of a file."""
        return f"{self.endpoint}/{repository}/resolve/{quote(revision, safe='')}/{quote(path)}"


def _is_hub_name(text: str) -> bool:
    ok = 0 < len(text) <= _MAX_REPOSITORY_CHARS and text.isascii() and "--" not in text and ".." not in text
    return (
        ok
        and text[0].isalnum()
        and text[-1].isalnum()
        and all(char.isalnum() or char in "-_." for char in text)
    )


def name_member(path: str) -> str:
    """Returns where a file of a concept lies in its repository; names that we need ourselves are moved aside."""
    if path.casefold() in _OUR_PATHS or path.startswith(_MEMBERS):
        return _MEMBERS + path
    return path


def name_version_tag(version: Version) -> str:
    """Returns the git tag of a version."""
    return f"v{version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRecord:
    """What may change beside the versions: ``conceptry.json`` on ``main``."""

    concept: ConceptName
    versions: tuple[Version, ...] = ()
    """All that were ever committed; one without its git tag was not finished and does not count."""

    yanked: Mapping[Version, str] = field(default_factory=dict)
    tags: Mapping[Tag, tuple[TagMove, ...]] = field(default_factory=dict)

    def with_version(self, version: Version) -> HubRecord:
        """Returns the record with one more version."""
        return replace(self, versions=tuple(sorted({*self.versions, version})))

    def with_yank(self, version: Version, reason: str | None) -> HubRecord:
        """Returns the record with a version marked, or with the mark taken away."""
        rest = {known: text for known, text in self.yanked.items() if known != version}
        return replace(self, yanked=rest if reason is None else {**rest, version: reason})

    def with_move(self, tag: Tag, move: TagMove) -> HubRecord:
        """Returns the record with one more move of a tag."""
        moves = (*self.tags.get(tag, ()), move)[-_MAX_MOVES:]
        return replace(self, tags={**self.tags, tag: moves})

    def find_tag(self, tag: Tag) -> TagMove | None:
        """Returns where a tag points."""
        moves = self.tags.get(tag, ())
        return moves[-1] if moves else None

    def to_bytes(self) -> bytes:
        """Returns the record as canonical JSON."""
        return canonical_json(
            {
                "schema": _SCHEMA,
                "concept": str(self.concept),
                "versions": [str(version) for version in self.versions],
                "yanked": {str(version): reason for version, reason in self.yanked.items()},
                "tags": {
                    tag: [
                        {"number": move.number, "version": str(move.version), "digest": str(move.digest)}
                        for move in moves
                    ]
                    for tag, moves in self.tags.items()
                },
            }
        )


def parse_record(data: bytes, repository: str) -> HubRecord:
    """Returns the record that ``data`` writes. Raises IntegrityError if it is malformed or of a later version."""
    try:
        document = load_strict_json(data)
        if document["schema"] != _SCHEMA:
            raise UsageError(f"its schema is {str(document['schema'])[:20]!r}")
        return HubRecord(
            concept=ConceptName.parse(document["concept"]),
            versions=tuple(sorted(parse_version(text) for text in document["versions"])),
            yanked={parse_version(text): str(reason) for text, reason in document["yanked"].items()},
            tags={parse_tag(tag): tuple(map(_parse_move, moves)) for tag, moves in document["tags"].items()},
        )
    except (ConceptryError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the record {RECORD_PATH} of {repository} on the Hub cannot be read: {error}",
            hint="name a version: it does not depend on the record; or update conceptry",
        ) from error


def _parse_move(row: dict[str, Any]) -> TagMove:
    number = row["number"]
    if not isinstance(number, int):
        raise UsageError("a move of a tag has no number")
    return TagMove(number, parse_version(row["version"]), Digest.parse(row["digest"]))
