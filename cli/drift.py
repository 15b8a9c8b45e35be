"""``concepts check --on``: reading two models one after the other, and saying how they differ where concepts work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from conceptry.cli.bases import TOYBOX, open_base
from conceptry.cli.session import Session
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from conceptry.composer.compositions import Composition
    from conceptry.composer.drift import Drift
    from conceptry.composer.layer_deltas import Weights
    from conceptry.composer.plan import Plan

_WORST_LAYERS: Final = 5


class DriftReader:
    """Two models of which one is in memory at a time; the weights that concepts change are kept of both.

    Args:
        session: whose bases are named.
        composition: the concepts.
        base: the model that they were made for; None takes the toybox where they were made for it, else none.
        other: the model that they are to be used on.

    Raises:
        UsageError: if ``other`` names a family only.
        NotFoundError, IncompatibleError, InvalidFileError: if a model cannot be opened.
    """

    def __init__(self, session: Session, composition: Composition, base: str | None, other: str) -> None:
        from conceptry.base_locations import resolve_base
        from conceptry.composer.fingerprints import identify_pipeline

        location = resolve_base(other, session.registry.bases())
        if location.path is None:
            raise UsageError(f"{other} is declared without weights", hint="--on a folder or a checkpoint")
        concepts = [member.concept for member in composition.members]
        families = {build.base.family for concept in concepts for build in concept.manifest.builds}
        if base is None and families == {TOYBOX}:
            base = TOYBOX
        own = None if base is None else resolve_base(base, session.registry.bases())
        self._session = session
        self._own = None if own is None or own.path is None else own
        self._pipeline: Any = open_base(session, location)
        self.identity = identify_pipeline(self._pipeline)

    @property
    def weights(self) -> Weights:
        """What finds the weights of the other model, before ``measure``."""
        from conceptry.composer.layer_deltas import open_weights

        return open_weights(self._pipeline)

    def measure(self, plan: Plan) -> tuple[Drift, ...]:
        """Returns the drift for each concept; the first model is let go before the second is read. Ends this reader."""
        from conceptry.composer.drift import measure_drift, read_weights
        from conceptry.composer.overlaps import list_changed_modules

        modules = {module for member in plan.members for module in list_changed_modules(member)}
        theirs = read_weights(self._pipeline, modules)
        self._pipeline = None
        mine: dict[str, Tensor] | None = None
        if self._own is not None:
            mine = read_weights(open_base(self._session, self._own), modules)
        return tuple(measure_drift(member, self.identity, theirs, mine) for member in plan.members)


def drifts_to_json(drifts: Sequence[Drift]) -> dict[str, Any]:
    """Returns what ``check --json`` says of ``--on``."""
    return {"drift": [{**asdict(one), "mean": one.mean} for one in drifts]}


def describe_drifts(drifts: Sequence[Drift]) -> Iterator[str]:
    """Returns the drift in lines, the most drifted layers first."""
    for one in drifts:
        if one.mean is None:
            sampled = ", ".join(f"{name} {value:.1%}" for name, value in one.components.items()) or "unknown"
            yield f"drift for {one.concept}, by the values of its base's fingerprint: {sampled}"
            continue
        yield f"drift for {one.concept}: {one.mean:.1%} on average over the {len(one.layers)} layers that it changes"
        for layer in one.layers[:_WORST_LAYERS]:
            read = "" if layer.read_drift is None else f", {layer.read_drift:.1%} of what it reads"
            beside = (
                "" if layer.beside_concept is None else f", {layer.beside_concept:.1f} times its own change"
            )
            yield f"  {layer.drift:7.1%}{read}{beside}  {layer.module}"
        if one.missing:
            yield f"  {len(one.missing)} layers are not in both, such as {one.missing[0]}"
