"""``Registry``: the user's store and the remotes around it as one object, for the command line and for Python programs.

What lies here is ``registry/shelf.py``'s; the rest of this module is light for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from conceptry.names import Reference, RemoteName
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.refs import Resolved
from conceptry.registry.shelf import ReferenceLike, Shelf, to_local, to_reference

if TYPE_CHECKING:
    from conceptry.registry.doctor import Diagnosis
    from conceptry.registry.protocol import Remote, RemoteConcept
    from conceptry.registry.pulling import Pulled, PullOptions
    from conceptry.registry.transfer import Pushed


class Registry(Shelf):
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
        super().__init__(root)
        self._project_remotes = project_remotes

    def push(
        self,
        reference: ReferenceLike,
        remote: RemoteName | str,
        *,
        alone: bool = False,
        on_event: OnEvent = ignore_event,
    ) -> Pushed:
        """Returns the version as it lies on the remote now; pushing it again sends nothing.

        ``remote`` is a name of the configuration or an address such as ``file:///path``. A reference by tag moves
        that tag on the remote too. What a composition names and the remote lacks goes first, unless it is to go
        ``alone``.

        Raises:
            NotFoundError: for an unknown version or remote.
            ConflictError: if the remote has the version with other contents, or its tag was moved meanwhile.
            IncompatibleError: if the licence of what a composition names lets nobody pass it on.
            RemoteError: if the remote does not answer.
        """
        from conceptry.registry.transfer import push_version

        return push_version(
            self.store, to_local(reference), self.open_remote(remote), alone=alone, on_event=on_event
        )

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

        What compositions name and this store lacks comes along, from the same remote or another one, and stands last.

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
        return pull_versions(
            self.store, wanted, options=options or PullOptions(), on_event=on_event, others=self._iter_remotes
        )

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

    def _iter_remotes(self) -> Iterator[Remote]:
        for name in self.remotes():
            yield self.open_remote(name)

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


def _require_remote(reference: Reference, verb: str) -> RemoteName:
    from conceptry.errors import UsageError

    if reference.remote is None:
        raise UsageError(
            f"{reference} names no remote",
            hint=f"concepts {verb} REMOTE::{reference}; concepts remote list shows them",
        )
    return reference.remote
