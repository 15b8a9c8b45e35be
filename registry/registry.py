"""``Registry``: the user's store as one object, for the command line and for Python programs.

Light on purpose: what needs pydantic or sqlite_utils is imported by the methods that need it, so that a listing
starts in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from conceptry.names import Reference, RemoteName, Tag
from conceptry.registry import listing
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.files import is_folder
from conceptry.registry.listing import Filter, Listing
from conceptry.registry.refs import Resolved
from conceptry.registry.rows import ListedVersion
from conceptry.registry.store import Store, open_store

if TYPE_CHECKING:
    import sqlite3

    from conceptry.concepts import Concept
    from conceptry.digests import Digest
    from conceptry.manifest import Manifest
    from conceptry.registry.adopted_files import Collection
    from conceptry.registry.adoption import Adoption
    from conceptry.registry.adoption_hashing import Hashed
    from conceptry.registry.collection import Collected
    from conceptry.registry.doctor import Diagnosis
    from conceptry.registry.protocol import Remote, RemoteConcept
    from conceptry.registry.publish import Published
    from conceptry.registry.pulling import Pulled, PullOptions
    from conceptry.registry.reading import Shown
    from conceptry.registry.roots import Root
    from conceptry.registry.transfer import Pushed
    from conceptry.registry.trash import Item
    from conceptry.registry.verify import Finding
    from conceptry.registry.views import View

T = TypeVar("T")
ReferenceLike = Reference | str


class Registry:
    """The concepts on this machine, and the remotes they go to and come from.

    ``root`` is the store's folder, else ``CONCEPTRY_HOME``, else the platform's folder for user data. Opening reads
    one small file and writes nothing.

    Raises:
        StoreError: if the store was written by a newer version, or others could have changed it.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        project_remotes: Callable[[], Mapping[RemoteName, str]] | None = None,
    ) -> None:
        self.store: Store = open_store(root)
        self._project_remotes = project_remotes

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self.store.root

    # --- reading -----------------------------------------------------------------------------------------------

    def resolve(self, reference: ReferenceLike) -> Resolved:
        """Returns the version that a reference means here, and the digest of its manifest.

        That of an adopted file is made when it is first asked for.

        Raises:
            NotFoundError: if there is none.
            UsageError: if it is an adopted file that was never hashed, or does not tell what must be known.
        """
        from conceptry.registry.resolution import resolve_reference

        wanted = to_local(reference)
        if is_folder(self.store.layout.adopted):
            from conceptry.registry.adoption_use import settle_adopted

            wanted = settle_adopted(self.store, wanted)
        return resolve_reference(self.store.layout, wanted)

    def manifest(self, reference: ReferenceLike) -> Manifest:
        """Returns the manifest of a version. Raises NotFoundError, IntegrityError."""
        from conceptry.registry.manifests import read_manifest

        return read_manifest(self.store.layout, self.resolve(reference))

    def get(self, reference: ReferenceLike) -> Concept:
        """Returns a concept that can be used: every byte of it was hashed since it last changed.

        Raises:
            NotFoundError: if the store has no such version.
            IntegrityError: if a byte of it changed or is missing; the file and its place are named.
        """
        from conceptry.registry.reading import read_concept

        return read_concept(self.store, self.resolve(reference))

    def show(self, reference: ReferenceLike) -> Shown:
        """Returns what the store knows of a version: manifest, digest, tags, other versions, training record."""
        from conceptry.registry.reading import describe_version

        return describe_version(self.store, self.resolve(reference))

    def list(self, wanted: Filter | None = None) -> tuple[ListedVersion, ...]:
        """Returns the concepts in order of name, each at its latest version unless ``wanted`` says all."""
        return self.survey(wanted).rows

    def survey(self, wanted: Filter | None = None) -> Listing:
        """Returns the rows of ``list``, at most ``wanted.limit`` of them, and how many there are without it."""
        chosen = wanted or Filter()
        empty = Listing((), 0)
        return self._read(lambda index: listing.query_listing(index, chosen), empty)

    def lines(self, wanted: Filter | None = None) -> tuple[str, ...]:
        """Returns what people are shown of the rows of ``list``, without its limit; see ``rows.describe_row``."""
        chosen = wanted or Filter()
        return self._read(lambda index: listing.query_lines(index, chosen), ())

    def search(self, words: str, wanted: Filter | None = None) -> tuple[ListedVersion, ...]:
        """Returns the concepts whose names, titles, tags, placeholders or descriptions have all ``words``.

        A digest instead of words finds what has that manifest, that file or those tensors.
        """
        return self.find(words, wanted).rows

    def find(self, words: str, wanted: Filter | None = None) -> Listing:
        """Returns the rows of ``search``, at most ``wanted.limit`` of them, and how many there are without it."""
        chosen = wanted or Filter()
        return self._read(lambda index: listing.query_search(index, words, chosen), Listing((), 0))

    def find_hash(self, digits: str, wanted: Filter | None = None) -> Listing:
        """Returns the rows that have a manifest, a file or tensors whose SHA-256 begins with these digits."""
        chosen = wanted or Filter()
        return self._read(lambda index: listing.query_digest(index, digits, chosen), Listing((), 0))

    def find_tensors(self, digests: Iterable[Digest]) -> tuple[tuple[str, str], ...]:
        """Returns each version here (``ns/name@1.0.0``) that has one of these tensor digests, and which."""
        wanted = tuple(digests)
        return self._read(lambda index: listing.find_tensors(index, wanted), ())

    def verify(
        self, reference: ReferenceLike | None = None, *, on_event: OnEvent = ignore_event
    ) -> tuple[Finding, ...]:
        """Returns everything that is wrong with the store, or with one concept; nothing when every byte is right."""
        from conceptry.registry.verify import verify_store

        only = None if reference is None else self.resolve(reference).reference
        return verify_store(self.store, only, on_event=on_event)

    # --- changing ----------------------------------------------------------------------------------------------

    def publish(self, folder: Path, *, on_event: OnEvent = ignore_event) -> Published:
        """Returns the version that a folder with a ``concept.json`` became; the same contents again change nothing.

        Raises:
            NotFoundError: if there is no ``concept.json``.
            IntegrityError: if a file is not what the manifest says.
            ConflictError: if the version exists with other contents.
            StoreError: if the store cannot be written.
        """
        from conceptry.registry.publish import publish_folder

        return publish_folder(self.store, folder, on_event=on_event)

    def adopt(
        self, folder: Path, *, namespace: str | None = None, on_event: OnEvent = ignore_event
    ) -> Adoption:
        """Returns what a folder of models holds, which is listed from now on; nothing is copied or changed.

        Raises:
            NotFoundError: if there is no such folder.
            UsageError: if its ``adopt.toml`` is malformed.
        """
        from conceptry.registry.adoption import DEFAULT_NAMESPACE, adopt_collection

        return adopt_collection(
            self.store, folder, namespace=namespace or DEFAULT_NAMESPACE, on_event=on_event
        )

    def hash_adopted(self, collection: Collection, *, on_event: OnEvent = ignore_event) -> Hashed:
        """Returns the collection after every pending file was hashed; what is done stays done when it is stopped."""
        from conceptry.registry.adoption_hashing import hash_collection

        return hash_collection(self.store, collection, on_event=on_event)

    def adopted(self) -> tuple[Collection, ...]:
        """Returns the folders that were adopted, and what is known of their files. Raises IntegrityError."""
        if not is_folder(self.store.layout.adopted):
            return ()
        from conceptry.registry.adopted_files import read_collections

        return read_collections(self.store.layout)

    def forget_adopted(self, folder: Path) -> bool:
        """Returns whether the folder was adopted, which it is no longer; versions made of its files stay."""
        from conceptry.registry.adopted_files import forget_collection

        return forget_collection(self.store, folder)

    def remove(self, reference: ReferenceLike) -> Resolved:
        """Returns the version that was taken out of the listing; ``restore`` brings it back.

        Raises:
            NotFoundError: if the store has no such version.
            UsageError: if the concept has several versions and the reference does not say which.
        """
        from conceptry.registry.removal import remove_version

        return remove_version(self.store, to_local(reference))

    def restore(self, reference: ReferenceLike) -> Resolved:
        """Returns a removed version (``ns/name@1.2.0``), which is listed again. Raises NotFoundError, ConflictError."""
        from conceptry.registry.removal import restore_version

        return restore_version(self.store, to_local(reference))

    def tag(self, reference: ReferenceLike, tag: Tag) -> Resolved:
        """Returns the version that ``tag`` points to from now on. Raises NotFoundError, ConflictError."""
        from conceptry.registry.tags import move_tag, read_tag

        version = self.resolve(reference)
        self.store.prepare_for_writing()
        layout, name = self.store.layout, version.reference.concept
        move_tag(layout, name, tag, version, expected=read_tag(layout, name, tag))
        return version

    def yank(self, reference: ReferenceLike, reason: str | None) -> Reference:
        """Returns the version that ``latest`` and ranges pass over from now on, here or on the remote it names.

        It stays and can be named. None as the reason takes the mark back.

        Raises:
            NotFoundError: if there is no such version, or it was not yanked.
            UsageError: if the reference names no version, or the reason is empty or long.
        """
        from conceptry.errors import UsageError
        from conceptry.registry.removal import yank_version

        wanted = to_reference(reference)
        if wanted.remote is None:
            return yank_version(self.store, wanted, reason).reference
        if wanted.version is None:
            raise UsageError(f"{wanted} names no version", hint="write remote::namespace/name@1.2.3")
        self.open_remote(wanted.remote).yank(wanted.concept, wanted.version, reason)
        return wanted

    def examine(self, *, dry_run: bool = False, on_event: OnEvent = ignore_event) -> tuple[Diagnosis, ...]:
        """Returns everything that was wrong with the store, and what was done about it; see ``registry/doctor.py``.

        Bytes that are missing come back from the trash or from the remotes that are configured.
        """
        from conceptry.registry.doctor import examine_store

        return examine_store(self.store, fetch=self._fetch, dry_run=dry_run, on_event=on_event)

    def _fetch(self, version: Resolved) -> bool:
        """Puts a version back from the first remote that has it with the same digest; what fails is asked no more."""
        from conceptry.errors import ConceptryError

        name, number = version.reference.concept, version.reference.version
        for remote in self.remotes() if number else ():
            try:
                if number is None or self.open_remote(remote).read_version(name, number) != version.digest:
                    continue
                self.pull(Reference(name, number, remote))
            except ConceptryError:
                continue
            return True
        return False

    def make_view(
        self,
        references: Iterable[ReferenceLike],
        *,
        program: str,
        folder: Path,
        link: str | None = None,
        lossy: bool = False,
    ) -> View:
        """Returns what changed in a folder that has exactly these concepts, as a program reads them.

        ``link`` places stored files as they are (``copy``, ``hard``, ``symbolic``) instead of converting them.

        Raises:
            UsageError, IncompatibleError: if the program cannot read one of them.
            ConflictError: if a file of somebody else is in the way.
        """
        from conceptry.errors import UsageError
        from conceptry.registry.views import LINKS, ViewSettings, make_view

        if link is not None and link not in LINKS:
            raise UsageError(
                f"no way to place files is called {link[:80]!r}", hint=f"known: {', '.join(LINKS)}"
            )
        settings = ViewSettings(program=program, folder=folder, link=link, lossy=lossy)
        return make_view([self.get(reference) for reference in references], settings)

    def collect_garbage(self, *, grace_seconds: float | None = None, dry_run: bool = False) -> Collected:
        """Returns what nothing needs and nobody touched for the grace period, which is in the trash now.

        Raises:
            IntegrityError: if a reference, manifest or lock copy is damaged; nothing is collected then.
            StoreError: if the store cannot be written.
        """
        from conceptry.registry.collection import GRACE_SECONDS, collect_garbage

        grace = GRACE_SECONDS if grace_seconds is None else grace_seconds
        return collect_garbage(self.store, grace_seconds=grace, dry_run=dry_run)

    def undo_collection(self) -> tuple[Item, ...]:
        """Returns what the last collection had taken, which is back. Raises NotFoundError, StoreError."""
        from conceptry.registry.trash import undo_collection

        return undo_collection(self.store.layout)

    def empty_trash(self, *, dry_run: bool = False) -> tuple[int, int]:
        """Returns how many files of the trash are gone for good, and their bytes. Raises IntegrityError, StoreError."""
        from conceptry.registry.collection import delete_trash

        return delete_trash(self.store, dry_run=dry_run)

    def roots(self) -> tuple[Root, ...]:
        """Returns what files outside the store need, by their paths. Raises IntegrityError."""
        from conceptry.registry.roots import list_roots

        return list_roots(self.store.layout)

    def forget_root(self, path: Path, *, dry_run: bool = False) -> Root:
        """Returns what a lock or composition needed, or all in a folder; it is kept no longer. Raises NotFoundError."""
        from conceptry.registry.roots import forget_root

        return forget_root(self.store, path, dry_run=dry_run)

    # --- remotes -----------------------------------------------------------------------------------------------

    def push(
        self, reference: ReferenceLike, remote: RemoteName | str, *, on_event: OnEvent = ignore_event
    ) -> Pushed:
        """Returns the version as it lies on the remote now; pushing it again sends nothing.

        ``remote`` is a name of the configuration or an address such as ``file:///path``. A reference by tag moves
        that tag on the remote too.

        Raises:
            NotFoundError: for an unknown version or remote.
            ConflictError: if the remote has the version with other contents, or its tag was moved meanwhile.
            RemoteError: if the remote does not answer.
        """
        from conceptry.registry.transfer import push_version

        return push_version(self.store, to_local(reference), self.open_remote(remote), on_event=on_event)

    def pull(
        self,
        reference: ReferenceLike,
        *,
        options: PullOptions | None = None,
        on_event: OnEvent = ignore_event,
    ) -> Pulled:
        """Returns the version that ``remote::namespace/name`` means, now complete and checked in this store.

        Raises:
            NotFoundError: for an unknown remote, concept or version.
            IntegrityError: if the remote's bytes are not what the manifest says; nothing is listed then.
            ConflictError: if the version is here already with other contents.
            IdentityChangedError: if the remote contradicts what it said before; ``options`` may allow it.
            RemoteError: if the remote does not answer.
        """
        return self.pull_many([reference], options=options, on_event=on_event)[0]

    def pull_many(
        self,
        references: Iterable[ReferenceLike],
        *,
        options: PullOptions | None = None,
        on_event: OnEvent = ignore_event,
    ) -> tuple[Pulled, ...]:
        """Returns the versions that the references mean, each once, several on their way at the same time.

        Raises:
            UsageError: if a reference names no remote.
            NotFoundError, IntegrityError, ConflictError, IdentityChangedError, RemoteError: as ``pull``.
        """
        from conceptry.registry.pulling import PullOptions, pull_versions

        opened: dict[RemoteName, Remote] = {}
        wanted: list[tuple[Reference, Remote]] = []
        for reference in dict.fromkeys(map(to_reference, references)):
            name = _require_remote(reference, "pull")
            if name not in opened:
                opened[name] = self.open_remote(name)
            wanted.append((reference, opened[name]))
        return pull_versions(self.store, wanted, options=options or PullOptions(), on_event=on_event)

    def search_remote(
        self, remote: RemoteName | str, words: str = "", *, limit: int | None = None
    ) -> tuple[RemoteConcept, ...]:
        """Returns the concepts on a remote that have all words; what it says of them is not checked.

        Raises:
            UsageError: if that kind of remote cannot be searched.
            RemoteError: if the remote does not answer.
        """
        from conceptry.registry.protocol import DEFAULT_SEARCH_LIMIT

        return tuple(self.open_remote(remote).search(words, limit=limit or DEFAULT_SEARCH_LIMIT))

    def open_remote(self, remote: RemoteName | str) -> Remote:
        """Returns the remote of that name or address. Raises NotFoundError, UsageError."""
        from conceptry.registry.remotes import open_remote

        return open_remote(remote, self.remotes())

    def remotes(self) -> Mapping[RemoteName, str]:
        """Returns remotes' addresses by name: the user's, and over them the project's. Raises UsageError."""
        from conceptry.registry.config import read_config

        own = read_config(self.store.layout).remotes
        return own if self._project_remotes is None else {**own, **self._project_remotes()}

    def add_remote(self, name: RemoteName, uri: str) -> None:
        """Adds a remote to the user's configuration. Raises UsageError, ConflictError, StoreError."""
        from conceptry.registry.config import add_remote

        add_remote(self.store, name, uri)

    def remove_remote(self, name: RemoteName) -> None:
        """Takes a remote out of the user's configuration. Raises NotFoundError, StoreError."""
        from conceptry.registry.config import remove_remote

        remove_remote(self.store, name)

    # --- bases -------------------------------------------------------------------------------------------------

    def bases(self) -> Mapping[str, Path]:
        """Returns the places of the bases that the user gave names. Raises UsageError."""
        from conceptry.registry.config import read_config

        return read_config(self.store.layout).bases

    def add_base(self, name: str, path: Path) -> None:
        """Gives a diffusers folder or a checkpoint a name. Raises InvalidNameError, UsageError, ConflictError."""
        from conceptry.registry.config import add_base

        add_base(self.store, name, path)

    def remove_base(self, name: str) -> None:
        """Takes a base's name away; its files stay. Raises NotFoundError, StoreError."""
        from conceptry.registry.config import remove_base

        remove_base(self.store, name)

    def _read(self, read: Callable[[sqlite3.Connection], T], empty: T) -> T:
        if not is_folder(self.store.layout.refs):
            return empty
        found = listing.read_index(self.store.layout, read)
        if found is not None:
            return found
        from conceptry.registry.index import read_through_rebuild

        return read_through_rebuild(self.store, read)


def to_reference(reference: ReferenceLike) -> Reference:
    """Returns the reference that text writes. Raises InvalidNameError."""
    return Reference.parse(reference) if isinstance(reference, str) else reference


def to_local(reference: ReferenceLike) -> Reference:
    """Returns a reference into this store. Raises UsageError for one into a remote."""
    from conceptry.errors import UsageError

    parsed = to_reference(reference)
    if parsed.remote is not None:
        raise UsageError(f"{parsed} is on a remote, not in this store", hint=f"concepts pull {parsed}")
    return parsed


def _require_remote(reference: Reference, verb: str) -> RemoteName:
    from conceptry.errors import UsageError

    if reference.remote is None:
        raise UsageError(
            f"{reference} names no remote",
            hint=f"concepts {verb} REMOTE::{reference}; concepts remote list shows them",
        )
    return reference.remote
