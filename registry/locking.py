"""From a project to its lock: what may stay stays, the rest is resolved; the lock is whole or there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conceptry.base_locations import BaseLocation, read_config, resolve_base
from conceptry.bases import FAMILY_BY_ID, BaseIdentity, FamilyId
from conceptry.errors import (
    IdentityChangedError,
    IncompatibleError,
    NotFoundError,
    StoreError,
    UsageError,
    suggest_nearest,
)
from conceptry.names import LATEST, ConceptName, Placeholder, Reference, RemoteName
from conceptry.registry.builds import choose_build
from conceptry.registry.file_reading import is_folder, look_at
from conceptry.registry.foreign import ForeignPackage, read_foreign
from conceptry.registry.lockfile import Lock, LockedBase, LockedConcept, LockedFile
from conceptry.registry.manifests import add_manifest
from conceptry.registry.members import refuse_other_members
from conceptry.registry.operations import make_scratch
from conceptry.registry.places import LOCK_FILE, PROJECT_FILE, locate_scheduler, locate_source, read_place
from conceptry.registry.project import Project, ProjectRequirement, digest_requirements
from conceptry.registry.protocol import RemoteVersion
from conceptry.registry.resolver import Solution, resolve
from conceptry.registry.store import Store
from conceptry.registry.universe import LockedUniverse, OpenRemote, Package, ProjectUniverse
from conceptry.words import choose_words, describe_speaker

_PREDICTIONS: Final = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRequest:
    """What is to be locked, and what may move."""

    project: Project
    remotes: Mapping[RemoteName, str]
    """Addresses by name: the project's, and the user's for names that only requirements mention."""

    bases: Mapping[str, Path]
    previous: Lock | None = None
    trusted: bool = True
    """Whether ``previous`` is as it was written; of one that was edited only the versions count, as a wish."""

    upgrade: bool = False
    upgraded: frozenset[ConceptName] = frozenset()
    """Concepts that may leave their locked versions although they are in range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockResult:
    """The lock, and what somebody should know before it is used."""

    lock: Lock
    warnings: tuple[str, ...] = ()


def make_lock(store: Store, request: LockRequest, open_remote: OpenRemote) -> LockResult:
    """Returns the lock that answers a project; nothing but manifests and foreign files is written to the store.

    Raises:
        NotFoundError, IncompatibleError: as ``resolve``.
        IdentityChangedError: if a remote has a locked version with other contents, or is another repository now.
        RemoteError, IntegrityError, StoreError: if something cannot be read.
    """
    project = request.project
    _check_names(request)
    base = pin_base(request)
    identity = (
        None
        if base is None
        else BaseIdentity(family=FamilyId(base.family), prediction_type=base.prediction_type)
    )
    foreign = _read_foreign_files(project)
    _settle_adopted_files(store, project)
    universe = ProjectUniverse(
        store.layout,
        project,
        base=identity,
        open_remote=open_remote,
        foreign={name: _as_package(one, project, identity) for name, one in foreign.items()},
    )
    solution = _solve(universe, request)
    packages = {name: universe.packages[name, chosen.version] for name, chosen in solution.items()}
    _refuse_changed(packages, request.previous if request.trusted else None)
    refuse_other_members(packages)
    _keep_manifests(store, packages.values())
    lock = _describe(request, base, packages)
    return LockResult(lock=lock, warnings=tuple(_iter_warnings(packages, lock)))


# --- before --------------------------------------------------------------------------------------------------------


def _check_names(request: LockRequest) -> None:
    for one in request.project.requirements:
        if one.remote is not None and one.remote not in request.remotes:
            raise NotFoundError(
                f"no remote is called {one.remote!r}",
                where=f'concepts."{one.name}".remote',
                hint=suggest_nearest(one.remote, request.remotes)
                or f'add it to [remotes] in {PROJECT_FILE}: {one.remote} = "file:///path"',
            )


def pin_base(request: LockRequest) -> LockedBase | None:
    """Returns the project's base as it is understood here, or as it was locked where this machine does not have it.

    Raises:
        NotFoundError: if nothing is called so or lies there.
        UsageError: if nothing tells its family.
    """
    text, previous = request.project.base, request.previous
    if text is None:
        return None
    try:
        location = locate_base(request.project, request.bases)
    except NotFoundError as error:
        if previous is not None and previous.base is not None and previous.base.reference == text:
            return previous.base
        raise error.inside("project.base") from error
    if location.family is None:
        raise UsageError(
            f"nothing tells the family of the base {text!r}",
            where="project.base",
            hint=f"name the family instead: {', '.join(FAMILY_BY_ID)}",
        )
    return LockedBase(
        reference=text,
        family=location.family,
        prediction_type=_read_prediction(location),
        repo=location.repo,
        revision=location.revision,
    )


def locate_base(project: Project, bases: Mapping[str, Path]) -> BaseLocation:
    """Returns where a project's base lies; a path is seen from the project's folder. Raises NotFoundError."""
    text = project.base or ""
    beside = locate_source(project.folder, text)
    known = {**bases, text: beside} if text not in bases and look_at(beside) is not None else bases
    return resolve_base(text, known)


def _read_prediction(location: BaseLocation) -> str:
    family = FAMILY_BY_ID[location.family or ""]
    said = read_config(locate_scheduler(location.path)).get("prediction_type") if location.path else None
    return said if isinstance(said, str) and said in _PREDICTIONS else family.prediction_type


# --- resolving -----------------------------------------------------------------------------------------------------


