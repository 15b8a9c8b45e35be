"""Changes to a ``concepts.toml`` that leave everything else in it as it was: order, blanks and comments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

from conceptry.errors import ConflictError, NotFoundError, suggest_nearest
from conceptry.names import ConceptName, RemoteName
from conceptry.registry.files import STATE_MODE, write_file
from conceptry.registry.places import PROJECT_FILE, draw_name_beside
from conceptry.registry.project import Project, ProjectRequirement, parse_project
from conceptry.sources import SourceKind

if TYPE_CHECKING:
    from pathlib import Path

_CHOICES_OF_USE: Final = ("strength", "rename")
"""What stays said of a concept that was a file and is published now; a build was one of the file's."""

NEW_PROJECT: Final = """\
[project]

[concepts]

[remotes]
"""


def set_requirement(text: str, requirement: ProjectRequirement) -> str:
    """Returns the text with a requirement in it; one of that name keeps its line and what the new one leaves open.

    Of a file that is required as published from now on, how it is used is kept, and nothing of where it was.
    """
    document = _parse(text)
    rows = _table(document, "concepts")
    name = _find_key(rows, requirement.name)
    known = rows.get(name, {})
    kept = {} if isinstance(known, str) or requirement.foreign else dict(known)
    if _was_file(kept):
        kept = {key: value for key, value in kept.items() if key in _CHOICES_OF_USE}
    values = {**kept, **_describe(requirement)}
    rows[name] = values["version"] if list(values) == ["version"] else _inline(values)
    return _dump(document)


def drop_requirement(text: str, name: ConceptName) -> str:
    """Returns the text without the requirement of a concept. Raises NotFoundError with the nearest name."""
    document = _parse(text)
    rows = _table(document, "concepts")
    key = _find_key(rows, name)
    if key not in rows:
        raise NotFoundError(
            f"{PROJECT_FILE} does not require {name}",
            hint=suggest_nearest(str(name), rows) or "concepts tree shows what it requires",
        )
    del rows[key]
    return _dump(document)


def set_remote(text: str, name: RemoteName, uri: str) -> str:
    """Returns the text with the address of a remote in it. Raises ConflictError if the name is another address."""
    document = _parse(text)
    rows = _table(document, "remotes")
    known = rows.get(name)
    if known not in (None, uri):
        raise ConflictError(
            f"the remote {name!r} is {known} in {PROJECT_FILE} already", hint="choose another name"
        )
    rows[name] = uri
    return _dump(document)


def drop_remote(text: str, name: RemoteName) -> str:
    """Returns the text without a remote. Raises NotFoundError with the nearest name."""
    document = _parse(text)
    rows = _table(document, "remotes")
    if name not in rows:
        raise NotFoundError(
            f"{PROJECT_FILE} has no remote called {name!r}",
            hint=suggest_nearest(name, rows) or "concepts remote list shows them",
        )
    del rows[name]
    return _dump(document)


def set_about(text: str, **values: str | None) -> str:
    """Returns the text with the project's own name and base in it; None changes nothing."""
    document = _parse(text)
    rows = _table(document, "project")
    for key, value in values.items():
        if value is not None:
            rows[key] = value
    return _dump(document)


def write_project(folder: Path, text: str) -> Project:
    """Returns the project that the folder has from now on. Raises InvalidProjectError, StoreError; nothing half."""
    data = text.encode("utf-8")
    project = parse_project(data, folder)
    write_file(project.path, data, temporary=draw_name_beside(project.path), mode=STATE_MODE, replace=True)
    return project


def _was_file(values: Mapping[str, Any]) -> bool:
    return any(kind in values for kind in get_args(SourceKind))


def _describe(requirement: ProjectRequirement) -> dict[str, Any]:
    foreign = requirement.foreign
    values: dict[str, Any] = {}
    if foreign is not None:
        if foreign.air is not None:
            values["air"] = foreign.air
        values[foreign.source.kind] = str(foreign.source)
        for key in ("placeholder", "superclass", "license", "base"):
            values[key] = getattr(foreign, key)
    else:
        values["version"] = str(requirement.versions)
    values["remote"] = requirement.remote
    values["build"] = requirement.build
    values["strength"] = requirement.strength
    if requirement.rename:
        values["rename"] = _inline({str(old): str(new) for old, new in requirement.rename.items()})
    return {key: value for key, value in values.items() if value is not None}


def _find_key(rows: Any, name: ConceptName) -> str:
    """Returns how the file spells a concept's name: ``local`` may be left out."""
    return next((key for key in rows if _names(key, name)), str(name))


def _names(key: str, name: ConceptName) -> bool:
    return key == str(name) or (name.namespace == "local" and key == name.name)


def _parse(text: str) -> Any:
    import tomlkit

    return tomlkit.parse(text)


def _dump(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)


def _table(document: Any, key: str) -> Any:
    import tomlkit

    if key not in document:
        document[key] = tomlkit.table()
    return document[key]


def _inline(values: dict[str, Any]) -> Any:
    import tomlkit

    table = tomlkit.inline_table()
    table.update(values)
    return table
