"""A composition that was checked against a base: from manifests alone, before a tensor is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from conceptry.bases import FAMILY_BY_ID, BaseIdentity, Fit, Verdict, judge_fit
from conceptry.composer.compositions import Composition, Member
from conceptry.composer.prompts import find_tags
from conceptry.composition import CompositionDocument, Use, Way
from conceptry.composition import Member as DocumentMember
from conceptry.concepts import Concept
from conceptry.digests import Digest, canonical_json
from conceptry.errors import IncompatibleError, UsageError
from conceptry.kinds import KIND_BY_ID
from conceptry.licenses import combine_permissions, iter_objections
from conceptry.manifest import Build, Permissions, RankOneMethod
from conceptry.names import Placeholder, Reference
from conceptry.words import choose_words, describe_speaker

_UNET: Final = "unet"
_WAYS_IN_PASSES: Final = ("composite", "focus")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMember:
    """One concept, the build that fits the base best, and the words that call it here."""

    concept: Concept
    strength: float
    build: Build
    verdict: Verdict
    words: Mapping[Placeholder, Placeholder]
    """The placeholder in this composition, by the placeholder as published."""

    use: Use = field(default_factory=Use)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be attached, the least that all licences permit, and what deserves a warning."""

    identity: BaseIdentity
    members: tuple[PlannedMember, ...]
    permissions: Permissions
    warnings: tuple[str, ...]
    way: Way = "sum"
    period: int = 5

    @property
    def digest(self) -> Digest:
        """The SHA-256 of ``to_json`` in canonical JSON: equal where one base gets the same bytes in the same way."""
        return Digest.of_bytes(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Returns all that decides what is computed: base, concepts and builds by digest, words, strengths and uses."""
        prints = self.identity.fingerprints
        return {
            "schema": 1,
            "base": {
                "family": self.identity.family,
                "prediction_type": self.identity.prediction_type,
                "components": {str(name): str(prints[name].digest) for name in sorted(prints)},
            },
            "concepts": [
                {
                    "reference": one.concept.label,
                    "digest": str(one.concept.digest),
                    "build": one.build.id,
                    "strength": one.strength,
                    "words": {str(old): str(new) for old, new in one.words.items()},
                    **one.use.model_dump(mode="json", exclude_defaults=True),
                }
                for one in self.members
            ],
            "way": self.way,
            **({"period": self.period} if self.way == "switch" else {}),
        }

    def to_document(self) -> CompositionDocument:
        """Returns the composition with exact versions, digests and words: on the same base it is planned the same."""
        return CompositionDocument(
            concepts=tuple(
                DocumentMember(
                    reference=Reference(one.concept.manifest.name, one.concept.manifest.version),
                    digest=one.concept.digest,
                    strength=one.strength,
                    rename={old: new for old, new in one.words.items() if old != new},
                    **dict(one.use),
                )
                for one in self.members
            ),
            way=self.way,
            period=self.period,
        )


def make_plan(composition: Composition, identity: BaseIdentity, fit: Fit | None = None) -> Plan:
    """Returns the composition checked against a base.

    Args:
        composition: what is asked for.
        identity: of the pipeline, as ``identify_pipeline`` reads it, or of a base that is declared only.
        fit: how closely every concept must fit; None asks what each kind asks.

    Raises:
        IncompatibleError: if a concept does not fit the base, or two do not fit each other.
        UsageError: if the prompt of a region names a concept.
    """
    builds = [_choose_build(member.concept, identity, fit) for member in composition.members]
    words = _choose_words(composition.members, [build for build, _ in builds])
    members = tuple(
        PlannedMember(
            concept=member.concept,
            strength=member.strength,
            build=build,
            verdict=verdict,
            words=names,
            use=member.use,
        )
        for member, (build, verdict), names in zip(composition.members, builds, words, strict=True)
    )
    _check_covariances(members)
    _check_conflicts(members)
    _check_passes(composition, identity)
    _check_prompts(members)
    licensed = [(member.concept.label, member.concept.manifest.license) for member in members]
    objections = [f"{one.label} {one.message}" for one in iter_objections(licensed)]
    return Plan(
        identity=identity,
        members=members,
        permissions=combine_permissions(license for _, license in licensed),
        warnings=(*_iter_warnings(members), *_iter_idle_uses(composition.way, members), *objections),
        way=composition.way,
        period=composition.period,
    )


# --- one concept and the base --------------------------------------------------------------------------------------


def _choose_build(concept: Concept, identity: BaseIdentity, fit: Fit | None) -> tuple[Build, Verdict]:
    if concept.manifest.members:
        raise IncompatibleError(
            f"{concept.label} is a composition: the concepts that it names are to stand in its place",
            hint=f"concepts compose {concept.label} writes them out",
        )
    judged = [(build, judge_fit(build.base.identity, identity)) for build in concept.manifest.builds]
    build, verdict = max(judged, key=lambda row: row[1].fit)
    wanted = fit if fit is not None else max(KIND_BY_ID[kind].default_fit for kind in build.kinds)
    if verdict.fit < max(wanted, Fit.ARCHITECTURE):
        raise IncompatibleError(
            f"{concept.label} does not fit this base ({verdict.fit.word}, but {wanted.word} is asked): "
            f"{verdict.reasons[0]}",
            where=f"builds[{concept.manifest.builds.index(build)}].base",
            hint=_hint_fit(build, verdict, wanted),
        )
    return build, verdict


def _hint_fit(build: Build, verdict: Verdict, wanted: Fit) -> str:
    if verdict.fit is Fit.REFUSED:
        return f"it was made for {build.base.repo or build.base.family}: use that base"
    return f"it may work all the same: ask for fit {verdict.fit.word}; {wanted.word} is what its kind asks"


# --- words ---------------------------------------------------------------------------------------------------------


def _choose_words(members: tuple[Member, ...], builds: list[Build]) -> list[dict[Placeholder, Placeholder]]:
    """Returns the words of each member; those of builds that expand them give way where two are alike."""
    return choose_words(
        [
            describe_speaker(member.concept.manifest, build, member.rename)
            for member, build in zip(members, builds, strict=True)
        ]
    )


# --- concepts and one another --------------------------------------------------------------------------------------


def _iter_rank_one(members: tuple[PlannedMember, ...]) -> Iterator[tuple[PlannedMember, RankOneMethod]]:
    for member in members:
        for part in member.build.parts:
            if isinstance(part.method, RankOneMethod):
                yield member, part.method


def _check_covariances(members: tuple[PlannedMember, ...]) -> None:
    rows = list(_iter_rank_one(members))
    for member, method in rows[1:]:
        first, expected = rows[0]
        if method.covariance != expected.covariance:
            raise IncompatibleError(
                f"{first.concept.label} and {member.concept.label} were made with different covariances "
                f"({expected.covariance.hex[:12]}, {method.covariance.hex[:12]}), so they cannot be solved together",
                hint="train one of them again on the same base with the same captions",
            )


def _check_conflicts(members: tuple[PlannedMember, ...]) -> None:
    for member in members:
        for rule in member.concept.manifest.conflicts:
            for other in members:
                manifest = other.concept.manifest
                if (
                    other is not member
                    and manifest.name == rule.concept
                    and manifest.version in rule.versions
                ):
                    raise IncompatibleError(
                        f"{member.concept.label} says that it conflicts with {other.concept.label}"
                    )


def _check_passes(composition: Composition, identity: BaseIdentity) -> None:
    """Passes of their own are put together by rows and columns, which transformers have none of."""
    if FAMILY_BY_ID[identity.family].denoiser == _UNET:
        return
    region = next((member for member in composition.members if member.use.region is not None), None)
    if region is None and composition.way not in _WAYS_IN_PASSES:
        return
    what = f"the way {composition.way!r}" if region is None else f"the region of {region.concept.label}"
    raise IncompatibleError(
        f"{what} needs a denoiser of rows and columns, a UNet, and {identity.family} has a transformer",
        hint="use the way 'sum' or 'switch', without regions",
    )


def _check_prompts(members: tuple[PlannedMember, ...]) -> None:
    for member in members:
        tags = find_tags(member.use.region.prompt or "") if member.use.region is not None else ()
        if tags:
            raise UsageError(
                f"the prompt of the region of {member.concept.label} names the {tags[0].kind} {tags[0].name!r}",
                hint="name it in the composition, and write its word: concepts compose REF...",
            )


def _iter_warnings(members: tuple[PlannedMember, ...]) -> Iterator[str]:
    present = {str(member.concept.manifest.name) for member in members}
    for member in members:
        label, usage = member.concept.label, member.concept.manifest.usage
        yield from (f"{label}: {text}" for text in member.verdict.warnings)
        if member.strength and not usage.min <= member.strength <= usage.max:
            suggested = f"{usage.min:g} to {usage.max:g}"
            yield f"{label}: strength {member.strength:g} is outside what its author suggests, {suggested}"
        for old, new in member.words.items():
            if old != new:
                yield f"{label}: {old} is written {new} here"
        for rule in member.concept.manifest.requires:
            if str(rule.concept) not in present:
                yield f"{label}: it asks for {rule} beside it"


def _iter_idle_uses(way: Way, members: tuple[PlannedMember, ...]) -> Iterator[str]:
    """Returns what is asked in vain: concepts that change how words are read do so once, for all steps and places."""
    wordy = [member for member in members if set(member.build.kinds) == {"embedding"}]
    for member in wordy:
        region = member.use.region
        if member.use.schedule is not None or (region is not None and region.prompt is None):
            what = "schedule" if member.use.schedule is not None else "region without a prompt"
            yield f"{member.concept.label}: a {what} does nothing to it: its words are read once, for all of a picture"
    if way not in ("sum", "focus") and len(members) - len(wordy) < 2:
        yield f"the way {way!r} is of two concepts or more that change the denoiser, so all are used at once"
