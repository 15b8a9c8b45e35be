"""Names, versions and references: one grammar for the command line, the API, the index and the lockfile.

Grammar (lower-case ASCII)::

    reference   = [ remote "::" ] [ namespace "/" ] name [ selector ]
    selector    = ":" tag | "@" version | "@" digest
    requirement = [ remote "::" ] [ namespace "/" ] name [ "@" range ]
    namespace   = segment
    name        = segment
    segment     = alnum { alnum | "-" | "_" | "." }      at most 64 characters, no "..", ends with alnum
    remote      = segment
    tag         = segment                                never a version
    version     = Semantic Versioning 2.0.0
    digest      = "sha256:" 64 hexadecimal digits
    range       = "*" | comparator { "," comparator }
    comparator  = [ "^" | "~" | ">=" | "<=" | ">" | "<" | "=" ] version-or-prefix

A reference without a namespace is in ``local``; one without a selector means the tag ``latest``, which is computed:
the greatest version that is no pre-release, else the greatest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NewType

from semver import Version

from conceptry.digests import Digest
from conceptry.errors import InvalidNameError

__all__ = [
    "LATEST",
    "LOCAL_NAMESPACE",
    "BaseName",
    "ConceptName",
    "Namespace",
    "Placeholder",
    "Reference",
    "RemoteName",
    "Requirement",
    "Tag",
    "Version",
    "VersionRange",
    "parse_base_name",
    "parse_namespace",
    "parse_placeholder",
    "parse_remote_name",
    "parse_tag",
    "parse_version",
    "pick_latest",
]

Tag = NewType("Tag", str)
RemoteName = NewType("RemoteName", str)
Namespace = NewType("Namespace", str)
BaseName = NewType("BaseName", str)
Placeholder = NewType("Placeholder", str)

LATEST: Final = Tag("latest")
LOCAL_NAMESPACE: Final = "local"
MAX_SEGMENT_CHARS: Final = 64
MAX_PLACEHOLDER_CHARS: Final = 64

_SEGMENT: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?", re.ASCII)
_WINDOWS_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{stem}{digit}" for stem in ("com", "lpt") for digit in range(10)}
)
_COMPARATOR: Final = re.compile(r"(\^|~|>=|<=|>|<|=)? *([0-9].*)", re.ASCII)
_HINT: Final = "a reference is written namespace/name, namespace/name:tag or namespace/name@1.2.3"


def _check_segment(text: str, what: str) -> str:
    ok = len(text) <= MAX_SEGMENT_CHARS and _SEGMENT.fullmatch(text) and ".." not in text
    if not ok:
        raise InvalidNameError(
            f"not a {what}: {text[:80]!r}",
            hint="use lower-case letters, digits and - _ . between them, 64 characters at most",
        )
    if text.split(".", maxsplit=1)[0] in _WINDOWS_DEVICES:
        raise InvalidNameError(
            f"not a {what}: {text!r} is a device name on Windows", hint="choose another name"
        )
    return text


def parse_remote_name(text: str) -> RemoteName:
    """Returns the name of a remote. Raises InvalidNameError."""
    return RemoteName(_check_segment(text, "remote name"))


def parse_namespace(text: str) -> Namespace:
    """Returns a namespace. Raises InvalidNameError."""
    return Namespace(_check_segment(text, "namespace"))


def parse_base_name(text: str) -> BaseName:
    """Returns the name that a user gives to a base. Raises InvalidNameError."""
    return BaseName(_check_segment(text, "base name"))


def parse_tag(text: str) -> Tag:
    """Returns a tag. Raises InvalidNameError, also for text that is a version (tags move, versions never do)."""
    if Version.is_valid(text):
        raise InvalidNameError(f"not a tag: {text!r} is a version", hint=f"write @{text} for a version")
    return Tag(_check_segment(text, "tag"))


def parse_version(text: str) -> Version:
    """Returns a Semantic Versioning 2.0.0 version. Raises InvalidNameError."""
    try:
        if len(text) > MAX_SEGMENT_CHARS or not text.isascii():
            raise ValueError(text)
        return Version.parse(text)
    except ValueError as error:
        raise InvalidNameError(
            f"not a version: {text[:80]!r}", hint="a version is written 1.2.3 (semver.org)"
        ) from error


def parse_placeholder(text: str) -> Placeholder:
    """Returns a placeholder: 1 to 64 printable characters without white space at either end.

    Raises:
        InvalidNameError: for empty, longer or unprintable text.
    """
    ok = 0 < len(text) <= MAX_PLACEHOLDER_CHARS and text.isprintable() and text == text.strip()
    if not ok:
        raise InvalidNameError(
            f"not a placeholder: {text[:80]!r}", hint="use a short word such as '<blue-imp>'"
        )
    return Placeholder(text)


@dataclass(frozen=True, slots=True, order=True)
class ConceptName:
    """``namespace/name``, the name that all versions of a concept share."""

    namespace: str
    name: str

    def __post_init__(self) -> None:
        _check_segment(self.namespace, "namespace")
        _check_segment(self.name, "name")

    @classmethod
    def parse(cls, text: str) -> ConceptName:
        """Returns the name in ``[namespace/]name``. Raises InvalidNameError."""
        namespace, slash, name = text.rpartition("/")
        return cls(namespace if slash else LOCAL_NAMESPACE, name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """Text that names one version of a concept, perhaps on a remote; the grammar is in the module's docstring."""

    concept: ConceptName
    selector: Tag | Version | Digest
    remote: RemoteName | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Returns the reference that ``text`` writes.

        Raises:
            InvalidNameError: if it does not parse; the message has the text in it.
            InvalidDigestError: if ``@sha256:`` is followed by anything but a digest.
        """
        remote, path = _split_remote(text)
        if "@" in path:
            name, _, rest = path.partition("@")
            exact = Digest.parse(rest) if rest.startswith("sha256:") else _parse_pinned(rest, text)
            return cls(_parse_concept(name, text), exact, remote)
        name, colon, tag = path.partition(":")
        return cls(_parse_concept(name, text), parse_tag(tag) if colon else LATEST, remote)

    @property
    def version(self) -> Version | None:
        """The version, when the selector is one."""
        return self.selector if isinstance(self.selector, Version) else None

    def at(self, selector: Tag | Version | Digest) -> Reference:
        """Returns the same concept at another selector."""
        return replace(self, selector=selector)

    def __str__(self) -> str:
        prefix = f"{self.remote}::" if self.remote else ""
        joint = "@" if isinstance(self.selector, Version | Digest) else ":"
        return f"{prefix}{self.concept}{joint}{self.selector}"


@dataclass(frozen=True, slots=True)
class VersionRange:
    """A set of versions as text: ``*``, ``^1.2``, ``~1.2.3``, ``>=1.0,<2.0``."""

    text: str

    def __post_init__(self) -> None:
        self._bounds()

    def __contains__(self, version: Version) -> bool:
        bounds = self._bounds()
        if version.prerelease and not any(
            bound.prerelease and bound.finalize_version() == version.finalize_version() for _, bound in bounds
        ):
            return False
        return all(_holds(operator, version, bound) for operator, bound in bounds)

    def _bounds(self) -> list[tuple[str, Version]]:
        if self.text == "*":
            return []
        return [
            bound for part in self.text.split(",") for bound in _expand_comparator(part.strip(" "), self.text)
        ]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Requirement:
    """A concept and the versions that will do."""

    concept: ConceptName
    versions: VersionRange
    remote: RemoteName | None = None

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Returns the requirement that ``text`` writes. Raises InvalidNameError."""
        remote, path = _split_remote(text)
        name, at, versions = path.partition("@")
        return cls(_parse_concept(name, text), VersionRange(versions if at else "*"), remote)

    def __str__(self) -> str:
        prefix = f"{self.remote}::" if self.remote else ""
        return f"{prefix}{self.concept}@{self.versions}"


