"""From requirements to one version of each concept: backtracking, newest first, and every refusal in words.

Plain backtracking with one addition: when nothing is left for a concept, the search returns to the latest decision
that had a part in that, and not to the last decision made (conflict-directed backjumping, Prosser 1993), so that
unrelated concepts are not tried in all their combinations first. The order is fixed, so equal input gives equal output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from conceptry.digests import Digest
from conceptry.errors import ConceptryError, IncompatibleError, NotFoundError
from conceptry.names import ConceptName, Requirement, Version, VersionRange

MAX_TRIALS: Final = 200_000
PROJECT: Final = "concepts.toml"
_SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class Option:
    """One version that exists, and why it was yanked, if it was."""

    version: Version
    yanked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One version as its manifest describes it; ``refusal`` says why it cannot be used in this project at all."""

    version: Version
    digest: Digest
    requires: tuple[Requirement, ...] = ()
    conflicts: tuple[Requirement, ...] = ()
    refusal: str | None = None


class Universe(Protocol):
    """Which versions exist and what they ask for. A manifest is read when its version is first tried."""

    def list_options(self, name: ConceptName) -> Sequence[Option]:
        """Returns the versions of a concept, smallest first; none where nobody has it."""

    def load(self, name: ConceptName, version: Version) -> Candidate:
        """Returns one version. Raises RemoteError, IntegrityError."""

    def explain_missing(self, name: ConceptName) -> NotFoundError:
        """Returns the error for a concept that nobody has, with the nearest name and where was looked."""


@dataclass(frozen=True, slots=True)
class Need:
    """A range of versions of a concept, and who asks for it: a decided concept, or the project (None)."""

    versions: VersionRange
    by: ConceptName | None


Solution = Mapping[ConceptName, Candidate]


def resolve(
    requirements: Mapping[ConceptName, VersionRange],
    universe: Universe,
    *,
    preferred: Mapping[ConceptName, Version] | None = None,
) -> Solution:
    """Returns one version of each required concept and of all that these require, in order of name.

    ``preferred`` versions (those of the lock) are tried first, also where they were yanked; then the newest. Of two
    solutions the one is returned that is better for the requirement whose name comes first.

    Raises:
        NotFoundError: if a concept does not exist, or none of its versions is in the range of the project.
        IncompatibleError: if requirements contradict each other, or no build fits the base.
    """
    return _Search(requirements, universe, preferred or {}).run()


@dataclass(slots=True)
class _Frame:
    """One decision: what is left to try, what was refused and why, and which other decisions had a part in that."""

    name: ConceptName
    options: list[Option]
    blame: set[ConceptName]
    tried: Version | None = None
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    blame: frozenset[ConceptName] = frozenset()


