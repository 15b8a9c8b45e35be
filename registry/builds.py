"""Which build of a concept goes to a project's base, as far as manifests alone can tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conceptry.bases import BaseIdentity, Fit, Verdict, judge_fit
from conceptry.kinds import KIND_BY_ID

if TYPE_CHECKING:
    from conceptry.manifest import Build, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildChoice:
    """The build that fits best, or why none does; no build and no refusal where nothing says which is meant."""

    build: Build | None = None
    refusal: str | None = None
    warnings: tuple[str, ...] = ()


def choose_build(manifest: Manifest, base: BaseIdentity | None, wanted: str | None = None) -> BuildChoice:
    """Returns the build of a concept for a base; ``wanted`` is the id that the project asks for.

    Where one side has no fingerprints, only the families can be compared, and that will do here: the composer judges
    again with the weights at hand, before a tensor is read.
    """
    builds = [build for build in manifest.builds if wanted in (None, build.id)]
    if not builds:
        return BuildChoice(
            refusal=f"has no build {wanted!r}, only {_join(build.id for build in manifest.builds)}"
        )
    if base is None:
        return BuildChoice(build=builds[0] if len(builds) == 1 else None)
    judged = [(build, judge_fit(build.base.identity, base)) for build in builds]
    build, verdict = max(judged, key=lambda row: row[1].fit)
    if verdict.fit < _ask_fit(build, base):
        families = _join(dict.fromkeys(build.base.family for build in builds))
        return BuildChoice(refusal=_refuse(base, verdict, families))
    exact = base.fingerprints and build.base.fingerprints
    told = tuple(text for text in verdict.warnings if exact or text not in verdict.reasons)
    return BuildChoice(build=build, warnings=told)


def _ask_fit(build: Build, base: BaseIdentity) -> Fit:
    if not base.fingerprints or not build.base.fingerprints:
        return Fit.ARCHITECTURE
    return max(KIND_BY_ID[kind].default_fit for kind in build.kinds)


def _refuse(base: BaseIdentity, verdict: Verdict, families: str) -> str:
    if verdict.fit is Fit.REFUSED:
        return f"has no build for {base.family}, only for {families}: {verdict.reasons[0]}"
    return f"fits the base by {verdict.fit.word} only: {verdict.reasons[0]}"


def _join(words: Iterable[str]) -> str:
    return ", ".join(words)
