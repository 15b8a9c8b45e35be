"""The small protocol that every remote speaks, and the values that go over it.

A name is resolved once, to a ``RemoteVersion``; everything after asks with that value for the same bytes, whatever
happens to names meanwhile. A lockfile keeps the same value, so that restoring resolves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from conceptry.digests import Digest
from conceptry.names import ConceptName, Reference, Tag, Version
from conceptry.registry.refs import Resolved
from conceptry.registry.tags import TagMove

if TYPE_CHECKING:
    from conceptry.manifest import File, Manifest
    from conceptry.registry.blobs import CountBytes

DEFAULT_SEARCH_LIMIT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a kind of remote can do; commands ask before they begin."""

    writable: bool = True
    """Whether anything can be pushed there at all."""

    compare_and_swap: bool = True
    """Whether of several who move one tag exactly one succeeds; else the tag is read back and a lost race reported."""

    searchable: bool = True
    """Whether it can say which concepts it has."""


EVERYTHING: Final = Capabilities()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteVersion:
    """One version as a remote has it: all that later requests need, so that no name is resolved twice."""

    reference: Reference
    """``namespace/name@version``, without the remote."""

    digest: Digest
    """Of the manifest."""

    commit: str | None = None
    """The unchanging state of the remote that holds the version, None where a remote has no such thing."""

    identity: str | None = None
    """Which repository this is, beyond its name; None where a remote cannot tell."""

    yanked: str | None = None
    """Why nobody should choose this version anew, None if nothing speaks against it."""

    move: int | None = None
    """Which move of the tag that was asked for led here, counted from 1; None where none was, or none are counted."""

    @property
    def resolved(self) -> Resolved:
        """The version and its digest alone."""
        return Resolved(self.reference, self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteEntry:
    """One version that a remote lists, before anything of it was read."""

    version: Version
    yanked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteConcept:
    """One concept that a remote found. Claims of the remote, for people to choose from: nothing here is checked."""

    name: ConceptName
    title: str = ""
    kinds: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    license: str | None = None


def describe_concept(manifest: Manifest) -> RemoteConcept:
    """Returns what people choose by, out of a manifest."""
    return RemoteConcept(
        name=manifest.name,
        title=manifest.title,
        kinds=manifest.kinds,
        families=tuple(dict.fromkeys(build.base.family for build in manifest.builds)),
        tags=manifest.tags,
        license=manifest.license.spdx or manifest.license.name,
    )


class Remote(Protocol):
    """Where others keep theirs. Every method may raise RemoteError when the other side fails."""

    @property
    def uri(self) -> str:
        """The remote's address, for messages and lockfiles; it never holds a credential."""

    @property
    def capabilities(self) -> Capabilities:
        """What this kind of remote can do."""

    # --- names: asked once -------------------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> RemoteVersion:
        """Returns what a reference means there now; ``latest`` passes over yanked versions. Raises NotFoundError."""

    def list_versions(self, name: ConceptName) -> tuple[RemoteEntry, ...]:
        """Returns the versions of a concept there, smallest first, none if there is no such concept."""

    def search(self, words: str = "", *, limit: int = DEFAULT_SEARCH_LIMIT) -> Iterable[RemoteConcept]:
        """Returns the concepts whose names or tags have all words, in order of name. Raises UsageError."""

    def read_version(self, name: ConceptName, version: Version) -> Digest | None:
        """Returns the digest of a version there, None if there is none, also where nothing was ever pushed."""

    # --- bytes: asked for with what names resolved to ----------------------------------------------------------

    def get_manifest(self, version: RemoteVersion) -> bytes:
        """Returns a manifest's bytes, at most one more than 1 MiB, unchecked. Raises NotFoundError."""

    def get(
        self, version: RemoteVersion, file: File, *, offset_bytes: int = 0
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Opens a file's bytes from an offset on, unchecked; the caller stops at the declared size.

        A remote that cannot begin at the offset raises RemoteError or begins anew and drops what comes before it;
        it never yields other bytes than those from the offset on. Raises NotFoundError.
        """

    # --- writing: files, then the version that names them ------------------------------------------------------

    def has(self, version: Resolved, file: File) -> bool:
        """Returns whether the remote has a file of this version, complete, so that it need not be sent."""

    def put(self, version: Resolved, file: File, source: Path, *, on_bytes: CountBytes) -> None:
        """Sends a file, which nobody sees before the version is there; sending it again goes on or does nothing.

        Raises:
            IntegrityError: if the source does not hold the bytes that ``file`` declares; nothing is kept there.
        """

    def put_manifest(self, version: Resolved, data: bytes, sources: Mapping[Digest, Path]) -> bool:
        """Returns True if the version is there from now on, False if it was already.

        ``sources`` has every file of the version, for remotes that take names and bytes together. Of several who
        put the same version at the same time with other contents, exactly one succeeds.

        Raises:
            ConflictError: if the version is there with other contents.
        """

    def read_tag(self, name: ConceptName, tag: Tag) -> TagMove | None:
        """Returns where a tag points there."""

    def move_tag(self, name: ConceptName, tag: Tag, to: Resolved, *, expected: TagMove | None) -> TagMove:
        """Moves a tag if it still is where it was seen. Raises ConflictError."""

    def yank(self, name: ConceptName, version: Version, reason: str | None) -> None:
        """Marks a version as one that nobody should choose anew; None takes the mark back. Raises NotFoundError."""
