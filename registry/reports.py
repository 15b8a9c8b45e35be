"""What ``outdated``, ``audit`` and ``sync`` report: a lock compared with what its remotes have now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from threading import Lock as Mutex

from conceptry.errors import (
    ConceptryError,
    IdentityChangedError,
    IntegrityError,
    NotFoundError,
)
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Reference, RemoteName, VersionRange
from conceptry.registry.inspection import (
    Finding,
    OutdatedRow,
    audit_manifests,
    compare_versions,
    describe_standing,
    differ_in_metrics_only,
)
from conceptry.registry.lockfile import Lock, LockedConcept
from conceptry.registry.parallel import Stop, run_parallel
from conceptry.registry.project import Project
from conceptry.registry.protocol import Remote
from conceptry.registry.resolver import Option
from conceptry.registry.universe import ProjectUniverse
from conceptry.registry.workspace import Workspace

OpenRemote = Callable[[RemoteName], Remote]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found, and whether the remotes could be asked about yanks."""

    findings: tuple[Finding, ...]
    concepts: int
    asked_remotes: bool


def find_outdated(workspace: Workspace) -> tuple[OutdatedRow, ...]:
    """Returns the locked concepts that have newer versions, or are not on their remote as they were locked.

    Raises:
        RemoteError: if a remote does not answer.
        LockStaleError: if there is no lock.
    """
    lock, project = workspace.read_lock(), workspace.read_project()
    open_remote = _keep_open(workspace, lock, project)
    universe = _open_universe(workspace, project, open_remote)
    rows = []
    for one in lock.concepts:
        if one.source is not None:
            continue
        options = universe.list_options(one.name)
        standing = _find_standing(one, options, open_remote)
        row = compare_versions(one, _find_range(one, lock, project), options)
        if standing is not None:
            row = row or OutdatedRow(name=one.name, locked=one.version, compatible=None, newest=one.version)
            rows.append(replace(row, standing=standing))
        elif row is not None:
            rows.append(replace(row, only_metrics=_is_patch_of_metrics(universe, one, row)))
    return tuple(rows)


def audit(workspace: Workspace, *, ask_remotes: bool) -> Audit:
    """Returns what speaks against using what is locked; remotes are asked what became of it unless that is forbidden.

    What cannot be read, as it is neither in the store nor where it was locked, is among the findings.

    Raises:
        RemoteError: if a manifest that is not in the store cannot be asked for.
    """
    lock, project = workspace.read_lock(), workspace.read_project()
    open_remote = _keep_open(workspace, lock, project)
    universe = _open_universe(workspace, project, open_remote)
    manifests: dict[ConceptName, Manifest] = {}
    found: list[Finding] = []
    for one in lock.concepts:
        standing = None
        if ask_remotes and one.source is None:
            standing = _find_standing(one, universe.list_options(one.name), open_remote)
        found += [standing] if standing else []
        try:
            universe.load_locked(one)
        except (NotFoundError, IntegrityError, IdentityChangedError) as error:
            said = f"could not be read: {error.message}"
            found += [] if standing else [Finding(fault="unread", reference=str(one.reference), message=said)]
        else:
            manifests[one.name] = universe.packages[one.name, one.version].manifest
    findings = (*found, *audit_manifests(lock, manifests))
    return Audit(
        findings=tuple(sorted(findings, key=lambda row: (row.reference, row.fault))),
        concepts=len(lock.concepts),
        asked_remotes=ask_remotes,
    )


def find_yanked(workspace: Workspace, references: Iterable[Reference]) -> tuple[Finding, ...]:
    """Returns which of these locked versions were yanked, all asked at once; a remote that fails is passed over."""
    lock, project = workspace.read_lock(), workspace.read_project()
    open_remote = _keep_open(workspace, lock, project)
    wanted = set(references)
    asked = [(one, one.remote) for one in lock.concepts if one.remote is not None and one.reference in wanted]

    def ask(row: tuple[LockedConcept, RemoteName]) -> Finding | None:
        one, remote = row
        try:
            entries = open_remote(remote).list_versions(one.name)
        except ConceptryError:
            return None
        options = [Option(entry.version, entry.yanked) for entry in entries]
        return describe_standing(one, options, one.manifest)

    return tuple(row for row in run_parallel(ask, asked, stop=Stop()) if row is not None)


def _keep_open(workspace: Workspace, lock: Lock, project: Project) -> OpenRemote:
    """Returns what opens a remote of the lock or the project once."""
    addresses: Mapping[RemoteName, str] = {**workspace.find_remotes(project), **lock.remotes}
    opened: dict[RemoteName, Remote] = {}
    mutex = Mutex()

    def open_remote(name: RemoteName) -> Remote:
        with mutex:
            if name not in opened:
                opened[name] = workspace.registry.open_remote(addresses[name])
            return opened[name]

    return open_remote


def _open_universe(workspace: Workspace, project: Project, open_remote: OpenRemote) -> ProjectUniverse:
    return ProjectUniverse(workspace.registry.store.layout, project, base=None, open_remote=open_remote)


def _find_standing(one: LockedConcept, options: Iterable[Option], open_remote: OpenRemote) -> Finding | None:
    if one.remote is None:
        return describe_standing(one, options, one.manifest)
    return describe_standing(one, options, open_remote(one.remote).read_version(one.name, one.version))


def _find_range(one: LockedConcept, lock: Lock, project: Project) -> VersionRange:
    """Returns the versions that all who require a concept accept, as one range."""
    requirement = project.find(one.name)
    asked = [str(requirement.versions)] if requirement else []
    asked += [
        str(row.versions) for other in lock.concepts for row in other.requires if row.concept == one.name
    ]
    narrow = [text for text in dict.fromkeys(asked) if text != "*"]
    return VersionRange(",".join(narrow) or "*")


def _is_patch_of_metrics(universe: ProjectUniverse, one: LockedConcept, row: OutdatedRow) -> bool:
    if row.compatible is None:
        return False
    universe.load_locked(one)
    universe.load(one.name, row.compatible)
    before, after = (
        universe.packages[one.name, version].manifest for version in (one.version, row.compatible)
    )
    return differ_in_metrics_only(before, after)