def pick_latest(versions: Iterable[Version]) -> Version | None:
    """Returns the greatest version that is no pre-release, else the greatest, else None."""
    ordered = sorted(versions)
    finals = [version for version in ordered if not version.prerelease]
    return (finals or ordered)[-1] if ordered else None


def _split_remote(text: str) -> tuple[RemoteName | None, str]:
    remote, joint, path = text.rpartition("::")
    return (parse_remote_name(remote) if joint else None), path


def _parse_concept(text: str, whole: str) -> ConceptName:
    try:
        return ConceptName.parse(text)
    except InvalidNameError as error:
        raise InvalidNameError(f"not a reference: {whole[:80]!r} ({error.message})", hint=_HINT) from error


def _parse_pinned(text: str, whole: str) -> Version:
    if not Version.is_valid(text):
        raise InvalidNameError(f"not a reference: {whole[:80]!r} (no version after @)", hint=_HINT)
    return parse_version(text)


def _holds(operator: str, version: Version, bound: Version) -> bool:
    order = version.compare(bound)
    table = {">=": order >= 0, "<=": order <= 0, ">": order > 0, "<": order < 0, "=": order == 0}
    return table[operator]


def _expand_comparator(text: str, whole: str) -> list[tuple[str, Version]]:
    match = _COMPARATOR.fullmatch(text)
    parts = match.group(2).split(".") if match else []
    if match is None or (len(parts) < 3 and not all(part.isdigit() for part in parts)):
        raise InvalidNameError(
            f"not a version range: {whole[:80]!r}", hint="write ^1.2, ~1.2.3 or >=1.0,<2.0"
        )
    lower = parse_version(match.group(2) if len(parts) >= 3 else ".".join([*parts, "0", "0"][:3]))
    operator = match.group(1) or ("=" if len(parts) >= 3 else "~")
    if operator == "^":
        return [(">=", lower), ("<", _next_breaking(lower, len(parts)))]
    if operator == "~":
        return [(">=", lower), ("<", lower.bump_major() if len(parts) == 1 else lower.bump_minor())]
    return [(operator, lower)]


def _next_breaking(lower: Version, written_parts: int) -> Version:
    if lower.major or written_parts == 1:
        return lower.bump_major()
    if lower.minor or written_parts == 2:
        return lower.bump_minor()
    return lower.bump_patch()
