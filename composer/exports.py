"""``export``: a composition as files that need no composer, one adapter or a whole diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from conceptry.bases import BaseIdentity, Fit
from conceptry.composer.compositions import Composition
from conceptry.composer.export_adapters import IN_ADAPTERS, plan_files
from conceptry.composer.export_checkpoints import plan_checkpoint
from conceptry.composer.export_folders import export_folder
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.merging import check_licenses
from conceptry.composer.pipelines import Pipeline
from conceptry.composer.plan import Plan, make_plan
from conceptry.errors import IncompatibleError, UsageError
from conceptry.formats.export_contract import Loss
from conceptry.formats.export_files import Exported, write_export
from conceptry.formats.exporting import SUFFIX, ExportPlan
from conceptry.formats.writers import find_writer

FOLDER: Final = "pipeline"
"""The target that is no program: a whole diffusers folder with everything inside its weights."""

CHECKPOINT: Final = "checkpoint"
"""The other one: a whole model in one file, for programs that take no folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a composition is written, and for whom."""

    path: Path
    """A new file where its name ends in ``.safetensors``, else a folder."""

    target: str | None = None
    """A row of WRITERS, ``pipeline`` or ``checkpoint``; None is diffusers, or a whole pipeline where need be."""

    force: bool = False
    lossy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedBase:
    """A base whose identity is known, and which is opened only where one of its weights is needed."""

    identity: BaseIdentity
    open: Callable[[], Pipeline]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedExport:
    """A composition that can be written: checked, added up, and not yet on the disk."""

    target: str
    write: Callable[[], tuple[Exported, ...]]
    """Returns the files once they are there. Raises ConflictError, StoreError, and as ``fuse`` for a whole folder."""

    warnings: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = field(default=())
    """What ``lossy`` accepted, worst first."""


def export(
    composition: Composition,
    base: Pipeline | BaseIdentity | ClosedBase,
    destination: Destination | Path,
    *,
    fit: Fit | None = None,
) -> tuple[Exported, ...]:
    """Returns the files that hold a composition at its strengths, so that other programs draw what ``attach`` draws.

    Adapters are added up exactly, factors side by side. Words lie beside the adapter in files of their own. What is no
    adapter goes into a whole diffusers folder, which plain ``from_pretrained`` opens.

    Args:
        composition: concepts with strengths.
        base: an open pipeline, which is left as it was; its identity alone is enough for plain adapters.
        destination: where to, and for which program.
        fit: how closely every concept must fit the base; None asks what each kind asks.

    Raises:
        UsageError: if the destination does not go with the composition.
        IncompatibleError: for what no weight holds, such as gates and schedules, what the program cannot read, or what
            a licence forbids.
        ConflictError: if a file exists already and ``force`` is not set.
        StoreError: if the disk is full.
    """
    return prepare_export(composition, base, destination, fit=fit).write()


def prepare_export(
    composition: Composition,
    base: Pipeline | BaseIdentity | ClosedBase,
    destination: Destination | Path,
    *,
    fit: Fit | None = None,
) -> PreparedExport:
    """Returns what ``export`` writes, with its warnings; nothing is on the disk yet. Raises as ``export``."""
    place = Destination(path=destination) if isinstance(destination, Path) else destination
    opener = _Opener(composition, base, fit)
    plan = make_plan(composition, opener.identity, fit)
    check_licenses(plan)
    _refuse_steering(composition)
    kinds = {kind for member in plan.members for kind in member.build.kinds}
    target = place.target or ("diffusers" if kinds <= IN_ADAPTERS else FOLDER)
    if target not in (FOLDER, CHECKPOINT):
        files = plan_files(
            plan, opener.open, place.path, find_writer(target), force=place.force, lossy=place.lossy
        )
        return _prepare_files(files)
    _refuse_gates(plan)
    if target == CHECKPOINT:
        if place.path.suffix.lower() != SUFFIX:
            raise UsageError(
                f"a checkpoint is one file, not {place.path.name!r}",
                hint=f"name {place.path.with_suffix(SUFFIX)}",
            )
        opened = _require_open(opener)
        return _prepare_files(
            plan_checkpoint(composition, opened, plan=plan, path=place.path, force=place.force)
        )
    if place.path.suffix.lower() == SUFFIX:
        raise UsageError(
            f"a {' and a '.join(sorted(kinds - IN_ADAPTERS) or sorted(kinds))} part goes into a whole diffusers "
            f"folder, not into the file {place.path.name!r}",
            hint=f"name a folder: {place.path.with_suffix('')}",
        )
    pipeline = _require_open(opener)
    return PreparedExport(
        target=target,
        write=lambda: export_folder(composition, pipeline, place.path, fit=fit, force=place.force),
    )


def _prepare_files(files: ExportPlan) -> PreparedExport:
    return PreparedExport(
        target=files.target,
        write=lambda: write_export(files),
        warnings=files.warnings,
        losses=tuple(sorted(files.losses, key=lambda loss: -loss.relative_error)),
    )


def _require_open(opener: _Opener) -> Pipeline:
    pipeline = opener.open()
    if pipeline is None:
        raise UsageError(
            "a whole model holds the base's weights, and only its identity is given", hint="open the base"
        )
    return pipeline


class _Opener:
    """The base of an export, opened at most once and held against the composition when it is."""

    def __init__(
        self, composition: Composition, base: Pipeline | BaseIdentity | ClosedBase, fit: Fit | None
    ) -> None:
        self._composition, self._base, self._fit = composition, base, fit
        self._opened: Pipeline | None = None
        if isinstance(base, BaseIdentity):
            self.identity = base
        elif isinstance(base, ClosedBase):
            self.identity = base.identity
        else:
            self.identity, self._opened = identify_pipeline(base), base

    def open(self) -> Pipeline | None:
        if self._opened is None and isinstance(self._base, ClosedBase):
            opened = self._base.open()
            make_plan(self._composition, identify_pipeline(opened), self._fit)
            self._opened = opened
        return self._opened


_AS_IT_IS: Final = "share the composition as it is: concepts compose --out"


def _refuse_steering(composition: Composition) -> None:
    if composition.way != "sum" and len(composition.members) > 1:
        raise IncompatibleError(
            f"in the way {composition.way!r} concepts share the steps of a drawing, which no file of weights holds",
            hint=f"leave out the way, or {_AS_IT_IS}",
        )
    for member in composition.members:
        for what, given in (("schedule", member.use.schedule), ("region", member.use.region)):
            if given is not None:
                raise IncompatibleError(
                    f"the {what} of {member.concept.label} is of the drawing, and no file of weights holds it",
                    hint=f"leave out the {what}, or {_AS_IT_IS}",
                )


def _refuse_gates(plan: Plan) -> None:
    for member in plan.members:
        if "hypernetwork" in member.build.kinds:
            raise IncompatibleError(
                f"{member.concept.label} cannot be put into weights: a hypernetwork has activations between its layers",
                hint=f"attach it where it is used, or {_AS_IT_IS}",
            )
        if "rank_one" in member.build.kinds:
            raise IncompatibleError(
                f"{member.concept.label} cannot be put into weights: its gates open anew for each token "
                "(arXiv 2305.01644)",
                hint=f"attach it where it is used, or {_AS_IT_IS}",
            )
