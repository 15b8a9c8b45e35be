"""``attach`` and ``fuse``: a composition into a pipeline, and out again exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final

from torch import Tensor

from conceptry.bases import ComponentName, Fit
from conceptry.composer.compositions import Composition, Member
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.hooks import Generation
from conceptry.composer.pipelines import Pipeline
from conceptry.composer.plan import Plan, make_plan
from conceptry.composer.protection import find_compiled
from conceptry.composer.report import Report
from conceptry.composer.slots import Slot, exchange_slots, prepare_slots, put_all_in, take_all_out
from conceptry.composer.steering import Steering
from conceptry.concepts import Concept, WeightedConcept
from conceptry.errors import UsageError
from conceptry.names import Placeholder

_ATTACHMENTS: Final = "_conceptry_attachments"
_SPARE_SLOTS: Final = 16
"""Concepts that left most recently stay in memory, so that they come back without a look at their files."""


class Attachment:
    """A composition that is in a pipeline; as a context manager it gives its report and detaches at the end."""

    def __init__(
        self, composition: Composition, pipeline: Pipeline, *, fit: Fit | None = None, fused: bool = False
    ) -> None:
        plan = make_plan(composition, identify_pipeline(pipeline), fit)
        self.composition = composition
        self._pipeline = pipeline
        self._fit = fit
        self._fused = fused
        self._compiled = find_compiled(pipeline)
        self._spare: tuple[Slot, ...] = ()
        self._slots = prepare_slots(plan.members, pipeline, fused=fused, compiled=self._compiled)
        self.report = _make_report(plan, self._slots)
        put_all_in(self._slots)
        try:
            self._steering = Steering(pipeline, composition, self._slots).attach()
        except BaseException:  # nothing of the composition stays
            take_all_out(self._slots)
            raise
        pipeline.__dict__[_ATTACHMENTS] = [*pipeline.__dict__.get(_ATTACHMENTS, ()), self]

    def set_strengths(self, strengths: Mapping[str, float]) -> Report:
        """Returns the report with other strengths in effect: ``attachment.set_strengths({"alice/blue-imp": 0.5})``.

        Nothing is read, and nothing is taken out and put in again.

        Raises:
            UsageError: if a name is not in the composition, or a strength is not finite; nothing is then changed.
        """
        self._check_names(strengths)
        for name, strength in strengths.items():
            if not math.isfinite(strength):
                raise UsageError(f"the strength of {name} is {strength}", hint="write a number, such as 0.7")
        members = tuple(
            replace(member, strength=strengths.get(str(member.concept.manifest.name), member.strength))
            for member in self.composition.members
        )
        return self.change(self.composition.with_members(members))

    def replace(self, name: str, concept: Concept | WeightedConcept) -> Report:
        """Returns the report with ``concept`` in the place of the one called ``name``; the others stay as they are.

        Raises:
            UsageError: if no concept of the composition is called ``name``, or the new one is in it already.
            IncompatibleError: as ``attach``; the pipeline is then as it was.
        """
        self._check_names([name])
        weighted = concept if isinstance(concept, WeightedConcept) else WeightedConcept(concept, 1.0)
        new = Member(concept=weighted.concept, strength=weighted.strength)
        members = tuple(
            new if str(member.concept.manifest.name) == name else member
            for member in self.composition.members
        )
        return self.change(self.composition.with_members(members))

    def change(self, composition: Composition) -> Report:
        """Returns the report with ``composition`` in effect; what it shares with the one before is not touched.

        Raises:
            UsageError: if this attachment was taken out.
            IncompatibleError: as ``attach``; the pipeline is then as it was.
        """
        if self not in self._pipeline.__dict__.get(_ATTACHMENTS, ()):
            raise UsageError("this composition was taken out of the pipeline", hint="attach it again")
        plan = make_plan(composition, self.report.plan.identity, self._fit)
        slots = prepare_slots(
            plan.members,
            self._pipeline,
            fused=self._fused,
            compiled=self._compiled,
            kept=(*self._slots, *self._spare),
        )
        self._steering = self._exchange(composition, slots, plan)
        left = [slot for slot in (*self._slots, *self._spare) if slot not in slots]
        self.composition, self._slots, self._spare = composition, slots, tuple(left[:_SPARE_SLOTS])
        self.report = _make_report(plan, slots)
        Generation.value += 1
        return self.report

    def list_words(self) -> dict[ComponentName, dict[Placeholder, Tensor]]:
        """Returns the rows that words have at their strengths, by text encoder and word."""
        found: dict[ComponentName, dict[Placeholder, Tensor]] = {}
        for slot in self._slots:
            for token in slot.gathered.tokens:
                for component in token.rows:
                    rows = token.blend(component, slot.member.strength)
                    found.setdefault(component, {})[token.placeholder] = rows
        return found

    def detach(self) -> None:
        """Takes the composition out; every parameter, buffer and tokenizer is then as before. Twice does nothing."""
        self._steering.detach()
        take_all_out(self._slots)
        state = self._pipeline.__dict__
        remaining = [other for other in state.get(_ATTACHMENTS, ()) if other is not self]
        if remaining:
            state[_ATTACHMENTS] = remaining
        else:
            state.pop(_ATTACHMENTS, None)

    def _exchange(self, composition: Composition, slots: tuple[Slot, ...], plan: Plan) -> Steering:
        """Returns what follows the steps with the new slots in; after an error the old ones are, and are followed."""
        self._steering.detach()
        try:
            exchange_slots(self._slots, slots, plan.members)
            try:
                return Steering(self._pipeline, composition, slots).attach()
            except BaseException:
                exchange_slots(slots, self._slots, self.report.plan.members)
                raise
        except BaseException:
            self._steering.attach()
            raise

    def _check_names(self, names: Iterable[str]) -> None:
        known = [str(member.concept.manifest.name) for member in self.composition.members]
        for name in names:
            if name not in known:
                raise UsageError(f"{name!r} is not in the composition", hint=f"it has {', '.join(known)}")

    def __enter__(self) -> Report:
        return self.report

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(composition: Composition, pipeline: Pipeline, *, fit: Fit | None = None) -> Attachment:
    """Puts a composition into a pipeline and returns the attachment; after an error the pipeline is as it was.

    Several attachments may be in one pipeline, and come out in any order.

    Args:
        composition: concepts with strengths.
        pipeline: an open diffusers pipeline, on any device and in any precision.
        fit: how closely every concept must fit the base; None asks what each kind asks.

    Raises:
        IncompatibleError: if a concept does not fit the base, another concept, or anything at all of the pipeline.
        InvalidPlaceholderError: if a placeholder is a word of the base's vocabulary.
        InvalidFileError: if a file is malformed.
        NotFoundError: if a file of a concept is not on this machine.
    """
    return Attachment(composition, pipeline, fit=fit)


def fuse(composition: Composition, pipeline: Pipeline, *, fit: Fit | None = None) -> Attachment:
    """Puts a composition into the weights themselves and returns the attachment: pictures then cost what the base's do.

    ``detach`` gives the base's own bytes back, which are kept aside, and strengths may change in between: every weight
    is made anew from them. Words still stand beside the table of the text encoder.

    Args:
        composition: concepts with strengths.
        pipeline: an open diffusers pipeline, on any device and in any precision.
        fit: how closely every concept must fit the base; None asks what each kind asks.

    Raises:
        IncompatibleError: as ``attach``, and for what no weight can hold.
        InvalidPlaceholderError, InvalidFileError, NotFoundError: as ``attach``.
    """
    return Attachment(composition, pipeline, fit=fit, fused=True)


def detach(pipeline: Pipeline) -> None:
    """Takes everything out that ``attach`` or ``fuse`` put into ``pipeline``."""
    for attachment in reversed(pipeline.__dict__.get(_ATTACHMENTS, [])):
        attachment.detach()


def _make_report(plan: Plan, slots: Sequence[Slot]) -> Report:
    warnings = [*plan.warnings, *(text for slot in slots for text in slot.gathered.warnings)]
    concepts = tuple(slot.gathered.describe(member) for slot, member in zip(slots, plan.members, strict=True))
    return Report(plan=plan, concepts=concepts, warnings=tuple(warnings))
