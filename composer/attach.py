"""``attach`` and ``fuse``: a composition into a pipeline, and out again exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Final

from torch import Tensor

from conceptry.bases import BaseIdentity, ComponentName, Fit
from conceptry.composer.compositions import Composition, Member
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.hooks import Generation
from conceptry.composer.pipelines import Pipeline
from conceptry.composer.placeholders import release_readers
from conceptry.composer.plan import Plan, PlannedMember, make_plan
from conceptry.composer.protection import find_compiled
from conceptry.composer.report import Report
from conceptry.composer.slots import Slot, exchange_slots, prepare_slots, return_slots, take_all_out
from conceptry.composer.standins import end_all, settle, together
from conceptry.composer.steering import Steering
from conceptry.composer.undoing import run_all
from conceptry.concepts import Concept, WeightedConcept
from conceptry.errors import IncompatibleError, UsageError
from conceptry.names import ConceptName, Placeholder

_ATTACHMENTS: Final = "_conceptry_attachments"
_SPARE_SLOTS: Final = 16
"""Concepts that left most recently stay in memory, so that they come back without a look at their files."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _State:
    """All that is in a pipeline of one composition."""

    composition: Composition
    slots: tuple[Slot, ...]
    steering: Steering
    report: Report

    @property
    def members(self) -> tuple[PlannedMember, ...]:
        """The concepts as they were planned, in order."""
        return self.report.plan.members


