"""Several concepts with strengths, and the words that call them: what a user asks for, before anything is checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from conceptry.composer.masks import Mask
from conceptry.composition import MAX_STRENGTH, CompositionDocument, Use, Way
from conceptry.concepts import Concept, WeightedConcept
from conceptry.errors import UsageError
from conceptry.names import Placeholder, parse_placeholder


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One concept of a composition, its strength, and other words for its placeholders."""

    concept: Concept
    strength: float = 1.0
    rename: Mapping[Placeholder, Placeholder] = field(default_factory=dict)
    use: Use = field(default_factory=Use)
    """In which parts of the network, when and where it is in effect."""


@dataclass(frozen=True, slots=True, init=False)
class Composition:
    """Concepts for one pipeline: ``Composition(imp, ukiyo * 0.7)``.

    Args:
        concepts: each at strength 1, or multiplied by one. No concept may occur twice.
        rename: ``{"alice/blue-imp": {"<x>": "<imp>"}}``, other words for a concept's placeholders.
        use: ``{"bob/ukiyo": Use(schedule=Schedule(stop=0.6))}``, in which parts of the network, when and where.
        way: ``sum``, all at once; ``switch``, by turns; ``composite``, the mean of what each alone predicts; ``focus``,
            each by itself where it changes most.
        period: of ``switch``, for how many steps each has its turn.
        masks: those that regions of ``use`` name by their digests, as ``read_mask`` returns them.

    Raises:
        UsageError: if there is no concept, one occurs twice, a strength is not finite or beyond
            ``MAX_STRENGTH``, ``rename`` or ``use`` names a concept that is not there, or a region a mask that is not.
        InvalidNameError: if a new word is no placeholder.
    """

    members: tuple[Member, ...]
    way: Way
    period: int
    masks: tuple[Mask, ...]

    def __init__(
        self,
        *concepts: Concept | WeightedConcept,
        rename: Mapping[str, Mapping[str, str]] | None = None,
        use: Mapping[str, Use] | None = None,
        way: Way = "sum",
        period: int = 5,
        masks: Iterable[Mask] = (),
    ) -> None:
        weighted = [
            one if isinstance(one, WeightedConcept) else WeightedConcept(one, 1.0) for one in concepts
        ]
        renamed = {name: _parse_words(words) for name, words in (rename or {}).items()}
        names = [str(one.concept.manifest.name) for one in weighted]
        used = use or {}
        for name, what in (
            (name, what) for given, what in ((renamed, "renamed"), (used, "set")) for name in given
        ):
            if name not in names:
                raise UsageError(
                    f"{name!r} is to be {what} but not in the composition", hint=f"it has {', '.join(names)}"
                )
        members = tuple(
            Member(
                concept=one.concept,
                strength=one.strength,
                rename=renamed.get(name, {}),
                use=used.get(name, Use()),
            )
            for one, name in zip(weighted, names, strict=True)
        )
        given = tuple(masks)
        _check_members(members, given)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "way", way)
        object.__setattr__(self, "period", period)
        object.__setattr__(self, "masks", given)

    @classmethod
    def of_document(
        cls, document: CompositionDocument, concepts: Sequence[Concept], *, masks: Iterable[Mask] = ()
    ) -> Composition:
        """Returns what a document says, with its concepts in their order.

        Raises:
            UsageError: as the constructor.
            IntegrityError: if the document names a concept by another digest.
        """
        document.check_digests([one.digest for one in concepts])
        weighted = [one * member.strength for one, member in zip(concepts, document.concepts, strict=True)]
        rename = {
            str(member.reference.concept): {str(old): str(new) for old, new in member.rename.items()}
            for member in document.concepts
            if member.rename
        }
        use = {
            str(member.reference.concept): Use(
                parts=member.parts, schedule=member.schedule, region=member.region
            )
            for member in document.concepts
        }
        return cls(*weighted, rename=rename, use=use, way=document.way, period=document.period, masks=masks)

    def with_members(self, members: tuple[Member, ...]) -> Composition:
        """Returns a composition of ``members``. Raises UsageError as the constructor."""
        _check_members(members, self.masks)
        return self._copy(members, self.way)

    def with_way(self, way: Way) -> Composition:
        """Returns the same concepts used in another way."""
        return self._copy(self.members, way)

    def _copy(self, members: tuple[Member, ...], way: Way) -> Composition:
        changed = object.__new__(Composition)
        object.__setattr__(changed, "members", members)
        object.__setattr__(changed, "way", way)
        object.__setattr__(changed, "period", self.period)
        object.__setattr__(changed, "masks", self.masks)
        return changed


def _check_strength(member: Member) -> None:
    for part, strength in {"": member.strength, **member.use.parts}.items():
        # Not a number is within no bounds.
        if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
            what = f"{member.concept.label} in {part}" if part else member.concept.label
            raise UsageError(
                f"the strength of {what} is {strength}",
                hint=f"write a number between -{MAX_STRENGTH:g} and {MAX_STRENGTH:g}, such as 0.7",
            )


def _parse_words(words: Mapping[str, str]) -> dict[Placeholder, Placeholder]:
    return {parse_placeholder(old): parse_placeholder(new) for old, new in words.items()}


def _check_members(members: tuple[Member, ...], masks: tuple[Mask, ...]) -> None:
    if not members:
        raise UsageError("a composition has at least one concept")
    digests = [member.concept.digest for member in members]
    known = {mask.digest for mask in masks}
    for member in members:
        _check_strength(member)
        if digests.count(member.concept.digest) > 1:
            raise UsageError(
                f"{member.concept.label} occurs twice in the composition",
                hint="name it once, with a greater strength",
            )
        region = member.use.region
        if region is not None and region.mask is not None and region.mask not in known:
            raise UsageError(
                f"the region of {member.concept.label} is the mask {region.mask}, which is not given",
                hint="Composition(..., masks=[read_mask(path)])",
            )
