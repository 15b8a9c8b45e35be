"""The places of a composition in a pipeline, one for each concept: filled, emptied and exchanged one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch
from conceptry.composer.parts import Gathered, gather_member
from conceptry.composer.pipelines import Pipeline
from conceptry.composer.placeholders import private_tokenizers
from conceptry.composer.plan import PlannedMember
from conceptry.composer.protection import protect
from conceptry.composer.standins import together
from conceptry.composer.undoing import run_all
from conceptry.errors import ConceptryError

DENOISERS: Final = frozenset({"unet", "transformer"})


class Slot:
    """One concept of a composition, and the patches that put it into the pipeline."""

    def __init__(self, gathered: Gathered, patches: tuple[Patch, ...]) -> None:
        self.gathered = gathered
        self._patches = patches
        self._factor = 1.0

    @property
    def member(self) -> PlannedMember:
        """The concept as it was planned."""
        return self.gathered.member

    def fits(self, member: PlannedMember) -> bool:
        """Returns whether ``member`` is the concept that is here, called by the same words; strength may differ."""
        own = self.member
        same = (own.concept.digest, own.build.id) == (member.concept.digest, member.build.id)
        return same and own.words == member.words and own.use.parts == member.use.parts

    def plan(self, member: PlannedMember) -> None:
        """Lets the concept have the strength of ``member``."""
        self.gathered.member = member
        self._show()

    @property
    def steerable(self) -> bool:
        """Whether the concept changes the network that removes noise, so that it can have its turns there."""
        return any(patch.component in DENOISERS for patch in self._patches)

    def steer(self, factor: float) -> None:
        """Lets what the concept changes of the network that removes noise have ``factor`` times its strength."""
        self._factor = factor
        self._show()

    def _show(self) -> None:
        for patch in self._patches:
            factor = self._factor if patch.component in DENOISERS else 1.0
            strength = self.member.strength * patch.share * factor
            if patch.strength != strength:
                patch.strength = strength

    def put_in(self) -> None:
        """Attaches the patches; after an error none of them is in."""
        try:
            for patch in self._patches:
                patch.attach()
        except BaseException as error:
            self.take_out()
            if isinstance(error, ConceptryError):
                error.inside(self.member.concept.label)
            raise

    def come_last(self) -> None:
        """Lets all that is in stand behind all else, as if it were the last to come in."""
        for patch in self._patches:
            patch.come_last()

    def take_out(self) -> None:
        """Detaches the patches, the last first; one that fails does not keep the others in."""
        run_all(patch.detach for patch in reversed(self._patches))


def prepare_slots(
    members: Sequence[PlannedMember],
    pipeline: Pipeline,
    *,
    fused: bool,
    compiled: frozenset[ComponentName] = frozenset(),
    kept: Sequence[Slot] = (),
) -> tuple[Slot, ...]:
    """Returns a slot for each member, read and checked; nothing is put in. Those of ``kept`` that fit are used again.

    Raises:
        IncompatibleError, InvalidFileError, NotFoundError: as ``gather_member``.
    """
    with private_tokenizers(pipeline):
        return tuple(
            _find_slot(kept, member) or _prepare(member, pipeline, fused, compiled) for member in members
        )


def _find_slot(slots: Sequence[Slot], member: PlannedMember) -> Slot | None:
    return next((slot for slot in slots if slot.fits(member)), None)


def _prepare(
    member: PlannedMember, pipeline: Pipeline, fused: bool, compiled: frozenset[ComponentName]
) -> Slot:
    gathered = gather_member(member, pipeline)
    patches = gathered.build(pipeline, fused=fused, compiled=compiled)
    return Slot(gathered, protect(patches, pipeline, compiled, files=gathered.files))


def exchange_slots(
    old: Sequence[Slot], new: Sequence[Slot], members: Sequence[PlannedMember], *, later: Sequence[Slot] = ()
) -> None:
    """Takes out what is in ``old`` only, puts in what is in ``new`` only, and gives all of ``new`` their strengths.

    All stand in the order of ``new`` then: hypernetworks read what those before them made, and sums are rounded in the
    order in which they are made. An error may leave some of both in; ``return_slots`` undoes it.

    Args:
        old: what is in.
        new: what is to be in.
        members: of ``new``.
        later: of other attachments, what came in after ``old``; it stays behind.
    """
    kept = [slot for slot in old if slot in new]
    settled = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(kept, new, strict=False)))
    with together():
        take_all_out([slot for slot in old if slot not in new])
        for place, slot in enumerate(new):
            slot.put_in()
            if place >= settled and slot in kept:
                slot.come_last()
        for slot in later if settled < len(new) else ():
            slot.come_last()
        for slot, member in zip(new, members, strict=True):
            slot.plan(member)


def return_slots(
    old: Sequence[Slot], new: Sequence[Slot], members: Sequence[PlannedMember], *, later: Sequence[Slot] = ()
) -> None:
    """Undoes what an ``exchange_slots`` did before an error; ``members`` are of ``old``.

    All go out, so that those of ``old`` come in again in their order.
    """
    with together():
        take_all_out([*old, *(slot for slot in new if slot not in old)])
        for slot, member in zip(old, members, strict=True):
            slot.put_in()
            slot.plan(member)
        for slot in later:
            slot.come_last()


def take_all_out(slots: Sequence[Slot]) -> None:
    """Takes the slots out, the last first; one that fails does not keep the others in. Twice does nothing."""
    with together():
        run_all(slot.take_out for slot in reversed(slots))