def _solve(universe: ProjectUniverse, request: LockRequest) -> Solution:
    """Keeps everything locked if that works; else what is locked is only preferred."""
    wanted = {one.name: one.versions for one in request.project.requirements}
    previous = request.previous
    if previous is None or request.upgrade:
        return resolve(wanted, universe)
    kept = {one.name: one.version for one in previous.concepts if _may_stay(one, request)}
    if not request.trusted:
        return resolve(wanted, universe, preferred=kept)
    try:
        return resolve(wanted, LockedUniverse(universe, previous, kept), preferred=kept)
    except (NotFoundError, IncompatibleError):
        return resolve(wanted, universe, preferred=kept)


def _may_stay(locked: LockedConcept, request: LockRequest) -> bool:
    requirement = request.project.find(locked.name)
    if locked.name in request.upgraded or locked.source is not None:
        return False
    if requirement is not None and (requirement.foreign or requirement.remote not in (None, locked.remote)):
        return False
    return locked.remote is None or locked.remote in request.remotes


def _refuse_changed(packages: Mapping[ConceptName, Package], previous: Lock | None) -> None:
    """A version never changes; a remote that says otherwise is not the one that was locked."""
    for name, package in packages.items():
        locked = previous.find(name) if previous else None
        found = package.version
        if (
            locked is None
            or locked.source
            or locked.remote != package.remote
            or found.reference != locked.reference
        ):
            continue
        if found.digest != locked.manifest:
            raise IdentityChangedError(
                f"{locked.reference} on {locked.remote} is {found.digest}, but {locked.manifest} was locked",
                hint=f"ask who keeps that remote; to take what is there now: remove {LOCK_FILE}, then concepts lock",
            )
        if locked.identity and found.identity and found.identity != locked.identity:
            raise IdentityChangedError(
                f"{name} on {locked.remote} is another repository than the one that was locked",
                hint=f"ask who keeps that remote; to take what is there now: remove {LOCK_FILE}, then concepts lock",
            )


# --- foreign files -------------------------------------------------------------------------------------------------


def _read_foreign_files(project: Project) -> dict[ConceptName, ForeignPackage]:
    packages = {}
    for one in project.requirements:
        if one.foreign:
            with make_scratch() as folder:
                packages[one.name] = read_foreign(project, one, read_place(folder))
    return packages


def _settle_adopted_files(store: Store, project: Project) -> None:
    """Makes versions of the adopted files that are required. Raises UsageError for one that is pending."""
    if not is_folder(store.layout.adopted):
        return
    from conceptry.registry.adoption_use import settle_adopted

    for one in project.requirements:
        if one.foreign is None and one.remote is None:
            settle_adopted(store, Reference(one.name, LATEST))


def _as_package(foreign: ForeignPackage, project: Project, base: BaseIdentity | None) -> Package:
    manifest = foreign.manifest
    requirement = project.find(manifest.name)
    return Package(
        remote=None,
        version=RemoteVersion(reference=Reference(manifest.name, manifest.version), digest=foreign.digest),
        manifest=manifest,
        data=foreign.data,
        choice=choose_build(manifest, base, requirement.build if requirement else None),
        source=foreign.source,
    )


# --- after ---------------------------------------------------------------------------------------------------------


def _keep_manifests(store: Store, packages: Iterable[Package]) -> None:
    """What was read once need not be asked for again by ``sync``; a store that cannot be written does without."""
    with contextlib.suppress(StoreError):
        store.prepare_for_writing()
        for package in packages:
            if package.remote is not None:
                add_manifest(store.layout, package.data)


def _describe(request: LockRequest, base: LockedBase | None, packages: Mapping[ConceptName, Package]) -> Lock:
    project = request.project
    requirements = {one.name: one for one in project.requirements}
    speakers = [
        describe_speaker(
            package.manifest,
            package.choice.build,
            requirements[name].rename if name in requirements else {},
        )
        for name, package in packages.items()
    ]
    words = dict(zip(packages, choose_words(speakers), strict=True))
    used = {package.remote for package in packages.values() if package.remote is not None}
    return Lock(
        requirements=digest_requirements(project),
        base=base,
        remotes={name: request.remotes[name] for name in sorted(used)},
        concepts=tuple(
            _describe_concept(package, requirements.get(name), words[name])
            for name, package in packages.items()
        ),
    )


def _describe_concept(
    package: Package, requirement: ProjectRequirement | None, words: Mapping[Placeholder, Placeholder]
) -> LockedConcept:
    manifest = package.manifest
    files = {file.path: LockedFile(file.path, file.size, file.sha256) for file in manifest.iter_files()}
    return LockedConcept(
        name=manifest.name,
        version=manifest.version,
        manifest=package.version.digest,
        files=tuple(files[path] for path in sorted(files)),
        remote=package.remote,
        commit=package.version.commit,
        identity=package.version.identity,
        build=package.choice.build.id if package.choice.build else None,
        strength=requirement.strength if requirement else None,
        tokens=words,
        requires=manifest.requires,
        source=package.source,
    )


def _iter_warnings(packages: Mapping[ConceptName, Package], lock: Lock) -> Iterator[str]:
    for name, package in packages.items():
        label = f"{name}@{package.manifest.version}"
        if package.version.yanked is not None:
            yield f"{label} was yanked: {package.version.yanked}"
        if package.remote is None and package.source is None:
            yield f"{label} lies in the store of this machine only; concepts push {label} REMOTE lets others sync it"
        if not (package.manifest.license.spdx or package.manifest.license.name):
            yield f"{label} has no licence"
        yield from (f"{label}: {text}" for text in package.choice.warnings)
    for one in lock.concepts:
        for old, new in one.tokens.items():
            if old != new:
                yield f"the word of {one.name} is {new!r} here, not {old!r}"