class _Search:
    def __init__(
        self,
        requirements: Mapping[ConceptName, VersionRange],
        universe: Universe,
        preferred: Mapping[ConceptName, Version],
    ) -> None:
        self._universe = universe
        self._preferred = preferred
        self._roots = sorted(requirements)
        self._needs: dict[ConceptName, list[Need]] = {
            name: [Need(requirements[name], None)] for name in self._roots
        }
        self._chosen: dict[ConceptName, Candidate] = {}
        self._stack: list[_Frame] = []
        self._first_error: ConceptryError | None = None
        self._trials = 0

    def run(self) -> Solution:
        while (name := self._find_undecided()) is not None:
            self._stack.append(_Frame(name, self._list_usable(name), self._list_askers(name)))
            while not self._advance(self._stack[-1]):
                self._retreat(self._stack.pop())
        return {name: self._chosen[name] for name in sorted(self._chosen)}

    def _find_undecided(self) -> ConceptName | None:
        for name in self._roots:
            if name not in self._chosen:
                return name
        asked = (name for name, needs in self._needs.items() if needs and name not in self._chosen)
        return min(asked, default=None)

    def _list_askers(self, name: ConceptName) -> set[ConceptName]:
        return {need.by for need in self._needs.get(name, ()) if need.by is not None}

    def _list_usable(self, name: ConceptName) -> list[Option]:
        """Returns what every asker accepts, best first."""
        locked = self._preferred.get(name)
        usable = [option for option in self._universe.list_options(name) if self._accepts(name, option)]
        usable.sort(key=lambda option: option.version, reverse=True)
        usable.sort(key=lambda option: option.version != locked)
        return usable

    def _accepts(self, name: ConceptName, option: Option) -> bool:
        if option.yanked is not None and option.version != self._preferred.get(name):
            return False
        return all(option.version in need.versions for need in self._needs.get(name, ()))

    # --- one step forward or back ------------------------------------------------------------------------------

    def _advance(self, frame: _Frame) -> bool:
        """Decides one concept; returns False where nothing is left for it."""
        while frame.options:
            self._trials += 1
            if self._trials > MAX_TRIALS:
                raise IncompatibleError(
                    f"no solution was found in {MAX_TRIALS} trials",
                    hint="narrow the ranges in concepts.toml, so that fewer versions come into question",
                )
            candidate = self._universe.load(frame.name, frame.options.pop(0).version)
            frame.tried = candidate.version
            refusal = self._refuse(frame.name, candidate)
            if refusal is None:
                self._chosen[frame.name] = candidate
                for asked in candidate.requires:
                    self._needs.setdefault(asked.concept, []).append(Need(asked.versions, frame.name))
                return True
            frame.refused.append(f"{candidate.version} {refusal.reason}")
            frame.blame |= refusal.blame - {frame.name}
        return False

    def _retreat(self, failed: _Frame) -> None:
        """Goes back to the latest decision that had a part in a dead end. Raises what explains the first one."""
        if self._first_error is None:
            self._first_error = self._explain(failed)
        while self._stack:
            frame = self._stack[-1]
            self._undo(frame.name)
            if frame.name in failed.blame:
                frame.blame |= failed.blame - {frame.name}
                frame.refused.append(f"{frame.tried} leaves no version of {failed.name}")
                return
            self._stack.pop()
        raise self._first_error

    def _undo(self, name: ConceptName) -> None:
        for asked in self._chosen.pop(name).requires:
            self._needs[asked.concept] = [need for need in self._needs[asked.concept] if need.by != name]

    # --- why not -----------------------------------------------------------------------------------------------

    def _refuse(self, name: ConceptName, candidate: Candidate) -> _Refusal | None:
        if candidate.refusal is not None:
            return _Refusal(candidate.refusal)
        return self._refuse_conflict(name, candidate) or self._refuse_requirement(name, candidate)

    def _refuse_conflict(self, name: ConceptName, candidate: Candidate) -> _Refusal | None:
        if _names(candidate.conflicts, name, candidate.version):
            return _Refusal("says that it conflicts with itself")
        for other, chosen in self._chosen.items():
            if _names(chosen.conflicts, name, candidate.version) or _names(
                candidate.conflicts, other, chosen.version
            ):
                return _Refusal(f"conflicts with {other} {chosen.version}", frozenset({other}))
        return None

    def _refuse_requirement(self, name: ConceptName, candidate: Candidate) -> _Refusal | None:
        for asked in candidate.requires:
            concept, what = asked.concept, f"needs {asked.concept} {asked.versions}"
            chosen = candidate if concept == name else self._chosen.get(concept)
            if chosen is not None:
                if chosen.version in asked.versions:
                    continue
                return _Refusal(f"{what}, not {chosen.version}", frozenset({concept}))
            options = self._universe.list_options(concept)
            if not any(
                option.version in asked.versions and self._accepts(concept, option) for option in options
            ):
                others = "".join(f", {text}" for text in self._list_asked(concept))
                reason = f"{what}{others} and {concept} {_describe_options(options)}"
                return _Refusal(reason, frozenset(self._list_askers(concept)))
        return None

    def _list_asked(self, name: ConceptName) -> list[str]:
        return [f"{self._label(need.by)} needs {name} {need.versions}" for need in self._needs.get(name, ())]

    def _label(self, name: ConceptName | None) -> str:
        return PROJECT if name is None else f"{name} {self._chosen[name].version}"

    def _explain(self, failed: _Frame) -> ConceptryError:
        """Returns the error that says who asks for what, what exists, and why each of it was refused."""
        name, options = failed.name, self._universe.list_options(failed.name)
        if not options:
            return self._universe.explain_missing(name)
        asked = "; ".join(self._list_asked(name))
        refused = "".join(f"; {text}" for text in failed.refused[:_SHOWN])
        message = f"no version of {name} will do: {asked}; {name} {_describe_options(options)}{refused}"
        if not failed.refused and not self._list_askers(name):
            return NotFoundError(message, hint=_suggest_range(name, options))
        return IncompatibleError(
            message, hint="widen one of these ranges in concepts.toml, or leave one concept out"
        )


def _names(requirements: Iterable[Requirement], name: ConceptName, version: Version) -> bool:
    return any(asked.concept == name and version in asked.versions for asked in requirements)


def _suggest_range(name: ConceptName, options: Sequence[Option]) -> str:
    """Returns the command that asks for the newest version that nobody yanked, or what to do if there is none."""
    newest = max((option.version for option in options if option.yanked is None), default=None)
    if newest is None:
        return f"all of it was yanked: ask who publishes {name} for another, or take it out of concepts.toml"
    return f"concepts add {name}@^{newest.major}.{newest.minor}"


def _describe_options(options: Sequence[Option]) -> str:
    """Returns what exists of a concept, newest last."""
    if not options:
        return "does not exist"
    shown = [
        f"{option.version} (yanked: {option.yanked})" if option.yanked is not None else str(option.version)
        for option in options[-_SHOWN:]
    ]
    more = "..., " if len(options) > _SHOWN else ""
    return f"exists as {more}{', '.join(shown)}"
