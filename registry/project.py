"""``concepts.toml``: what a project requires, for which base, and from which remotes.

::

    [project]
    name = "picture-book"
    base = "sd1"

    [concepts]
    "alice/blue-imp" = "^1.2"
    "bob/ukiyo" = { version = "~1.0", remote = "studio", strength = 0.7, rename = { "<ukiyo>" = "<print>" } }
    "me/hat" = { path = "files/hat.safetensors", placeholder = "<hat>", license = "CC0-1.0" }

    [remotes]
    studio = "file:///mnt/share/concepts"

The file is found upward from the working folder. It chooses concepts and addresses and never carries a credential.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from conceptry.digests import Digest, canonical_json
from conceptry.errors import ConceptryError, InvalidProjectError, NotFoundError, suggest_nearest
from conceptry.names import (
    ConceptName,
    Placeholder,
    RemoteName,
    VersionRange,
    parse_placeholder,
    parse_remote_name,
)
from conceptry.registry.config import refuse_credentials
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.places import PROJECT_FILE, locate_lock, locate_project
from conceptry.registry.remotes import find_remote_row
from conceptry.sources import Source, parse_air, parse_hub_source, parse_path_source, parse_url_source

MAX_PROJECT_BYTES: Final = 4 << 20
MAX_STRENGTH: Final = 10.0
ANY_VERSION: Final = VersionRange("*")

_TABLES: Final = ("project", "concepts", "remotes")
_PROJECT_KEYS: Final = ("name", "base")
_CHOICES: Final = ("build", "strength", "rename")
_PUBLISHED_KEYS: Final = ("version", "remote", *_CHOICES)
_FOREIGN_KEYS: Final = ("placeholder", "superclass", "license", "base", *_CHOICES)
_SOURCES: Final[Mapping[str, Callable[[str], Source]]] = {
    "air": parse_air,
    "path": parse_path_source,
    "hf": parse_hub_source,
    "url": parse_url_source,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """A file that nobody published: where it is, and what is to be said of it in its generated manifest."""

    source: Source
    air: str | None = None
    """The AIR that the file was found under, a record only."""

    placeholder: Placeholder | None = None
    superclass: str | None = None
    license: str | None = None
    base: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRequirement:
    """One concept that a project requires, and how it is to be used there."""

    name: ConceptName
    versions: VersionRange = ANY_VERSION
    remote: RemoteName | None = None
    build: str | None = None
    strength: float | None = None
    rename: Mapping[Placeholder, Placeholder] = field(default_factory=dict)
    foreign: Foreign | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.foreign.source if self.foreign else self.versions}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project as its ``concepts.toml`` writes it; requirements in order of name."""

    folder: Path
    name: str | None = None
    base: str | None = None
    remotes: Mapping[RemoteName, str] = field(default_factory=dict)
    requirements: tuple[ProjectRequirement, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return locate_project(self.folder)

    @property
    def lock_path(self) -> Path:
        """Where the lock lies, whether it is there or not."""
        return locate_lock(self.folder)

    def find(self, name: ConceptName) -> ProjectRequirement | None:
        """Returns the requirement of that concept, None if the project has none."""
        return next((one for one in self.requirements if one.name == name), None)


def digest_requirements(project: Project) -> Digest:
    """Returns the digest of all that a lock must answer: requirements, base and remotes, not comments or order."""
    rows = {str(one.name): _to_document(one) for one in project.requirements}
    document = {"base": project.base, "concepts": rows, "remotes": dict(project.remotes)}
    return Digest.of_bytes(canonical_json(document))


def _to_document(one: ProjectRequirement) -> dict[str, Any]:
    foreign = one.foreign
    return {
        "version": str(one.versions),
        "remote": one.remote,
        "build": one.build,
        "strength": one.strength,
        "rename": dict(one.rename),
        "foreign": None
        if foreign is None
        else {
            "kind": foreign.source.kind,
            "source": str(foreign.source),
            "air": foreign.air,
            "placeholder": foreign.placeholder,
            "superclass": foreign.superclass,
            "license": foreign.license,
            "base": foreign.base,
        },
    }


# --- finding and reading -------------------------------------------------------------------------------------------


def read_project(folder: Path) -> Project:
    """Returns the project in a folder. Raises NotFoundError, InvalidProjectError with the place of the fault."""
    data = read_small_file(locate_project(folder), MAX_PROJECT_BYTES)
    if data is None:
        raise NotFoundError(f"no {PROJECT_FILE} in {str(folder)!r}", hint="concepts init makes one")
    return parse_project(data, folder)


def parse_project(data: bytes, folder: Path) -> Project:
    """Returns the project that the bytes of a ``concepts.toml`` in ``folder`` write. Raises InvalidProjectError."""
    path = locate_project(folder)
    try:
        if len(data) > MAX_PROJECT_BYTES:
            raise ValueError(f"more than {MAX_PROJECT_BYTES} bytes")
        document = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidProjectError(f"cannot read {str(path)!r}: {error}", hint="correct the file") from error
    _refuse_unknown(document, _TABLES, "")
    about = _read_table(document, "project")
    _refuse_unknown(about, _PROJECT_KEYS, "project")
    remotes = {
        _parse(parse_remote_name, name, f"remotes.{name}"): _read_address(name, uri)
        for name, uri in _read_table(document, "remotes").items()
    }
    rows = _read_table(document, "concepts")
    requirements = [_read_requirement(name, value) for name, value in rows.items()]
    names = [one.name for one in requirements]
    twice = (
        next((name for name in names if names.count(name) > 1), None)
        if len(set(names)) < len(names)
        else None
    )
    if twice is not None:
        raise InvalidProjectError(
            f"{twice} is required twice", where="concepts", hint="keep one of the lines"
        )
    return Project(
        folder=folder,
        name=_read_text(about, "name", "project"),
        base=_read_text(about, "base", "project"),
        remotes=dict(sorted(remotes.items())),
        requirements=tuple(sorted(requirements, key=lambda one: one.name)),
    )


def _read_requirement(text: str, value: Any) -> ProjectRequirement:
    where = f'concepts."{text}"'
    name = _parse(ConceptName.parse, text, where)
    if isinstance(value, str):
        return ProjectRequirement(name=name, versions=_parse(VersionRange, value, where))
    if not isinstance(value, dict):
        raise InvalidProjectError(
            f"a requirement is a range or a table, not {value!r}"[:200],
            where=where,
            hint=f'write "{text}" = "^1.0"',
        )
    kinds = [kind for kind in _SOURCES if kind in value]
    _refuse_unknown(value, (*kinds, *_FOREIGN_KEYS) if kinds else (*_PUBLISHED_KEYS, *_SOURCES), where)
    remote = _read_text(value, "remote", where)
    return ProjectRequirement(
        name=name,
        versions=_parse(VersionRange, _read_text(value, "version", where) or "*", f"{where}.version"),
        remote=None if remote is None else _parse(parse_remote_name, remote, f"{where}.remote"),
        build=_read_text(value, "build", where),
        strength=check_strength(value.get("strength"), f"{where}.strength"),
        rename=_read_renames(value, where),
        foreign=_read_foreign(value, kinds, where) if kinds else None,
    )


def _read_foreign(value: dict[str, Any], kinds: list[str], where: str) -> Foreign:
    sources = {
        kind: _parse(_SOURCES[kind], _read_text(value, kind, where) or "", f"{where}.{kind}")
        for kind in kinds
    }
    air = sources.get("air")
    named = [one for kind, one in sources.items() if kind != "air"] or list(sources.values())
    if len(named) > 1:
        raise InvalidProjectError(
            f"two sources at once: {', '.join(kind for kind in kinds if kind != 'air')}",
            where=where,
            hint="keep one of them",
        )
    placeholder = _read_text(value, "placeholder", where)
    return Foreign(
        source=named[0],
        air=None if air is None else air.text,
        placeholder=None
        if placeholder is None
        else _parse(parse_placeholder, placeholder, f"{where}.placeholder"),
        superclass=_read_text(value, "superclass", where),
        license=_read_text(value, "license", where),
        base=_read_text(value, "base", where),
    )


def check_strength(strength: Any, where: str) -> float | None:
    """Returns a strength that the project may ask for. Raises InvalidProjectError."""
    if strength is None:
        return None
    if (
        isinstance(strength, bool)
        or not isinstance(strength, int | float)
        or not abs(strength) <= MAX_STRENGTH
    ):
        raise InvalidProjectError(
            f"not a strength: {str(strength)[:40]!r}",
            where=where,
            hint=f"write a number between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}",
        )
    return float(strength)


def _read_renames(value: dict[str, Any], where: str) -> Mapping[Placeholder, Placeholder]:
    place = f"{where}.rename"
    return {
        _parse(parse_placeholder, old, place): _parse(parse_placeholder, new, place)
        for old, new in _read_table(value, "rename", where).items()
        if isinstance(new, str) or _refuse_type(new, "text", place)
    }


def _read_address(name: str, uri: Any) -> str:
    where = f"remotes.{name}"
    if not isinstance(uri, str):
        _refuse_type(uri, "an address such as file:///srv/concepts", where)
    _parse(refuse_credentials, uri, where)
    _parse(lambda address: find_remote_row(address).check(address), uri, where)
    return str(uri)


def _read_table(document: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        _refuse_type(value, "a table", f"{where}.{key}".lstrip("."))
    return dict(value)


def _read_text(table: dict[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not (isinstance(value, str) and value):
        _refuse_type(value, "text", f"{where}.{key}")
    return value


def _refuse_type(value: Any, wanted: str, where: str) -> bool:
    raise InvalidProjectError(f"{str(value)[:80]!r} is not {wanted}", where=where)


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise InvalidProjectError(
                f"{PROJECT_FILE} has no key {key[:80]!r} here",
                where=where or None,
                hint=suggest_nearest(key, known) or f"known here: {', '.join(known)}",
            )


def _parse(read: Callable[[str], Any], text: str, where: str) -> Any:
    try:
        return read(text)
    except ConceptryError as error:
        raise InvalidProjectError(error.message, hint=error.hint, where=where) from error
