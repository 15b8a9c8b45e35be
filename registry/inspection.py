"""What can be said of a locked project: why something is in it, what is newer, and what speaks against using it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from conceptry.digests import Digest
from conceptry.errors import NotFoundError, suggest_nearest
from conceptry.names import ConceptName, Version, VersionRange
from conceptry.registry.lockfile import Lock, LockedConcept
from conceptry.registry.places import PROJECT_FILE
from conceptry.registry.project import Project
from conceptry.registry.resolver import Option

if TYPE_CHECKING:
    from conceptry.manifest import Manifest

Fault = Literal[
    "license_missing",
    "license_unknown",
    "license_conflict",
    "rights_unknown",
    "yanked",
    "moved",
    "gone",
    "unread",
    "local_only",
]

_UNANSWERED: Final = ("unknown", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """One line of the tree: a concept below the one that requires it."""

    depth: int
    name: ConceptName
    version: Version
    asked: str
    """The range of the one above."""

    repeated: bool
    """Whether what it requires was shown further up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutdatedRow:
    """One concept that has a newer version than the locked one, or is not on its remote as it was locked."""

    name: ConceptName
    locked: Version
    compatible: Version | None
    """The newest that the project's range takes, None if that is the locked one."""

    newest: Version
    only_metrics: bool = False
    """Whether the newest compatible version differs in nothing but its measurements."""

    standing: Finding | None = None
    """What became of the locked version since: yanked, moved or gone; None if it is as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that somebody should look at before using what is locked."""

    fault: Fault
    reference: str
    message: str


# --- tree and why --------------------------------------------------------------------------------------------------


def list_tree(lock: Lock, project: Project) -> tuple[TreeRow, ...]:
    """Returns the concepts below those that require them, in order of name; each one's own are shown once."""
    shown: set[ConceptName] = set()

    def walk(name: ConceptName, asked: str, depth: int) -> Iterator[TreeRow]:
        locked = lock.find(name)
        if locked is None:
            return
        repeated = name in shown and bool(locked.requires)
        shown.add(name)
        yield TreeRow(depth=depth, name=name, version=locked.version, asked=asked, repeated=repeated)
        if not repeated:
            for one in sorted(locked.requires, key=lambda one: one.concept):
                yield from walk(one.concept, str(one.versions), depth + 1)

    roots = (
        (one.name, str(one.foreign.source if one.foreign else one.versions)) for one in project.requirements
    )
    return tuple(row for name, asked in roots for row in walk(name, asked, 0))


def explain_why(lock: Lock, project: Project, name: ConceptName) -> tuple[tuple[str, ...], ...]:
    """Returns the chains that lead from the project to a concept, shortest first.

    Raises:
        NotFoundError: if it is not locked, with the nearest name.
    """
    if lock.find(name) is None:
        known = [str(one.name) for one in lock.concepts]
        raise NotFoundError(
            f"{name} is not part of this project", hint=suggest_nearest(str(name), known) or "concepts tree"
        )
    waiting: list[tuple[ConceptName, tuple[str, ...]]] = [(name, ())]
    chains = []
    while waiting:
        target, below = waiting.pop(0)
        requirement = project.find(target)
        if requirement is not None:
            chains.append((f"{PROJECT_FILE} requires {requirement}", *below))
        for one in lock.concepts:
            for asked in one.requires:
                step = f"{one.name} {one.version} requires {asked.concept} {asked.versions}"
                if asked.concept == target and step not in below:
                    waiting.append((one.name, (step, *below)))
    return tuple(sorted(chains, key=lambda chain: (len(chain), chain)))


# --- outdated ------------------------------------------------------------------------------------------------------


def compare_versions(
    locked: LockedConcept, asked: VersionRange, options: Sequence[Option]
) -> OutdatedRow | None:
    """Returns what is newer than the locked version, None if nothing is; yanked versions and pre-releases are not."""
    newer = [
        option.version
        for option in options
        if option.yanked is None and option.version > locked.version and not option.version.prerelease
    ]
    if not newer:
        return None
    compatible = [version for version in newer if version in asked]
    return OutdatedRow(
        name=locked.name,
        locked=locked.version,
        compatible=max(compatible, default=None),
        newest=max(newer),
    )