class Attachment:
    """A composition that is in a pipeline; as a context manager it gives its report and detaches at the end."""

    def __init__(
        self, composition: Composition, pipeline: Pipeline, *, fit: Fit | None = None, fused: bool = False
    ) -> None:
        end_all()
        self._pipeline = pipeline
        self._fit = fit
        self._fused = fused
        self._compiled = find_compiled(pipeline)
        self._spare: tuple[Slot, ...] = ()
        self._next: _State | None = None
        """What an exchange was on its way to when an error came that could not be undone either."""

        self._state = self._prepare(composition, identify_pipeline(pipeline))
        try:
            # Before anything changes: whatever happens meanwhile, `detach(pipeline)` finds what is in.
            pipeline.__dict__[_ATTACHMENTS] = [*pipeline.__dict__.get(_ATTACHMENTS, ()), self]
            exchange_slots((), self._state.slots, self._state.members)
            self._state.steering.attach()
        except BaseException:  # nothing of the composition stays
            self.detach()
            raise

    @property
    def composition(self) -> Composition:
        """What is in the pipeline."""
        return self._state.composition

    @property
    def report(self) -> Report:
        """What was done, what was left out and what deserves a warning."""
        return self._state.report

    def set_strengths(self, strengths: Mapping[str, float]) -> Report:
        """Returns the report with other strengths in effect: ``attachment.set_strengths({"alice/blue-imp": 0.5})``.

        Nothing is read, and nothing is taken out and put in again.

        Raises:
            UsageError: if a name is not in the composition, or a strength is not finite or beyond ``MAX_STRENGTH``;
                nothing is then changed.
        """
        self._check_names(strengths)
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
        end_all()
        self._undo()
        before, kept = self._state, (*self._state.slots, *self._spare)
        state = self._prepare(composition, before.report.plan.identity, kept)
        left = [slot for slot in kept if slot not in state.slots]
        try:
            self._next = state
            with together():
                before.steering.detach()
                exchange_slots(before.slots, state.slots, state.members, later=self._list_later())
            state.steering.attach()
            self._state, self._spare, self._next = state, tuple(left[:_SPARE_SLOTS]), None
        except BaseException:
            self._state, self._next = before, state
            self._undo()
            raise
        Generation.value += 1
        return state.report

    def list_words(self) -> dict[ComponentName, dict[Placeholder, Tensor]]:
        """Returns the rows that words have at their strengths, by text encoder and word."""
        found: dict[ComponentName, dict[Placeholder, Tensor]] = {}
        for slot in self._state.slots:
            for token in slot.gathered.tokens:
                for component in token.rows:
                    rows = token.blend(component, slot.member.strength)
                    found.setdefault(component, {})[token.placeholder] = rows
        return found

    def detach(self) -> None:
        """Takes the composition out; every parameter, buffer and tokenizer is then as before. Twice does nothing.

        After an exception, in here or elsewhere, the next call finishes what is left to do.
        """
        end_all()
        states = [self._state] if self._next is None else [self._next, self._state]
        slots = [*self._spare, *(slot for state in reversed(states) for slot in state.slots)]
        with together():
            steps = [state.steering.detach for state in states]
            run_all([*steps, partial(take_all_out, slots), partial(release_readers, self._pipeline)])
        self._next = None
        found = self._pipeline.__dict__
        remaining = [other for other in found.get(_ATTACHMENTS, ()) if other is not self]
        if remaining:
            found[_ATTACHMENTS] = remaining
        else:
            found.pop(_ATTACHMENTS, None)

    def _prepare(self, composition: Composition, identity: BaseIdentity, kept: Sequence[Slot] = ()) -> _State:
        """Returns what is to be in, read and checked; nothing changes."""
        self._refuse_what_is_in(composition)
        plan = make_plan(composition, identity, self._fit)
        slots = prepare_slots(
            plan.members,
            self._pipeline,
            fused=self._fused,
            compiled=self._compiled,
            kept=kept,
        )
        return _State(
            composition=composition,
            slots=slots,
            steering=Steering(self._pipeline, composition, slots),
            report=_make_report(plan, slots),
        )

    def _refuse_what_is_in(self, composition: Composition) -> None:
        """Raises an error for a name in two versions, and for a concept that another attachment put in."""
        labels: dict[ConceptName, str] = {}
        for one in (member.concept for member in composition.members):
            label = f"{one.label} ({one.digest.short})"
            known = labels.setdefault(one.manifest.name, label)
            if known != label:
                raise UsageError(
                    f"{known} and {label} are one concept in two versions",
                    hint="what is attached is called by its name: attach one of them, or merge them first",
                )
        others = [one for one in self._pipeline.__dict__.get(_ATTACHMENTS, ()) if one is not self]
        there = {member.concept.digest for one in others for member in one.composition.members}
        for member in composition.members:
            if member.concept.digest in there:
                raise IncompatibleError(
                    f"{member.concept.label} is in this pipeline already",
                    hint="set its strength there, attachment.set_strengths({...}), or detach it first",
                )

    def _undo(self) -> None:
        """Goes back to what was in before an exchange that met an error; does nothing after one that met none."""
        if self._next is None:
            return
        with together():
            self._next.steering.detach()
            slots = self._state.slots
            return_slots(slots, self._next.slots, self._state.members, later=self._list_later())
        self._state.steering.attach()
        self._next = None

    def _list_later(self) -> list[Slot]:
        """Returns the slots of attachments that came into the pipeline after this one."""
        inside = self._pipeline.__dict__.get(_ATTACHMENTS, ())
        after = inside[inside.index(self) + 1 :] if self in inside else ()
        return [slot for one in after for slot in one._state.slots]

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
        UsageError: if a concept is named in two versions.
        IncompatibleError: if a concept does not fit the base, another concept, or anything at all of the pipeline, or
            if it is in the pipeline already.
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
    """Takes everything out that ``attach`` or ``fuse`` put into ``pipeline``, also what an exception left in it."""
    end_all()
    attachments = list(reversed(pipeline.__dict__.get(_ATTACHMENTS, ())))
    run_all([*(one.detach for one in attachments), settle, partial(release_readers, pipeline)])


def _make_report(plan: Plan, slots: Sequence[Slot]) -> Report:
    warnings = [*plan.warnings, *(text for slot in slots for text in slot.gathered.warnings)]
    concepts = tuple(slot.gathered.describe(member) for slot, member in zip(slots, plan.members, strict=True))
    return Report(plan=plan, concepts=concepts, warnings=tuple(warnings))
