"""What is known of files that lie in somebody's own folders: one document in the store for each such folder.

Nothing here reads a model: ``registry/adoption.py`` looks at them, ``adoption_hashing.py`` hashes them and
``adoption_use.py`` makes versions of them. A listing reads this without pydantic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IntegrityError
from conceptry.names import ConceptName
from conceptry.registry.file_reading import is_folder, names_in, read_small_file
from conceptry.registry.files import remove_file, write_file
from conceptry.registry.paths import Layout
from conceptry.registry.places import read_place
from conceptry.registry.store import Store

State = Literal["pending", "hashed", "ready", "missing", "unreadable", "recognised", "left_out"]

_LIMIT_BYTES: Final = 512 << 20
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedFile:
    """One file of a collection; plain values, as the document has them."""

    path: str
    """As seen from the collection's folder."""

    name: str
    """The second half of its concept's name."""

    stamp: tuple[int, ...]
    """What the system said of it: size, inode, times of its last changes in nanoseconds."""

    beside: tuple[tuple[str, int, int], ...] = ()
    """Notes and preview beside it, with size and time."""

    header: str = ""
    """Digest of its header: with its size, what a file is known by until it is hashed."""

    kind: str = ""
    dialect: str | None = None
    family: str | None = None
    """By its shapes where these are certain, else by what is said beside it, else by its shapes."""

    stored: bool = False
    """Whether files of its kind can be imported."""

    words: tuple[str, ...] = ()
    title: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """What is said beside it: ids, hashes, the name of its base. Nobody checked it."""

    preview: str | None = None
    doubts: tuple[tuple[str, str, str], ...] = ()
    """Field, the value that is taken, and why it is in doubt."""

    remarks: tuple[str, ...] = ()
    known_as: str = ""
    """Where it lay when a person was asked about it, if it moved since."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    """What a person wrote into ``adopt.toml``."""

    fault: str | None = None
    missing: bool = False
    sha256: str | None = None
    data_sha256: str | None = None
    """Of the bytes after the header: the first twelve digits are AutoV3."""

    made: tuple[str, str] | None = None
    """Of what a version was made, and the version."""

    @property
    def size_bytes(self) -> int:
        """Its size when it was last looked at."""
        return self.stamp[0]

    @property
    def base(self) -> str | None:
        """The family that it is taken for, the person's word first."""
        return str(self.answers["base"]) or None if "base" in self.answers else self.family

    @property
    def state(self) -> State:
        """How far it is. ``hashed`` can be used; ``ready`` was."""
        if self.answers.get("skip"):
            return "left_out"
        if self.missing:
            return "missing"
        if self.fault is not None:
            return "unreadable"
        if not self.stored:
            return "recognised"
        if self.sha256 is None:
            return "pending"
        return "hashed" if self.made is None else "ready"

    def has_hash(self, prefix: str) -> bool:
        """Returns whether SHA-256, AutoV2 or AutoV3 of the file, measured or claimed, begins with these digits."""
        claimed = self.claims.get("hashes", {})
        known = [self.sha256, self.data_sha256, *claimed.values()]
        return any(value and (value.startswith(prefix) or prefix.startswith(value)) for value in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """One adopted folder."""

    folder: Path
    namespace: str
    files: tuple[AdoptedFile, ...] = ()

    def name(self, file: AdoptedFile) -> ConceptName:
        """Returns the name of the file's concept."""
        return ConceptName(self.namespace, file.name)


def identify_folder(folder: Path) -> Digest:
    """Returns the digest that stands for a folder's path."""
    return Digest.of_bytes(str(folder).encode("utf-8", "surrogateescape"))


def read_collection(layout: Layout, folder: Path) -> Collection | None:
    """Returns what is known of an adopted folder, None if it is not adopted. Raises IntegrityError, StoreError."""
    return _read(layout.adopted_folder(identify_folder(folder)))


def read_collections(layout: Layout) -> tuple[Collection, ...]:
    """Returns all adopted folders in order of path. Raises IntegrityError, StoreError."""
    found = [_read(layout.adopted_entry(entry)) for entry in names_in(layout.adopted)]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: str(one.folder)))


def write_collection(store: Store, collection: Collection) -> None:
    """Keeps what is known of a folder, in the place of what was known before. Raises StoreError."""
    store.prepare_for_writing()
    document = {
        "schema": _SCHEMA,
        "folder": str(collection.folder),
        "namespace": collection.namespace,
        "files": [_to_row(file) for file in sorted(collection.files, key=lambda file: file.path)],
    }
    data = (json.dumps(document, separators=(",", ":")) + "\n").encode("ascii")
    target = store.layout.adopted_folder(identify_folder(collection.folder))
    if read_small_file(target, _LIMIT_BYTES) != data:
        write_file(target, data, temporary=store.layout.temporary(), replace=True)


def forget_collection(store: Store, folder: Path) -> bool:
    """Returns whether the folder was adopted, which it is no longer; its files stay as they are. Raises StoreError."""
    return remove_file(store.layout.adopted_folder(identify_folder(folder)))


def find_adopted(layout: Layout, name: ConceptName) -> tuple[Collection, AdoptedFile] | None:
    """Returns the adopted file of that name, None if there is none. Raises IntegrityError, StoreError."""
    if not is_folder(layout.adopted):
        return None
    for collection in read_collections(layout):
        if collection.namespace == name.namespace:
            for file in collection.files:
                if file.name == name.name:
                    return collection, file
    return None


def replace_files(collection: Collection, files: Iterable[AdoptedFile]) -> Collection:
    """Returns the collection with these files in the place of those at the same paths."""
    by_path = {file.path: file for file in (*collection.files, *files)}
    ordered = tuple(by_path[path] for path in sorted(by_path))
    return Collection(folder=collection.folder, namespace=collection.namespace, files=ordered)


def _to_row(file: AdoptedFile) -> dict[str, Any]:
    """Returns the values that are no defaults, so that thousands of files stay a short document."""
    return {key: value for key, value in asdict(file).items() if value not in (None, "", (), {}, False)}


def _read(path: Path) -> Collection | None:
    data = read_small_file(path, _LIMIT_BYTES)
    if data is None:
        return None
    try:
        document = json.loads(data)
        if document["schema"] != _SCHEMA:
            raise ValueError(f"schema {document['schema']}")
        return Collection(
            folder=read_place(document["folder"]),
            namespace=document["namespace"],
            files=tuple(_from_row(row) for row in document["files"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ConceptryError) as error:
        raise IntegrityError(
            f"{str(path)!r} is damaged: {error}", hint="move it away, then adopt the folder again"
        ) from error


def _from_row(row: dict[str, Any]) -> AdoptedFile:
    for key in ("stamp", "words", "remarks", "made"):
        if key in row:
            row[key] = tuple(row[key])
    for key in ("beside", "doubts"):
        if key in row:
            row[key] = tuple(map(tuple, row[key]))
    return AdoptedFile(**row)
