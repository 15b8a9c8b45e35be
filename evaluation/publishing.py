"""Scores as part of a version: the metrics of a manifest, and the patch release that differs in nothing else."""

from __future__ import annotations

import math
from typing import Final

from conceptry.bases import BaseIdentity, judge_fit
from conceptry.evaluation.scores import ConceptScores, IdentityScore, Measure, PromptScore
from conceptry.manifest import Build, Manifest, Metric
from conceptry.names import Version

_DIGITS: Final = 4


def list_metrics(scores: ConceptScores) -> tuple[Metric, ...]:
    """Returns the scores as metrics: ``identity`` with its interval, ``identity.floor`` and so on."""
    metrics: list[Metric] = []
    for name, measure in scores.list_measures().items():
        metrics += _list_anchored(name, measure, scores.protocol)
    return tuple(metrics)


def _list_anchored(name: str, measure: Measure | PromptScore, protocol: str) -> list[Metric]:
    best = measure.base if isinstance(measure, PromptScore) else measure.ceiling
    anchors = {"floor": measure.floor, "ceiling": best, "normalised": measure.normalised}
    if isinstance(measure, IdentityScore):
        anchors["ceiling_raw"] = measure.ceiling_raw
    low, high = (round(value, _DIGITS) for value in measure.interval)
    first = Metric(name=name, value=round(measure.score, _DIGITS), interval=(low, high), protocol=protocol)
    return [
        first,
        *(
            Metric(name=f"{name}.{anchor}", value=round(value, _DIGITS), protocol=protocol)
            for anchor, value in anchors.items()
            if math.isfinite(value)
        ),
    ]


def add_metrics(
    manifest: Manifest, scores: ConceptScores, identity: BaseIdentity, version: Version
) -> Manifest:
    """Returns the manifest as ``version``, with these metrics in its build for that base in place of the old ones.

    Everything else is as before, so that its files are the same blobs.
    """
    measured = max(manifest.builds, key=lambda build: judge_fit(build.base.identity, identity).fit)
    builds = tuple(_replace(build, scores) if build is measured else build for build in manifest.builds)
    return manifest.model_copy(update={"builds": builds, "version": version})


def _replace(build: Build, scores: ConceptScores) -> Build:
    kept = tuple(metric for metric in build.metrics if metric.protocol != scores.protocol)
    return build.model_copy(update={"metrics": (*kept, *list_metrics(scores))})


def has_metrics(manifest: Manifest, scores: ConceptScores) -> bool:
    """Returns whether a build of the manifest carries exactly these scores already."""
    wanted = list_metrics(scores)
    return any(
        tuple(metric for metric in build.metrics if metric.protocol == scores.protocol) == wanted
        for build in manifest.builds
    )
