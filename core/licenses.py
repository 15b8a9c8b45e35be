"""What licences permit together: the terms of those that are known by their SPDX ids, and the least that all allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from conceptry.manifest import License, Permission, Permissions

PERMISSIONS: Final = ("commercial", "derivatives", "redistribution", "credit_required")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What matters when works are put together: the terms of a family of licences, told by how their ids begin."""

    prefix: str
    share_alike: bool = False
    no_derivatives: bool = False
    non_commercial: bool = False
    credit: bool = True

    @property
    def permissions(self) -> Permissions:
        """The same as a manifest says it."""
        return Permissions(
            commercial="no" if self.non_commercial else "yes",
            derivatives="no" if self.no_derivatives else "yes",
            redistribution="yes",
            credit_required="yes" if self.credit else "no",
        )


# The deeds of Creative Commons (creativecommons.org/licenses) and the texts of the others; longer prefixes first.
TERMS: Final = (
    Terms(prefix="CC0-", credit=False),
    Terms(prefix="UNLICENSE", credit=False),
    Terms(prefix="CC-BY-NC-SA-", share_alike=True, non_commercial=True),
    Terms(prefix="CC-BY-NC-ND-", no_derivatives=True, non_commercial=True),
    Terms(prefix="CC-BY-NC-", non_commercial=True),
    Terms(prefix="CC-BY-SA-", share_alike=True),
    Terms(prefix="CC-BY-ND-", no_derivatives=True),
    Terms(prefix="CC-BY-"),
    Terms(prefix="MIT"),
    Terms(prefix="APACHE-2.0"),
    Terms(prefix="BSD-2-CLAUSE"),
    Terms(prefix="BSD-3-CLAUSE"),
)


@dataclass(frozen=True, slots=True)
class Objection:
    """What stands against putting a work together with others."""

    label: str
    message: str


def find_terms(spdx: str | None) -> Terms | None:
    """Returns the terms of a licence; None where the table has none."""
    return next((row for row in TERMS if spdx and spdx.upper().startswith(row.prefix)), None)


def contradict(first: str | None, second: str | None) -> bool:
    """Returns whether two SPDX ids are known not to hold at once.

    Share-alike wants its own terms for the whole: other share-alike, or a ban on trade that it lacks, break it.
    """
    mine, theirs = find_terms(first), find_terms(second)
    if mine is None or theirs is None or first == second:
        return False
    if mine.share_alike and theirs.share_alike:
        return mine.prefix != theirs.prefix
    return (mine.share_alike and theirs.non_commercial and not mine.non_commercial) or (
        theirs.share_alike and mine.non_commercial and not theirs.non_commercial
    )


def read_permissions(license: License) -> Permissions:
    """Returns what a licence allows: what its source says, else what its SPDX id does, else unknown."""
    terms = find_terms(license.spdx)
    implied = Permissions() if terms is None else terms.permissions
    said = license.permissions
    return Permissions(
        **{name: getattr(implied if getattr(said, name) == "unknown" else said, name) for name in PERMISSIONS}
    )


def combine_permissions(licenses: Iterable[License]) -> Permissions:
    """Returns the least that all permit; what one does not say stays unknown where no other forbids it."""
    read = [read_permissions(one) for one in licenses]
    found: dict[str, Permission] = {}
    for name in PERMISSIONS:
        answers = {getattr(one, name) for one in read}
        strictest: Permission = "yes" if name == "credit_required" else "no"
        found[name] = answers.pop() if len(answers) == 1 else strictest if strictest in answers else "unknown"
    return Permissions(**found)


def iter_objections(licensed: Sequence[tuple[str, License]]) -> Iterator[Objection]:
    """Returns what stands against putting works together, each given with a label."""
    for place, (label, license) in enumerate(licensed):
        if read_permissions(license).derivatives == "no":
            if len(licensed) > 1:
                yield Objection(label, "allows no derivatives, so it may not be put together with others")
            continue
        for other, against in licensed[place + 1 :]:
            if contradict(license.spdx, against.spdx):
                said = f"{license.spdx} and {against.spdx} of {other} cannot hold at once"
                yield Objection(label, said)


def combine_licenses(licensed: Sequence[tuple[str, License]]) -> License:
    """Returns the licence of what is made of several works: theirs if it is one, else all of them by name."""
    permissions = combine_permissions(license for _, license in licensed)
    first = licensed[0][1]
    if all((one.spdx, one.name, one.url) == (first.spdx, first.name, first.url) for _, one in licensed):
        return first.model_copy(update={"permissions": permissions, "source": "that of all it was made of"})
    names = [f"{one.spdx or one.name or 'unknown'} ({label})" for label, one in licensed]
    share_alike = {one.spdx for _, one in licensed if (terms := find_terms(one.spdx)) and terms.share_alike}
    if len(share_alike) == 1 and all(find_terms(one.spdx) for _, one in licensed):
        return License(
            spdx=share_alike.pop(), permissions=permissions, source=f"as one asks: {', '.join(names)}"[:1000]
        )
    return License(
        name=f"several: {', '.join(names)}"[:200],
        permissions=permissions,
        source="all that it was made of hold together",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One permission of several works together, and the works that it is because of."""

    permission: str
    answer: Permission
    because: tuple[str, ...]


def explain_permissions(licensed: Sequence[tuple[str, License]]) -> tuple[Verdict, ...]:
    """Returns each permission of all works together, with the labels of those that decide it."""
    together = combine_permissions(license for _, license in licensed)
    read = [(label, read_permissions(license)) for label, license in licensed]
    return tuple(
        Verdict(
            permission=name,
            answer=getattr(together, name),
            because=tuple(label for label, one in read if getattr(one, name) == getattr(together, name)),
        )
        for name in PERMISSIONS
    )
