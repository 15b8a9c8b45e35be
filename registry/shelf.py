"""``Shelf``: the concepts on this machine as one object, whatever remotes there are; ``Registry`` adds those.

Light on purpose: what needs pydantic or sqlite_utils is imported by the methods that need it, so that a listing
starts in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from conceptry.names import Reference, Tag
from conceptry.registry import listing
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.file_reading import is_folder
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
    from conceptry.registry.publish import Published
    from conceptry.registry.reading import Shown
    from conceptry.registry.roots import Root
    from conceptry.registry.trash import Item
    from conceptry.registry.verify import Finding
    from conceptry.registry.views import View
    from conceptry.written_files import FileStamp

T = TypeVar("T")
ReferenceLike = Reference | str


class Shelf:
    """The concepts in the store at ``root``, else ``CONCEPTRY_HOME``, else the platform's folder for user data.

    Opening reads one small file and writes nothing.

    Raises:
        StoreError: if the store was written by a newer version, or others could have changed it.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.store: Store = open_store(root)

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

    def stage(self) -> AbstractContextManager[Path]:
        """Gives a private folder in the store's file system, which is gone after the block. Raises StoreError."""
        from conceptry.registry.staging import stage_folder

        return stage_folder(self.store)

    def publish(
        self,
        folder: Path,
        *,
        written: Mapping[FileStamp, Digest] | None = None,
        on_event: OnEvent = ignore_event,
    ) -> Published:
        """Returns the version that a folder with a ``concept.json`` became; the same contents again change nothing.

        Of a folder made by ``stage``, files that are ``written`` (``remember_written_files``) and untouched since are
        moved into the store, and neither read nor copied.

        Raises:
            NotFoundError: if there is no ``concept.json``.
            IntegrityError: if a file is not what the manifest says.
            ConflictError: if the version exists with other contents.
            StoreError: if the store cannot be written.
        """
        from conceptry.registry.publish import publish_folder

        return publish_folder(self.store, folder, written=written or {}, on_event=on_event)

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
