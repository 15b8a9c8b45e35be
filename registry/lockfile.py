"""``concepts.lock``: exactly which versions and bytes a project uses, and for which base.

Sorted TOML, written by one function, so that equal contents are equal bytes on every machine. ``contents`` is the
digest of all other lines: an edit by hand or a bad merge is seen before anything is believed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, InvalidLockError
from conceptry.names import (
    ConceptName,
    Placeholder,
    Reference,
    RemoteName,
    Requirement,
    Version,
    parse_placeholder,
    parse_remote_name,
    parse_version,
)
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.files import STATE_MODE, write_file
from conceptry.registry.places import LOCK_FILE, draw_name_beside

FORMAT: Final = 1
MAX_LOCK_BYTES: Final = 64 << 20

_HEAD: Final = (
    "# What concepts.toml came to, exactly. Written by `concepts lock`, never by hand.\n"
    "# Keep it under version control.\n"
)
_CONTENTS: Final = re.compile(rb'^contents = "(sha256:[0-9a-f]{64})"\n', re.MULTILINE)
_HINT: Final = "concepts lock writes it anew"


@dataclass(frozen=True, slots=True)
class LockedFile:
    """One file of a version."""

    path: str
    size_bytes: int
    sha256: Digest


@dataclass(frozen=True, slots=True)
class LockedSource:
    """Where a foreign file was read, and its bytes as they were."""

    kind: str
    text: str
    size_bytes: int
    sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBase:
    """The base that builds were chosen for, as the project names it and as it was understood."""

    reference: str
    family: str
    prediction_type: str
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedConcept:
    """One version: where it is from, what it is, and under which words it is used."""

    name: ConceptName
    version: Version
    manifest: Digest
    files: tuple[LockedFile, ...]
    remote: RemoteName | None = None
    """None for what only the local store has, and for foreign files."""

    commit: str | None = None
    identity: str | None = None
    """What the remote said of itself (``RemoteVersion``)."""

    build: str | None = None
    strength: float | None = None
    tokens: Mapping[Placeholder, Placeholder] = field(default_factory=dict)
    """The word to write by the word as published; they differ where two concepts have the same."""

    requires: tuple[Requirement, ...] = ()
    source: LockedSource | None = None

    @property
    def reference(self) -> Reference:
        """``namespace/name@version``."""
        return Reference(self.name, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """All that a lock says; concepts in order of name."""

    requirements: Digest
    base: LockedBase | None = None
    remotes: Mapping[RemoteName, str] = field(default_factory=dict)
    concepts: tuple[LockedConcept, ...] = ()

    def find(self, name: ConceptName) -> LockedConcept | None:
        """Returns what is locked of a concept, None if it is not."""
        return next((one for one in self.concepts if one.name == name), None)


# --- writing -------------------------------------------------------------------------------------------------------


def format_lock(lock: Lock) -> bytes:
    """Returns the bytes of a lock; equal locks have equal bytes."""
    head = f"{_HEAD}\nformat = {FORMAT}\nrequirements = {_text(lock.requirements)}\n"
    body = "".join(f"{line}\n" for line in _iter_lines(lock))
    contents = Digest.of_bytes((head + body).encode("utf-8"))
    return f'{head}contents = "{contents}"\n{body}'.encode()


def write_lock(path: Path, data: bytes) -> bool:
    """Returns True if the lock at ``path`` changed; equal bytes are not written again. Raises StoreError."""
    if read_small_file(path, MAX_LOCK_BYTES) == data:
        return False
    return write_file(path, data, temporary=draw_name_beside(path), mode=STATE_MODE, replace=True)


def _iter_lines(lock: Lock) -> Iterator[str]:
    if lock.base is not None:
        yield from ("", "[base]")
        yield from _iter_pairs(
            reference=lock.base.reference,
            family=lock.base.family,
            prediction_type=lock.base.prediction_type,
            repo=lock.base.repo,
            revision=lock.base.revision,
        )
    if lock.remotes:
        yield from ("", "[remotes]")
        for name, uri in sorted(lock.remotes.items()):
            yield f"{name if '.' not in name else _text(name)} = {_text(uri)}"
    for one in sorted(lock.concepts, key=lambda concept: concept.name):
        yield from ("", "[[concept]]")
        yield from _iter_concept(one)


def _iter_concept(one: LockedConcept) -> Iterator[str]:
    yield from _iter_pairs(
        name=one.name,
        version=one.version,
        remote=one.remote,
        commit=one.commit,
        identity=one.identity,
        manifest=one.manifest,
        build=one.build,
    )
    if one.strength is not None:
        yield f"strength = {one.strength!r}"
    if one.source is not None:
        digest = f"size = {one.source.size_bytes}, sha256 = {_text(one.source.sha256)}"
        yield f"source = {{ kind = {_text(one.source.kind)}, text = {_text(one.source.text)}, {digest} }}"
    if one.requires:
        yield f"requires = [{', '.join(_text(asked) for asked in sorted(one.requires, key=str))}]"
    if one.tokens:
        words = (f"{_text(old)} = {_text(new)}" for old, new in sorted(one.tokens.items()))
        yield f"tokens = {{ {', '.join(words)} }}"
    yield "files = ["
    for file in sorted(one.files, key=lambda file: file.path):
        yield f"  {{ path = {_text(file.path)}, size = {file.size_bytes}, sha256 = {_text(file.sha256)} }},"
    yield "]"


def _iter_pairs(**values: object) -> Iterator[str]:
    for key, value in values.items():
        if value is not None:
            yield f"{key} = {_text(value)}"


def _text(value: object) -> str:
    """Returns a basic string: JSON's escapes are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


