"""Whether a lock still answers its project, and if not, why not in words.

A lock is stale where the requirements exclude what is locked, and never because something newer exists.
"""

from __future__ import annotations

from collections.abc import Iterator

from conceptry.errors import LockStaleError
from conceptry.names import ConceptName
from conceptry.registry.file_reading import digest_file, is_file
from conceptry.registry.lockfile import Lock, LockedConcept
from conceptry.registry.os_errors import explain_os_errors
from conceptry.registry.places import LOCK_FILE, PROJECT_FILE, locate_source
from conceptry.registry.project import Project, ProjectRequirement, digest_requirements

_SHOWN = 3


def find_stale(lock: Lock, project: Project) -> tuple[str, ...]:
    """Returns why the lock no longer answers the project; nothing where it does."""
    changed = tuple(_iter_changed_files(lock, project))
    if lock.requirements == digest_requirements(project):
        return changed
    return (*_iter_reasons(lock, project), *changed)


def refuse_stale(lock: Lock, project: Project) -> None:
    """Raises LockStaleError with the reasons, unless the lock answers the project."""
    reasons = find_stale(lock, project)
    if reasons:
        more = f" and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise LockStaleError(
            f"{LOCK_FILE} is stale: {'; '.join(reasons[:_SHOWN])}{more}", hint="concepts lock"
        )


def missing_lock() -> LockStaleError:
    """Returns the error for a project that has no lock."""
    return LockStaleError(f"{PROJECT_FILE} has no {LOCK_FILE} beside it", hint="concepts lock")


def _iter_reasons(lock: Lock, project: Project) -> Iterator[str]:
    locked_base = lock.base.reference if lock.base else None
    if project.base != locked_base:
        yield f"the base is {project.base or 'none'}, locked for {locked_base or 'none'}"
    for requirement in project.requirements:
        locked = lock.find(requirement.name)
        if locked is None:
            yield f"{requirement.name} is required and not locked"
        else:
            yield from _compare(requirement, locked)
    needed = _find_needed(lock, project)
    yield from (
        f"{one.name} is locked and nothing requires it" for one in lock.concepts if one.name not in needed
    )
    for name, uri in lock.remotes.items():
        if project.remotes.get(name, uri) != uri:
            yield f"the remote {name} is {project.remotes[name]}, locked from {uri}"


def _compare(requirement: ProjectRequirement, locked: LockedConcept) -> Iterator[str]:
    name, foreign = requirement.name, requirement.foreign
    if (foreign is None) != (locked.source is None):
        yield f"{name} is {'a file' if foreign else 'a published concept'} now"
    elif foreign is not None and locked.source is not None and str(foreign.source) != locked.source.text:
        yield f"{name} is read from {foreign.source}, locked from {locked.source.text}"
    elif foreign is None and locked.version not in requirement.versions:
        yield f"{name} {requirement.versions} is required, {locked.version} is locked"
    if requirement.remote not in (None, locked.remote):
        yield f"{name} is to come from {requirement.remote}, locked from {locked.remote or 'the local store'}"
    if requirement.build not in (None, locked.build):
        yield f"the build {requirement.build!r} of {name} is asked for, {locked.build!r} is locked"
    if requirement.strength != locked.strength:
        yield f"the strength of {name} is {requirement.strength}, locked at {locked.strength}"
    if any(locked.tokens.get(old) != new for old, new in requirement.rename.items()):
        yield f"words of {name} are renamed otherwise"


def _find_needed(lock: Lock, project: Project) -> set[ConceptName]:
    needed: set[ConceptName] = set()
    waiting = [one.name for one in project.requirements]
    while waiting:
        name = waiting.pop()
        locked = lock.find(name)
        if name not in needed and locked is not None:
            waiting.extend(asked.concept for asked in locked.requires)
        needed.add(name)
    return needed


def _iter_changed_files(lock: Lock, project: Project) -> Iterator[str]:
    """A foreign file beside the project is looked at; one that is absent changes nothing."""
    for one in lock.concepts:
        if one.source is None or one.source.kind != "path":
            continue
        path = locate_source(project.folder, one.source.text)
        if is_file(path):
            with explain_os_errors("read", path):
                digest, _ = digest_file(path)
            if digest != one.source.sha256:
                yield f"the file {one.source.text!r} of {one.name} changed"
