"""What exists for a project: the versions on its remotes and in the local store, as the resolver asks for them.

A concept comes from one place only: the remote that its requirement names, else the first of the project's remotes
that has it, else the local store. So no other remote can slip in a version under a known name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from conceptry.bases import BaseIdentity
from conceptry.digests import Digest
from conceptry.errors import NotFoundError, suggest_nearest
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, RemoteName, Version
from conceptry.registry import refs
from conceptry.registry.builds import BuildChoice, choose_build
from conceptry.registry.directory import DirectoryRemote
from conceptry.registry.file_reading import read_small_file
from conceptry.registry.lockfile import Lock, LockedConcept, LockedSource
from conceptry.registry.manifests import check_manifest
from conceptry.registry.memory import check_answer
from conceptry.registry.paths import Layout
from conceptry.registry.places import PROJECT_FILE
from conceptry.registry.project import Project
from conceptry.registry.protocol import Remote, RemoteVersion
from conceptry.registry.resolver import Candidate, Option

OpenRemote = Callable[[RemoteName], Remote]
_MANIFEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One version that was read: where it is from, its manifest, and the build that fits the project's base."""

    remote: RemoteName | None
    version: RemoteVersion
    manifest: Manifest
    data: bytes
    choice: BuildChoice
    source: LockedSource | None = None
    """Of a foreign file: where it was read."""


class ProjectUniverse:
    """The versions that a project may choose from; everything is asked for once."""

    def __init__(
        self,
        layout: Layout,
        project: Project,
        *,
        base: BaseIdentity | None,
        open_remote: OpenRemote,
        foreign: Mapping[ConceptName, Package] | None = None,
    ) -> None:
        self._layout = layout
        self._project = project
        self._base = base
        self._open_remote = open_remote
        self._foreign = foreign or {}
        self._options: dict[ConceptName, tuple[Option, ...]] = {}
        self._origins: dict[ConceptName, tuple[RemoteName | None, Remote]] = {}
        self.packages: dict[tuple[ConceptName, Version], Package] = {}

    def list_options(self, name: ConceptName) -> Sequence[Option]:
        """Returns the versions of a concept, smallest first."""
        if name in self._foreign:
            return (Option(_number(self._foreign[name].version)),)
        if name not in self._options:
            self._options[name] = self._look_for(name)
        return self._options[name]

    def load(self, name: ConceptName, version: Version) -> Candidate:
        """Returns one version. Raises RemoteError, IntegrityError."""
        package = self._foreign.get(name) or self.packages.get((name, version))
        if package is None:
            self.list_options(name)
            origin, remote = self._origins[name]
            found = remote.resolve(Reference(name, version))
            if origin is not None:
                check_answer(self._layout, remote.uri, found)
            package = self.read(origin, remote, found)
        self.packages[name, version] = package
        return to_candidate(package)

    def load_locked(self, locked: LockedConcept) -> Candidate:
        """Returns a version as a lock has it: nothing is resolved, and nothing asked for where the store has it."""
        version = RemoteVersion(
            reference=locked.reference, digest=locked.manifest, commit=locked.commit, identity=locked.identity
        )
        key = locked.name, locked.version
        if key not in self.packages:
            self.packages[key] = self.read(locked.remote, None, version)
        return to_candidate(self.packages[key])

    def read(self, origin: RemoteName | None, remote: Remote | None, version: RemoteVersion) -> Package:
        """Returns a version with its manifest, out of the store where it is there. Raises IntegrityError."""
        data = read_small_file(self._layout.manifest(version.digest), _MANIFEST_BYTES)
        if data is None or Digest.of_bytes(data) != version.digest:
            data = (remote or self._open(origin)).get_manifest(version)
        manifest = check_manifest(data, version.resolved)
        requirement = self._project.find(manifest.name)
        choice = choose_build(manifest, self._base, requirement.build if requirement else None)
        return Package(remote=origin, version=version, manifest=manifest, data=data, choice=choice)

    def explain_missing(self, name: ConceptName) -> NotFoundError:
        """Returns the error for a concept that nobody has, with the nearest name of the local store."""
        requirement = self._project.find(name)
        named = (requirement.remote,) if requirement and requirement.remote else tuple(self._project.remotes)
        places = [str(remote) for remote in named] or ["the local store"]
        asked = f"{PROJECT_FILE} needs" if requirement else "something needs"
        known = [str(one) for one in refs.list_names(self._layout)]
        return NotFoundError(
            f"{asked} {name}, which {' and '.join(places)} {'has' if len(places) == 1 else 'have'} not",
            hint=suggest_nearest(str(name), known) or f"concepts search {name.name}; concepts remote list",
        )

    def _look_for(self, name: ConceptName) -> tuple[Option, ...]:
        requirement = self._project.find(name)
        chosen = (requirement.remote,) if requirement and requirement.remote else tuple(self._project.remotes)
        for origin in chosen:
            remote = self._open(origin)
            entries = remote.list_versions(name)
            if entries:
                self._origins[name] = origin, remote
                return tuple(Option(entry.version, entry.yanked) for entry in entries)
        if requirement is not None and requirement.remote is not None:
            return ()
        if not refs.list_versions(self._layout, name):
            return ()
        store = self._open(None)
        self._origins[name] = None, store
        return tuple(Option(entry.version, entry.yanked) for entry in store.list_versions(name))

    def _open(self, origin: RemoteName | None) -> Remote:
        if origin is None:
            return DirectoryRemote("the local store", self._layout)
        return self._open_remote(origin)


class LockedUniverse:
    """The same, with what is locked at its locked version only: tried first, since it asks for next to nothing."""

    def __init__(self, inner: ProjectUniverse, lock: Lock, kept: Collection[ConceptName]) -> None:
        self._inner = inner
        self._kept = {one.name: one for one in lock.concepts if one.name in kept}

    def list_options(self, name: ConceptName) -> Sequence[Option]:
        """Returns the locked version, or all where none is locked."""
        locked = self._kept.get(name)
        return self._inner.list_options(name) if locked is None else (Option(locked.version),)

    def load(self, name: ConceptName, version: Version) -> Candidate:
        """Returns one version. Raises RemoteError, IntegrityError."""
        locked = self._kept.get(name)
        return self._inner.load(name, version) if locked is None else self._inner.load_locked(locked)

    def explain_missing(self, name: ConceptName) -> NotFoundError:
        """Returns the error for a concept that nobody has."""
        return self._inner.explain_missing(name)


def to_candidate(package: Package) -> Candidate:
    """Returns what the resolver looks at."""
    return Candidate(
        version=package.manifest.version,
        digest=package.version.digest,
        requires=package.manifest.requires,
        conflicts=package.manifest.conflicts,
        refusal=package.choice.refusal,
    )


def _number(version: RemoteVersion) -> Version:
    number = version.reference.version
    if number is None:
        raise NotFoundError(f"{version.reference} names no version")
    return number
