"""Where everything lies: the only module that builds paths below a store or a directory remote.

Every path is made of typed values (digests, names, versions, tags) and of names drawn here at random; no text that
came from elsewhere ever becomes part of one. What lies elsewhere is in ``registry/places.py``, and
``tests/registry/test_paths.py`` holds all other modules to building no path. It is long because a layout is one table.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from conceptry.digests import Digest
from conceptry.errors import InvalidNameError
from conceptry.names import ConceptName, Namespace, Tag, Version, parse_namespace, parse_tag, parse_version
from conceptry.registry.processes import own_mark

ItemKind = Literal["blob", "manifest", "record"]

HOME_VARIABLE: Final = "CONCEPTRY_HOME"
CHANGE: Final = "change"
"""What the names of leases end with that only say that references are being changed."""

_MOVE_DIGITS: Final = 8
_SEPARATOR: Final = os.sep
_ENTRY: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,126}", re.ASCII)


def choose_home() -> Path:
    """Returns the user's store: ``CONCEPTRY_HOME``, else the platform's folder for user data."""
    chosen = os.environ.get(HOME_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_path  # here and below: a listing starts in milliseconds without these

    return user_data_path("conceptry", appauthor=False)


def locate_entry(folder: Path, name: str) -> Path:
    """Returns what lies in a folder under a name that listing it gave. Raises InvalidNameError for any other text."""
    if name in ("", ".", "..") or "/" in name or _SEPARATOR in name:
        raise InvalidNameError(f"not a name in a folder: {name[:80]!r}")
    return folder / name


def _check_entry(entry: str) -> str:
    if _ENTRY.fullmatch(entry) is None:
        raise InvalidNameError(f"not a name that was drawn here: {entry[:80]!r}")
    return entry


def draw_name(count_bytes: int) -> str:
    """Returns a new name of so many random bytes, in hexadecimal digits."""
    import secrets

    return secrets.token_hex(count_bytes)


def name_version_file(version: Version) -> str:
    """Returns the file name of a version: upper-case letters escaped, so that no disk merges ``-RC`` and ``-rc``."""
    text = str(version)
    if text == text.lower():
        return text
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in text)


@lru_cache(maxsize=4096)  # most concepts have the same few
def read_version_file_name(name: str) -> Version:
    """Returns the version whose file is called ``name``. Raises InvalidNameError."""
    head, *escaped = name.split("_")
    version = parse_version(head + "".join(part[:1].upper() + part[1:] for part in escaped))
    if name_version_file(version) != name:
        raise InvalidNameError(f"not a version's file: {name[:80]!r}")
    return version


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one store, or of one directory remote: both are laid out alike."""

    root: Path

    # --- what the store is -------------------------------------------------------------------------------------

    @property
    def marker(self) -> Path:
        """The file that says which format the store has."""
        return self.root / "store.json"

    @property
    def config(self) -> Path:
        """The user's remotes and named bases."""
        return self.root / "config.toml"

    @property
    def index(self) -> Path:
        """The SQLite index, which can be deleted at any time."""
        return self.root / "index.sqlite"

    @property
    def checks(self) -> Path:
        """The SQLite file of blobs that were hashed, which can be deleted at any time."""
        return self.root / "checks.sqlite"

    @property
    def generation(self) -> Path:
        """The file that is written anew before references change; the index names the one it is of."""
        return self.root / "generation"

    @property
    def refs_lock(self) -> Path:
        """The lock held while references and index change."""
        return self.root / "locks" / "refs.lock"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders right below the root that hold contents; others must not be able to write there."""
        below = (
            self.blobs,
            self.manifests,
            self.records,
            self.temporaries,
            self.partials,
            self.refs,
            self.roots,
        )
        return (*below, self.leases, self.trash, self.blobs.parent, self.manifests.parent)

    @property
    def collection_lock(self) -> Path:
        """The lock held while garbage is collected."""
        return self.root / "locks" / "collection.lock"

    # --- contents ----------------------------------------------------------------------------------------------

    @property
    def blobs(self) -> Path:
        """The folder of all blobs."""
        return self.root / "blobs" / "sha256"

    def blob(self, digest: Digest) -> Path:
        """The bytes called ``digest``."""
        return self.root.joinpath("blobs", "sha256", digest.hex)  # one join: thousands are looked at

    @property
    def manifests(self) -> Path:
        """The folder of all manifests."""
        return self.root / "manifests" / "sha256"

    def manifest(self, digest: Digest) -> Path:
        """The manifest called ``digest``."""
        return self.root.joinpath("manifests", "sha256", digest.hex)

    @property
    def records(self) -> Path:
        """The folder of all training records."""
        return self.root / "records"

    def record(self, manifest: Digest) -> Path:
        """What training left beside a version: machine, time, durations."""
        return self.records / f"{manifest.hex}.json"

    @property
    def temporaries(self) -> Path:
        """The folder of files that are being written."""
        return self.root / "tmp"

    def temporary_entry(self, entry: str) -> Path:
        """A file that is being written as their folder lists it. Raises InvalidNameError."""
        return self.temporaries / _check_entry(entry)

    @property
    def partials(self) -> Path:
        """The folder of what interrupted downloads left."""
        return self.root / "partial"

    def partial(self, digest: Digest) -> Path:
        """The bytes of a blob that had arrived when a download was interrupted."""
        return self.partials / digest.hex

    def arriving(self, digest: Digest) -> Path:
        """A new private name for the bytes of a blob that are arriving; it says which process drew it."""
        return self.partials / f"{digest.hex}-{own_mark()}-{draw_name(8)}"

    def partial_entry(self, entry: str) -> Path:
        """A file of an interrupted download as their folder lists it. Raises InvalidNameError."""
        return self.partials / _check_entry(entry)

    def temporary(self) -> Path:
        """A new private name, on the same file system as everything else; it says which process drew it."""
        return self.temporaries / f"{own_mark()}-{draw_name(8)}"

    # --- projects ----------------------------------------------------------------------------------------------

    @property
    def projects(self) -> Path:
        """The folder of copies of every lock that was ever synced, a folder for each project."""
        return self.root / "projects"

    def project(self, project: Digest) -> Path:
        """The copies of one project's locks; the project is named by the digest of its path."""
        return self.projects / project.hex

    def kept_lock(self, project: Digest, lock: Digest) -> Path:
        """The copy of one lock, named by the digest of its bytes."""
        return self.project(project) / f"{lock.hex}.json"

    # --- as text: an index is made of thousands of these, and a Path costs as much as opening the file --------------

    def manifest_text(self, digest: Digest) -> str:
        """``manifest`` as text."""
        return _SEPARATOR.join((str(self.root), "manifests", "sha256", digest.hex))

    def blob_text(self, digest: Digest) -> str:
        """``blob`` as text."""
        return _SEPARATOR.join((str(self.root), "blobs", "sha256", digest.hex))

    def versions_text(self, name: ConceptName) -> str:
        """``versions`` as text."""
        return _SEPARATOR.join((str(self.root), "refs", name.namespace, name.name, "versions"))

    def version_text(self, name: ConceptName, version: Version) -> str:
        """``version`` as text."""
        return _SEPARATOR.join((self.versions_text(name), name_version_file(version)))

    def yanks_text(self, name: ConceptName) -> str:
        """``yanks`` as text."""
        return _SEPARATOR.join((str(self.root), "refs", name.namespace, name.name, "yanks"))

    # --- references --------------------------------------------------------------------------------------------

    @property
    def refs(self) -> Path:
        """The folder of all references."""
        return self.root / "refs"

    def namespace(self, namespace: Namespace) -> Path:
        """The folder of a namespace."""
        return self.refs / parse_namespace(namespace)

    def concept(self, name: ConceptName) -> Path:
        """The folder of a concept."""
        return self.root.joinpath("refs", name.namespace, name.name)

    @property
    def catalog(self) -> Path:
        """What people choose concepts by, for readers that cannot list folders."""
        return self.root / "catalog.json"

    def version_list(self, name: ConceptName) -> Path:
        """A concept's versions, yanks and tags, for readers that cannot list folders."""
        return self.concept(name) / "versions.json"

    def versions(self, name: ConceptName) -> Path:
        """The folder of a concept's versions."""
        return self.root.joinpath("refs", name.namespace, name.name, "versions")

    def version(self, name: ConceptName, version: Version) -> Path:
        """The file that says which manifest a version is."""
        return self.root.joinpath("refs", name.namespace, name.name, "versions", name_version_file(version))

    def yanks(self, name: ConceptName) -> Path:
        """The folder of reasons why versions should not be chosen anew."""
        return self.root.joinpath("refs", name.namespace, name.name, "yanks")

    def yank(self, name: ConceptName, version: Version) -> Path:
        """The file that says why nobody should choose a version anew."""
        return self.yanks(name) / name_version_file(version)

    def tags(self, name: ConceptName) -> Path:
        """The folder of a concept's tags."""
        return self.concept(name) / "tags"

    def tag(self, name: ConceptName, tag: Tag) -> Path:
        """The folder of a tag's moves; the last one is where it points."""
        return self.tags(name) / parse_tag(tag)

    def tag_move(self, name: ConceptName, tag: Tag, number: int) -> Path:
        """The file of one move of a tag."""
        return self.tag(name, tag) / f"{number:0{_MOVE_DIGITS}d}"

    # --- what others need, and what they said --------------------------------------------------------------------

    @property
    def roots(self) -> Path:
        """The folder of copies of what files outside the store need."""
        return self.root / "roots"

    def root_copy(self, path_digest: Digest) -> Path:
        """What the file needs whose path has this digest."""
        return self.roots / f"{path_digest.hex}.json"

    def memory(self, place_digest: Digest) -> Path:
        """What a remote said of a concept; both together have this digest."""
        return self.root / "remotes" / f"{place_digest.hex}.json"

    @property
    def adopted(self) -> Path:
        """The folder of what is known of collections that lie elsewhere, a file for each."""
        return self.root / "adopted"

    def adopted_folder(self, folder: Digest) -> Path:
        """What is known of the collection whose path has this digest."""
        return self.adopted / f"{folder.hex}.json"

    def adopted_entry(self, entry: str) -> Path:
        """What is known of a collection, as the folder lists it. Raises InvalidNameError."""
        return self.adopted_folder(Digest(entry.removesuffix(".json")))

    @property
    def leases(self) -> Path:
        """The folder of what running operations are about to need."""
        return self.root / "leases"

    def lease(self) -> Path:
        """A new name for the lease of an operation; it says which process drew it."""
        return self.leases / f"{own_mark()}-{draw_name(8)}"

    def change_mark(self) -> Path:
        """A new name for the mark of a change of references in progress, among the leases."""
        return self.leases / f"{own_mark()}-{draw_name(8)}-{CHANGE}"

    def lease_entry(self, entry: str) -> Path:
        """A lease as their folder lists it. Raises InvalidNameError."""
        return self.leases / _check_entry(entry)

    # --- what was taken away -----------------------------------------------------------------------------------

    @property
    def trash(self) -> Path:
        """The folder of what was taken away and can come back."""
        return self.root / "trash"

    @property
    def trashed_refs(self) -> Path:
        """The folder of removed references, by namespace."""
        return self.trash / "refs"

    def trashed_namespace(self, namespace: Namespace) -> Path:
        """The folder of removed references of a namespace, by name."""
        return self.trashed_refs / parse_namespace(namespace)

    def trashed_concept(self, name: ConceptName) -> Path:
        """The folder of removed references of a concept, by version."""
        return self.trashed_refs / name.namespace / name.name

    def trashed_versions(self, name: ConceptName, version: Version) -> Path:
        """The folder of what was removed under this version."""
        return self.trashed_concept(name) / name_version_file(version)

    def trashed_version(self, name: ConceptName, version: Version, time_ns: int) -> Path:
        """A removed reference; the name sorts by time."""
        return self.trashed_versions(name, version) / f"{time_ns:020d}-{draw_name(4)}"

    def trashed_entry(self, name: ConceptName, version: Version, entry: str) -> Path:
        """A removed reference as the folder of them lists it. Raises InvalidNameError for what we did not put there."""
        return self.trashed_versions(name, version) / _check_entry(entry)

    @property
    def damaged(self) -> Path:
        """The folder of files whose bytes were not those of their names."""
        return self.trash / "damaged"

    def quarantined(self, digest: Digest) -> Path:
        """A new name for a file whose bytes are not ``digest`` although it was called so."""
        return self.damaged / f"{digest.hex}-{draw_name(8)}"

    def damaged_entry(self, entry: str) -> Path:
        """A damaged file as their folder lists it. Raises InvalidNameError."""
        return self.damaged / _check_entry(entry)

    @property
    def collections(self) -> Path:
        """The folder of what each garbage collection took away."""
        return self.trash / "collections"

    def collection(self, time_ns: int) -> Path:
        """A new file for what a garbage collection takes away; the name sorts by time."""
        return self.collections / f"{time_ns:020d}-{draw_name(4)}"

    def collection_entry(self, entry: str) -> Path:
        """What a garbage collection took away as their folder lists it. Raises InvalidNameError."""
        return self.collections / _check_entry(entry)

    def trashed_item(self, kind: ItemKind, digest: Digest) -> Path:
        """Where a blob, manifest or record lies after it was collected; found by its digest."""
        return self.trash / f"{kind}s" / digest.hex

    def item(self, kind: ItemKind, digest: Digest) -> Path:
        """Where a blob, manifest or record lies."""
        return {"blob": self.blob, "manifest": self.manifest, "record": self.record}[kind](digest)

    def items(self, kind: ItemKind) -> Path:
        """The folder of all blobs, manifests or records."""
        return {"blob": self.blobs, "manifest": self.manifests, "record": self.records}[kind]

    def trashed_items(self, kind: ItemKind) -> Path:
        """The folder of all collected blobs, manifests or records."""
        return self.trash / f"{kind}s"

    def describe(self, path: Path) -> str:
        """Returns ``path`` as seen from the root, for messages."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


KEYS: Final = Layout(Path("/"))
"""The same layout without a folder: ``describe`` gives the keys that web servers and buckets are asked by."""
