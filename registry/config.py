"""The user's own settings in the store: remotes by name, and names for bases. Never credentials."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from conceptry.bases import FAMILY_BY_ID
from conceptry.errors import ConceptryError, ConflictError, NotFoundError, UsageError, suggest_nearest
from conceptry.names import RemoteName, parse_base_name, parse_remote_name
from conceptry.registry.file_reading import look_at, read_small_file
from conceptry.registry.files import write_file
from conceptry.registry.paths import Layout
from conceptry.registry.places import locate_base
from conceptry.registry.remotes import find_remote_row
from conceptry.registry.store import Store

_LIMIT_BYTES: Final = 1 << 20
_SECRET: Final = re.compile(r"token|secret|password|passwd|signature|credential|api_?key", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Config:
    """What ``config.toml`` says."""

    remotes: Mapping[RemoteName, str]
    """Addresses by name."""

    bases: Mapping[str, Path]
    """Places of bases by the names the user gave them."""


def read_config(layout: Layout) -> Config:
    """Returns the user's configuration, empty where there is none.

    Raises:
        UsageError: if the file is malformed; the place is named.
    """
    document = _parse(layout, _read_text(layout))
    try:
        remotes = {
            parse_remote_name(name): value["uri"] for name, value in _table(document, "remotes").items()
        }
        bases = {
            str(parse_base_name(name)): value["path"] for name, value in _table(document, "bases").items()
        }
        if not all(isinstance(value, str) for value in [*remotes.values(), *bases.values()]):
            raise TypeError
    except (ConceptryError, KeyError, TypeError) as error:
        raise _malformed(layout, str(error) or "an address is no text") from error
    return Config(remotes, {name: locate_base(path) for name, path in bases.items()})


def add_remote(store: Store, name: RemoteName | str, uri: str) -> None:
    """Adds a remote.

    Raises:
        UsageError: if the address is of no known kind, or carries a credential.
        ConflictError: if the name is another remote's.
    """
    checked = parse_remote_name(name)
    refuse_credentials(uri)
    find_remote_row(uri).check(uri)
    known = read_config(store.layout).remotes.get(checked)
    if known not in (None, uri):
        raise ConflictError(
            f"the remote {checked!r} is {known} already",
            hint=f"concepts remote remove {checked}, or another name",
        )
    _write_entry(store, "remotes", checked, {"uri": uri})


def remove_remote(store: Store, name: RemoteName | str) -> None:
    """Takes a remote out. Raises NotFoundError."""
    _remove_entry(store, "remotes", name, what="remote")


def add_base(store: Store, name: str, path: Path) -> None:
    """Gives a base a name.

    Raises:
        InvalidNameError, UsageError: for a name that is no name, or is a family's.
        NotFoundError: if nothing lies at ``path``.
        ConflictError: if the name is another base's.
    """
    checked = parse_base_name(name)
    if checked in FAMILY_BY_ID:
        raise UsageError(f"{checked!r} is the name of a base family", hint="choose another name")
    place = path.expanduser().absolute()
    if look_at(place) is None:
        raise NotFoundError(f"nothing lies at {str(place)!r}", hint="name a diffusers folder or a checkpoint")
    known = read_config(store.layout).bases.get(checked)
    if known not in (None, place):
        raise ConflictError(
            f"the base {checked!r} is {known} already",
            hint=f"concepts base remove {checked}, or another name",
        )
    _write_entry(store, "bases", checked, {"path": str(place)})


def remove_base(store: Store, name: str) -> None:
    """Takes a base's name away. Raises NotFoundError."""
    _remove_entry(store, "bases", name, what="base")


def _write_entry(store: Store, table: str, name: str, entry: dict[str, str]) -> None:
    import tomlkit

    store.prepare_for_writing()
    document = tomlkit.parse(_read_text(store.layout))
    if table not in document:
        document[table] = tomlkit.table(is_super_table=True)
    document[table][name] = entry
    _write_text(store, tomlkit.dumps(document))


def _remove_entry(store: Store, table: str, name: str, *, what: str) -> None:
    import tomlkit

    entries = _table(_parse(store.layout, _read_text(store.layout)), table)
    if name not in entries:
        raise NotFoundError(
            f"no {what} is called {name[:80]!r}",
            hint=suggest_nearest(name, entries) or f"concepts {what} list shows them",
        )
    document = tomlkit.parse(_read_text(store.layout))
    del document[table][name]
    _write_text(store, tomlkit.dumps(document))


def _read_text(layout: Layout) -> str:
    data = read_small_file(layout.config, _LIMIT_BYTES) or b""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(layout, str(error)) from error


def _write_text(store: Store, text: str) -> None:
    data = text.encode("utf-8")
    write_file(store.layout.config, data, temporary=store.layout.temporary(), mode=0o600, replace=True)


def _parse(layout: Layout, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _malformed(layout, str(error)) from error


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name, {})
    return value if isinstance(value, dict) else {}


def _malformed(layout: Layout, reason: str) -> UsageError:
    return UsageError(
        f"cannot read {str(layout.config)!r}: {reason}", hint="correct the file, or move it away"
    )


def refuse_credentials(uri: str) -> None:
    """Raises UsageError for an address with a user, a password or a key in it."""
    parts = urlsplit(uri)
    keys = [key for key, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or any(_SECRET.search(key) for key in keys):
        raise UsageError(
            "the address carries a credential, which would be kept in a file that is shared",
            hint="leave it out of the address",
        )
