"""Several concepts with strengths, and the words that call them: what a user asks for, before anything is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from conceptry.concepts import Concept, WeightedConcept
from conceptry.errors import UsageError
from conceptry.names import Placeholder, parse_placeholder


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One concept of a composition, its strength, and other words for its placeholders."""

    concept: Concept
    strength: float = 1.0
    rename: Mapping[Placeholder, Placeholder] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, init=False)
class Composition:
    """Concepts for one pipeline: ``Composition(imp, ukiyo * 0.7)``.

    Args:
        concepts: each at strength 1, or multiplied by one. No concept may occur twice.
        rename: ``{"alice/blue-imp": {"<x>": "<imp>"}}``, other words for a concept's placeholders.

    Raises:
        UsageError: if there is no concept, one occurs twice, or ``rename`` names one that is not there.
        InvalidNameError: if a new word is no placeholder.
    """

    members: tuple[Member, ...]

    def __init__(
        self,
        *concepts: Concept | WeightedConcept,
        rename: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        weighted = [
            one if isinstance(one, WeightedConcept) else WeightedConcept(one, 1.0) for one in concepts
        ]
        renamed = {name: _parse_words(words) for name, words in (rename or {}).items()}
        names = [str(one.concept.manifest.name) for one in weighted]
        unknown = [name for name in renamed if name not in names]
        if unknown:
            raise UsageError(
                f"{unknown[0]!r} is to be renamed but not in the composition",
                hint=f"it has {', '.join(names)}",
            )
        members = tuple(
            Member(concept=one.concept, strength=one.strength, rename=renamed.get(name, {}))
            for one, name in zip(weighted, names, strict=True)
        )
        _check_members(members)
        object.__setattr__(self, "members", members)

    def with_members(self, members: tuple[Member, ...]) -> Composition:
        """Returns a composition of ``members``. Raises UsageError as the constructor."""
        _check_members(members)
        changed = object.__new__(Composition)
        object.__setattr__(changed, "members", members)
        return changed


def _parse_words(words: Mapping[str, str]) -> dict[Placeholder, Placeholder]:
    return {parse_placeholder(old): parse_placeholder(new) for old, new in words.items()}


def _check_members(members: tuple[Member, ...]) -> None:
    if not members:
        raise UsageError("a composition has at least one concept")
    digests = [member.concept.digest for member in members]
    for member in members:
        if digests.count(member.concept.digest) > 1:
            raise UsageError(
                f"{member.concept.label} occurs twice in the composition",
                hint="name it once, with a greater strength",
            )
