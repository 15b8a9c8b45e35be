"""``Workspace``: one project and the user's store together, for the commands of projects and for Python programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from conceptry.errors import ConflictError, IntegrityError, InvalidLockError, NotFoundError
from conceptry.names import ConceptName, RemoteName, VersionRange
from conceptry.registry.events import OnEvent, ignore_event
from conceptry.registry.file_reading import is_file, read_small_file
from conceptry.registry.files import remove_file
from conceptry.registry.places import PROJECT_FILE, locate_lock, locate_project
from conceptry.registry.projects import count_in_order, keep_lock

if TYPE_CHECKING:
    from conceptry.registry.lockfile import Lock
    from conceptry.registry.project import Project, ProjectRequirement
    from conceptry.registry.protocol import Remote
    from conceptry.registry.registry import Registry
    from conceptry.registry.syncing import OpenSource, Synced

_PROJECT_BYTES = 4 << 20
_LOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LockChange:
    """What locking came to: what moved, and what somebody should know."""

    lock: Lock
    changed: bool
    """Whether the bytes of ``concepts.lock`` are others now."""

    moves: tuple[Move, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """One concept whose version changed; None where it was not there before, or is not any more."""

    name: ConceptName
    before: str | None
    after: str | None


class Workspace:
    """A project's folder, and the store that its concepts go to.

    Opening reads nothing; each method reads the files as they are then.
    """

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder

    @property
    def lock_path(self) -> Path:
        """Where the lock lies, whether it is there or not."""
        return locate_lock(self.folder)

    def read_project(self) -> Project:
        """Returns the project. Raises NotFoundError, InvalidProjectError."""
        from conceptry.registry.project import read_project

        return read_project(self.folder)

    def read_lock(self) -> Lock:
        """Returns the lock. Raises LockStaleError where there is none, InvalidLockError."""
        from conceptry.registry.lockfile import parse_lock, read_lock_bytes
        from conceptry.registry.staleness import missing_lock

        data = read_lock_bytes(self.lock_path)
        if data is None:
            raise missing_lock()
        return parse_lock(data)

    # --- changing what is required -----------------------------------------------------------------------------

    def add(self, requirement: ProjectRequirement) -> LockChange:
        """Returns what locking came to with one requirement more; both files stay as they were if it fails.

        A published concept without a range gets one that takes what is compatible with the version chosen now. The
        address of the remote that it names is written into the project.

        Raises:
            As ``lock``.
        """
        from conceptry.registry.project import ANY_VERSION, digest_requirements, parse_project
        from conceptry.registry.project_edits import set_remote, set_requirement

        text = self.load_text()
        if requirement.remote is not None and requirement.remote not in self.read_project().remotes:
            text = set_remote(text, requirement.remote, self._find_address(requirement.remote))
        change = self._try(set_requirement(text, requirement), frozenset({requirement.name}))
        locked = change.lock.find(requirement.name)
        if locked is not None and requirement.foreign is None and requirement.versions == ANY_VERSION:
            versions = VersionRange(f"^{locked.version.major}.{locked.version.minor}")
            requirement = replace(requirement, versions=versions)
            project = parse_project(set_requirement(text, requirement).encode("utf-8"), self.folder)
            change = replace(change, lock=replace(change.lock, requirements=digest_requirements(project)))
        self._write(set_requirement(text, requirement), change.lock)
        return change

    def drop(self, name: ConceptName) -> LockChange:
        """Returns what locking came to without a requirement. Raises NotFoundError, and as ``lock``."""
        from conceptry.registry.project_edits import drop_requirement

        text = drop_requirement(self.load_text(), name)
        change = self._try(text, frozenset())
        self._write(text, change.lock)
        return change

    def add_remote(self, name: RemoteName, uri: str) -> None:
        """Writes the address of a remote into the project. Raises ConflictError, InvalidProjectError."""
        from conceptry.registry.project_edits import set_remote, write_project

        write_project(self.folder, set_remote(self.load_text(), name, uri))

    def remove_remote(self, name: RemoteName) -> None:
        """Takes the name of a remote out of the project. Raises NotFoundError, InvalidProjectError."""
        from conceptry.registry.project_edits import drop_remote, write_project

        write_project(self.folder, drop_remote(self.load_text(), name))

    # --- locking -----------------------------------------------------------------------------------------------

    def lock(self, *, upgrade: bool = False, upgraded: Iterable[ConceptName] = ()) -> LockChange:
        """Returns what locking came to; the lock is written if it changed.

        What is locked and still in range stays, unless ``upgrade`` moves all, or ``upgraded`` the concepts named.

        Raises:
            NotFoundError: if a concept does not exist, or nothing is in the range of the project.
            IncompatibleError: if requirements contradict each other, or no build fits the base.
            IdentityChangedError: if a remote has a locked version with other contents.
            RemoteError, IntegrityError, StoreError: if something cannot be read or written.
        """
        from conceptry.registry.lockfile import format_lock, write_lock

        change = self._lock(self.read_project(), upgrade=upgrade, upgraded=frozenset(upgraded))
        write_lock(self.lock_path, format_lock(change.lock))
        return change

    def check(self) -> Lock:
        """Returns the lock if it answers the project. Raises LockStaleError, InvalidLockError."""
        from conceptry.registry.staleness import refuse_stale

        lock = self.read_lock()
        refuse_stale(lock, self.read_project())
        return lock

    # --- syncing -----------------------------------------------------------------------------------------------

    def count_in_order(self) -> int | None:
        """Returns how many concepts are locked if all of them are here and nothing changed; None if that is unknown."""
        data = read_small_file(self.lock_path, _LOCK_BYTES)
        project = read_small_file(locate_project(self.folder), _PROJECT_BYTES)
        if data is None or project is None or not self.registry.store.exists:
            return None
        return count_in_order(self.registry.store.layout, self.lock_path, data, project)

    def sync(
        self,
        lock: Lock,
        *,
        open_source: OpenSource | None = None,
        has_foreign: bool = False,
        on_event: OnEvent = ignore_event,
    ) -> Synced:
        """Returns what was done until the store had what the lock says; a copy of the lock is kept there.

        ``open_source`` and ``has_foreign`` are for a bundle in the place of the remotes (``sync_lock``).

        Raises:
            IdentityChangedError: if something could not be had, as a remote has other contents under its name.
            ConflictError, IntegrityError, NotFoundError, RemoteError: as ``sync_lock``.
        """
        from conceptry.registry.lockfile import format_lock
        from conceptry.registry.sync_failures import explain_failed_sync
        from conceptry.registry.syncing import sync_lock

        store, project = self.registry.store, self.read_project()
        open_remote = self._make_opener(lock.remotes)
        opener = open_source or open_remote
        try:
            synced = sync_lock(store, lock, project, opener, has_foreign=has_foreign, on_event=on_event)
        except (NotFoundError, IntegrityError) as error:
            explained = None if open_source else explain_failed_sync(lock, open_remote)
            if explained is None:
                raise
            raise explained from error
        store.prepare_for_writing()
        data = read_small_file(self.lock_path, _LOCK_BYTES) or format_lock(lock)
        keep_lock(store, self.lock_path, data, lock, project=self.load_text().encode("utf-8"))
        return synced

    # --- inside ------------------------------------------------------------------------------------------------

    def _try(self, text: str, upgraded: frozenset[ConceptName]) -> LockChange:
        from conceptry.registry.project import parse_project

        return self._lock(parse_project(text.encode("utf-8"), self.folder), upgraded=upgraded)

    def _lock(
        self, project: Project, *, upgrade: bool = False, upgraded: frozenset[ConceptName] = frozenset()
    ) -> LockChange:
        from conceptry.registry.lockfile import format_lock, read_lock_bytes
        from conceptry.registry.locking import LockRequest, make_lock

        previous, notes = self._read_previous()
        remotes = self.find_remotes(project)
        request = LockRequest(
            project=project,
            remotes=remotes,
            bases=self.registry.bases(),
            previous=previous,
            trusted=not notes,
            upgrade=upgrade,
            upgraded=upgraded,
        )
        result = make_lock(self.registry.store, request, lambda name: self._open(remotes[name]))
        changed = format_lock(result.lock) != read_lock_bytes(self.lock_path)
        moves = _list_moves(previous, result.lock)
        return LockChange(lock=result.lock, changed=changed, moves=moves, warnings=(*notes, *result.warnings))

    def _read_previous(self) -> tuple[Lock | None, tuple[str, ...]]:
        """A lock that was edited is a wish; one that cannot be read is replaced; one of a newer version is refused."""
        from conceptry.registry.lockfile import parse_lock, read_lock_bytes

        data = read_lock_bytes(self.lock_path)
        if data is None:
            return None, ()
        try:
            return parse_lock(data), ()
        except InvalidLockError as error:
            if error.where == "format":
                raise
            note = f"{error.message}; it is written anew"
        try:
            return parse_lock(data, check_contents=False), (note,)
        except InvalidLockError:
            return None, (note,)

    def _write(self, text: str, lock: Lock) -> None:
        from conceptry.registry.lockfile import format_lock, write_lock
        from conceptry.registry.project_edits import write_project

        write_project(self.folder, text)
        write_lock(self.lock_path, format_lock(lock))

    def load_text(self) -> str:
        """Returns the text of ``concepts.toml``, which is valid. Raises NotFoundError, InvalidProjectError."""
        data = read_small_file(locate_project(self.folder), _PROJECT_BYTES)
        if data is None:
            raise NotFoundError(f"no {PROJECT_FILE} in {str(self.folder)!r}", hint="concepts init makes one")
        self.read_project()
        return data.decode("utf-8")

    def find_remotes(self, project: Project) -> Mapping[RemoteName, str]:
        """Returns addresses by name: the user's, and over them the project's."""
        return {**self.registry.remotes(), **project.remotes}

    def _find_address(self, name: RemoteName) -> str:
        from conceptry.errors import suggest_nearest

        known = self.registry.remotes()
        if name not in known:
            raise NotFoundError(
                f"no remote is called {name!r}",
                hint=suggest_nearest(name, known) or f"concepts remote add {name} file:///path",
            )
        return known[name]

    def _make_opener(self, remotes: Mapping[RemoteName, str]) -> Callable[[RemoteName | None], Remote]:
        @cache
        def open_source(name: RemoteName | None) -> Remote:
            if name is None or name not in remotes:
                raise NotFoundError(
                    "something was locked from the store of another machine, and this one does not have it",
                    hint="who locked it can concepts push it to a remote, and lock again",
                )
            return self._open(remotes[name])

        return open_source

    def _open(self, uri: str) -> Remote:
        from conceptry.registry.remotes import open_remote

        return open_remote(uri, {})


def find_folder(start: Path) -> Path | None:
    """Returns the nearest folder with a ``concepts.toml``, from ``start`` upward; None where there is none."""
    folder = start.absolute()
    return next((one for one in (folder, *folder.parents) if is_file(locate_project(one))), None)


def require_folder(start: Path) -> Path:
    """Returns the project's folder around ``start``. Raises NotFoundError."""
    folder = find_folder(start)
    if folder is None:
        raise NotFoundError(
            f"no {PROJECT_FILE} in {str(start.absolute())!r} or above",
            hint="concepts init makes one; concepts add does too",
        )
    return folder


@contextmanager
def adopt_folder(start: Path) -> Iterator[Path]:
    """Yields the project's folder around ``start``, which becomes one where there is none, unless the block fails."""
    found = find_folder(start)
    folder = found or start.absolute()
    if found is None:
        create_project(folder)
    try:
        yield folder
    except BaseException:
        if found is None:
            remove_file(locate_project(folder))
        raise


def create_project(folder: Path, *, name: str | None = None, base: str | None = None) -> Project:
    """Returns the project that the folder is from now on. Raises ConflictError if it is one already."""
    from conceptry.registry.project_edits import NEW_PROJECT, set_about, write_project

    path = locate_project(folder)
    if is_file(path):
        raise ConflictError(f"{str(path)!r} exists already", hint="concepts add adds to it")
    return write_project(folder, set_about(NEW_PROJECT, name=name, base=base))


def _list_moves(before: Lock | None, after: Lock) -> tuple[Move, ...]:
    old = {one.name: str(one.version) for one in before.concepts} if before else {}
    new = {one.name: str(one.version) for one in after.concepts}
    names = sorted({*old, *new})
    return tuple(Move(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name))