# --- reading -------------------------------------------------------------------------------------------------------


def read_lock_bytes(path: Path) -> bytes | None:
    """Returns the bytes of the lock at ``path``, None if there is none. Raises StoreError, InvalidLockError."""
    data = read_small_file(path, MAX_LOCK_BYTES)
    if data is not None and len(data) > MAX_LOCK_BYTES:
        raise InvalidLockError(f"{str(path)!r} has more than {MAX_LOCK_BYTES} bytes", hint=_HINT)
    return data


def parse_lock(data: bytes, *, check_contents: bool = True) -> Lock:
    """Returns the lock in ``data``; ``check_contents=False`` reads also one that was edited, as a wish and no proof.

    Raises:
        InvalidLockError: if it is malformed, of a newer version, or not as it was written.
    """
    plain = data.replace(b"\r\n", b"\n")  # as git checks files out on Windows
    try:
        document = tomllib.loads(plain.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidLockError(
            f"{LOCK_FILE} is no lock (a merge that went wrong?): {error}", hint=_HINT
        ) from error
    _check_format(document)
    if check_contents:
        _check_contents(plain)
    try:
        return _read_document(document)
    except ConceptryError as error:
        raise InvalidLockError(f"{LOCK_FILE} is damaged: {error.message}", hint=_HINT) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidLockError(f"{LOCK_FILE} is damaged: {error!r}"[:300], hint=_HINT) from error


def _check_format(document: Mapping[str, Any]) -> None:
    found = document.get("format")
    if isinstance(found, int) and not isinstance(found, bool) and found > FORMAT:
        raise InvalidLockError(
            f"{LOCK_FILE} has format {found}, this version knows {FORMAT}",
            where="format",
            hint="update conceptry: python -m pip install --upgrade conceptry",
        )
    if found != FORMAT:
        raise InvalidLockError(f"{LOCK_FILE} does not say which format it has", where="format", hint=_HINT)


def _check_contents(data: bytes) -> None:
    match = _CONTENTS.search(data)
    if match is None or Digest.of_bytes(data[: match.start()] + data[match.end() :]) != Digest.parse(
        match[1].decode()
    ):
        raise InvalidLockError(
            f"{LOCK_FILE} was edited after it was written",
            where="contents",
            hint="take it back from version control, or write it anew: concepts lock",
        )


def _read_document(document: Mapping[str, Any]) -> Lock:
    base = document.get("base")
    remotes = {parse_remote_name(name): str(uri) for name, uri in document.get("remotes", {}).items()}
    return Lock(
        requirements=Digest.parse(document["requirements"]),
        base=None if base is None else LockedBase(**base),
        remotes=remotes,
        concepts=tuple(_read_concept(row) for row in document.get("concept", ())),
    )


def _read_concept(row: Mapping[str, Any]) -> LockedConcept:
    source, remote, strength = row.get("source"), row.get("remote"), row.get("strength")
    return LockedConcept(
        name=ConceptName.parse(row["name"]),
        version=parse_version(row["version"]),
        manifest=Digest.parse(row["manifest"]),
        files=tuple(
            LockedFile(str(file["path"]), int(file["size"]), Digest.parse(file["sha256"]))
            for file in row["files"]
        ),
        remote=None if remote is None else parse_remote_name(remote),
        commit=row.get("commit"),
        identity=row.get("identity"),
        build=row.get("build"),
        strength=None if strength is None else float(strength),
        tokens={parse_placeholder(old): parse_placeholder(new) for old, new in row.get("tokens", {}).items()},
        requires=tuple(Requirement.parse(asked) for asked in row.get("requires", ())),
        source=None
        if source is None
        else LockedSource(
            source["kind"], source["text"], int(source["size"]), Digest.parse(source["sha256"])
        ),
    )