def differ_in_metrics_only(before: Manifest, after: Manifest) -> bool:
    """Returns whether two versions are the same thing, measured anew."""
    return _without_metrics(before) == _without_metrics(after)


def _without_metrics(manifest: Manifest) -> dict[str, Any]:
    document = manifest.model_dump(mode="json", exclude={"version"})
    for build in document["builds"]:
        del build["metrics"]
    return document


# --- audit ---------------------------------------------------------------------------------------------------------


def audit_manifests(lock: Lock, manifests: Mapping[ConceptName, Manifest]) -> tuple[Finding, ...]:
    """Returns what manifests alone tell: licences missing, unknown or in conflict, rights that nobody answered for.

    A concept without a manifest, as it could not be read, is passed over.
    """
    findings: list[Finding] = []
    for one in lock.concepts:
        manifest = manifests.get(one.name)
        if manifest is None:
            continue
        findings += _audit_license(str(one.reference), manifest)
        findings += _audit_rights(str(one.reference), manifest)
        if one.remote is None and one.source is None:
            said = "lies in the store of one machine only"
            findings.append(Finding(fault="local_only", reference=str(one.reference), message=said))
    return (*findings, *_find_conflicts(lock, manifests))


def _audit_license(reference: str, manifest: Manifest) -> Iterator[Finding]:
    license = manifest.license
    if license.spdx is None and license.name is None:
        yield Finding(fault="license_missing", reference=reference, message="has no licence")
    elif license.spdx is not None and not is_spdx(license.spdx):
        said = f"has the licence {license.spdx!r}, which is no SPDX id"
        yield Finding(fault="license_unknown", reference=reference, message=said)
    elif license.spdx is None and license.url is None:
        said = f"has the licence {license.name!r} without an address of its text"
        yield Finding(fault="license_unknown", reference=reference, message=said)


def _audit_rights(reference: str, manifest: Manifest) -> Iterator[Finding]:
    rights = manifest.rights
    if rights.depicts == "unknown":
        yield Finding(
            fault="rights_unknown", reference=reference, message="does not say whom or what it depicts"
        )
    elif rights.depicts != "none" and rights.consent in _UNANSWERED:
        said = f"depicts {rights.depicts.replace('_', ' ')}, and consent is {rights.consent}"
        yield Finding(fault="rights_unknown", reference=reference, message=said)


def _find_conflicts(lock: Lock, manifests: Mapping[ConceptName, Manifest]) -> Iterator[Finding]:
    """Used together, all licences hold at once; some cannot."""
    from conceptry.licenses import iter_objections

    licensed = [
        (str(one.reference), manifests[one.name].license) for one in lock.concepts if one.name in manifests
    ]
    for objection in iter_objections(licensed):
        yield Finding(fault="license_conflict", reference=objection.label, message=objection.message)


def is_spdx(text: str) -> bool:
    """Returns whether text is an SPDX licence expression."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return False
    return True


def describe_standing(
    locked: LockedConcept, options: Iterable[Option], found: Digest | None
) -> Finding | None:
    """Returns what became of a locked version on its remote, None if it is there as it was locked.

    Args:
        locked: the version, which a remote had.
        options: the versions that it has now.
        found: the digest of that version there now, None if it is not there.
    """
    reference = str(locked.reference)
    if found is None:
        return Finding(fault="gone", reference=reference, message=f"is not on {locked.remote} any more")
    if found != locked.manifest:
        said = f"has other contents there than were locked: {found.short}, not {locked.manifest.short}"
        return Finding(fault="moved", reference=reference, message=said)
    why = next((one.yanked for one in options if one.version == locked.version), None)
    if why is not None:
        return Finding(fault="yanked", reference=reference, message=f"was yanked: {why}")
    return None
