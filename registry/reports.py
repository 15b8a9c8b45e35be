"""What ``outdated`` and ``audit`` report: a lock compared with what its remotes have now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from conceptry.manifest import Manifest
from conceptry.names import ConceptName, RemoteName, VersionRange
from conceptry.registry.inspection import (
    Finding,
    OutdatedRow,
    audit_manifests,
    compare_versions,
    describe_yanks,
    differ_in_metrics_only,
)
from conceptry.registry.lockfile import Lock, LockedConcept
from conceptry.registry.project import Project
from conceptry.registry.resolver import Option
from conceptry.registry.universe import ProjectUniverse
from conceptry.registry.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What was found, and whether the remotes could be asked about yanks."""

    findings: tuple[Finding, ...]
    concepts: int
    asked_remotes: bool


def find_outdated(workspace: Workspace) -> tuple[OutdatedRow, ...]:
    """Returns the locked concepts that have newer versions. Raises RemoteError, LockStaleError where there is none."""
    lock, project = workspace.read_lock(), workspace.read_project()
    universe = _open_universe(workspace, lock, project)
    rows = []
    for one in lock.concepts:
        if one.source is not None:
            continue
        row = compare_versions(one, _find_range(one, lock, project), universe.list_options(one.name))
        if row is not None:
            rows.append(replace(row, only_metrics=_is_patch_of_metrics(universe, one, row)))
    return tuple(rows)


def audit(workspace: Workspace, *, ask_remotes: bool) -> Audit:
    """Returns what speaks against using what is locked; remotes are asked about yanks unless that is forbidden.

    Raises:
        RemoteError, NotFoundError: if a manifest that is not in the store cannot be had.
    """
    lock, project = workspace.read_lock(), workspace.read_project()
    universe = _open_universe(workspace, lock, project)
    manifests: dict[ConceptName, Manifest] = {}
    options: dict[ConceptName, tuple[Option, ...]] = {}
    for one in lock.concepts:
        universe.load_locked(one)
        manifests[one.name] = universe.packages[one.name, one.version].manifest
        if ask_remotes and one.source is None:
            options[one.name] = tuple(universe.list_options(one.name))
    findings = (*describe_yanks(lock, options), *audit_manifests(lock, manifests))
    return Audit(
        findings=tuple(sorted(findings, key=lambda row: (row.reference, row.fault))),
        concepts=len(lock.concepts),
        asked_remotes=ask_remotes,
    )


def _open_universe(workspace: Workspace, lock: Lock, project: Project) -> ProjectUniverse:
    addresses: Mapping[RemoteName, str] = {**workspace.find_remotes(project), **lock.remotes}
    return ProjectUniverse(
        workspace.registry.store.layout,
        project,
        base=None,
        open_remote=lambda name: workspace.registry.open_remote(addresses[name]),
    )


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
