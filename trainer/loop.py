"""The one loop: draw, predict, update, measure, save now and then, for one run or for several in one batch.

A run that is stopped goes on where it was. Runs in one batch share the denoiser's work and nothing else: each has its
own noise, clipping, optimiser, schedule and end, so none depends on its neighbours.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from conceptry.errors import ConceptryError, InterruptedByUserError, StoreError, TrainingError
from conceptry.trainer.checkpoints import CheckpointFolder
from conceptry.trainer.compiling import compiled_blocks
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.exhaustion import explain_exhaustion, is_exhaustion
from conceptry.trainer.faults import explain_fault
from conceptry.trainer.fixed_loss import count_at_once, measure_error, measure_fixed_loss
from conceptry.trainer.interrupts import StopRequest, catch_interrupt
from conceptry.trainer.learners import Learner
from conceptry.trainer.loss_reports import REPORT_EVERY_STEPS, LossReporter
from conceptry.trainer.optimizers import set_rates
from conceptry.trainer.preparation import checkpointed_gradients, plain_attention
from conceptry.trainer.quantization import packed_base
from conceptry.trainer.states import TrainingState

_STOP_SET: Final = -2


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a run went: the mean loss on the same samples before and after, and the time of the steps made now."""

    fixed_loss_before: float
    fixed_loss_after: float
    """Of the values that are kept."""

    steps: int
    """Made now, without those before a resumption."""

    seconds: float
    last_step: int = 0
    kept_step: int = 0
    """After how many steps the kept values were the parameters."""


class Group(ABC):
    """How several runs use one pipeline."""

    @abstractmethod
    def only(self, run: Run) -> AbstractContextManager[None]:
        """Has the pipeline answer as this run's concept alone would have it, while the block runs."""

    @abstractmethod
    def compute_losses(self, runs: Sequence[Run], pieces: Sequence[Batch]) -> list[Tensor]:
        """Returns the loss of each run on its piece."""


@dataclass(slots=True, eq=False)
class Run:
    """One job on its way through the loop."""

    context: TrainingContext
    learner: Learner
    checkpoints: CheckpointFolder
    resume: bool = False
    state: TrainingState = field(init=False)
    moving: bool = False
    """Whether an update was begun that is not counted yet."""

    first_step: int = 0
    seconds: float = 0.0
    flat_losses: list[Tensor] = field(default_factory=list)
    reporter: LossReporter = field(init=False)

    def start(self) -> None:
        """Makes the state, or reads it from the newest checkpoint; the learner is attached."""
        settings = self.context.job.settings
        self.state = TrainingState.start(self.learner, settings)
        if self.resume:
            found = self.checkpoints.read_newest()
            for said in found.passed_over:
                self.context.warn(f"{said}: it goes on from step {found.step}")
            self.state.load(found)
        else:
            self.state.fixed_loss_before = measure_fixed_loss(self.context, self.learner)
            self.context.watch.note_measure(0, self.state.fixed_loss_before)
        self.first_step = self.state.step
        self.reporter = LossReporter(self.context, settings.steps)

    def save(self) -> None:
        """Writes a checkpoint; of several processes the leading one does."""
        if self.context.team.leads:
            self.checkpoints.write(self.state.to_checkpoint())

    def keep(self) -> None:
        """Writes a checkpoint in the midst of a failure, if the state is that of a whole step; drops gradients."""
        for parameter in self.learner.parameters.values():
            parameter.grad = None  # of a part of a step: they must not count in the next
        if self.state.step and not self.moving:
            try:
                self.save()
            except StoreError as error:
                self.context.warn(f"{error}: the state of step {self.state.step} is lost")

    @property
    def ended(self) -> bool:
        """Whether no further step is to be made."""
        return self.state.ended


@dataclass(slots=True)
class Alone(Group):
    """A single run has the pipeline to itself."""

    def only(self, run: Run) -> AbstractContextManager[None]:
        """Changes nothing."""
        return nullcontext()

    def compute_losses(self, runs: Sequence[Run], pieces: Sequence[Batch]) -> list[Tensor]:
        """Returns what the learner itself computes."""
        pairs = zip(runs, pieces, strict=True)
        return [run.learner.compute_loss(piece, run.state.step) for run, piece in pairs]


def run_loop(
    context: TrainingContext, learner: Learner, checkpoints: CheckpointFolder, *, resume: bool
) -> LoopResult:
    """Returns when all steps are done or the loss is flat, with the kept values in the learner's parameters.

    Raises:
        InterruptedByUserError: after Ctrl-C, once the state is saved; its hint is the command that goes on.
        TrainingError: when the loss is no longer finite and no state was better than the first; out of memory.
        UsageError: when there is a checkpoint of another job, or none to resume from.
    """
    run = Run(context, learner, checkpoints, resume=resume)
    with learner.attached():
        (result,) = run_together([run], Alone())
    if isinstance(result, ConceptryError):
        raise result
    return result


def run_together(runs: Sequence[Run], group: Group) -> list[LoopResult | ConceptryError]:
    """Returns for each run how it went or why it failed; a run that fails does not stop the others.

    Raises:
        InterruptedByUserError: after Ctrl-C, once the state of every run is saved.
    """
    first = runs[0].context
    positions = first.latents.mean.shape[-1] * first.latents.mean.shape[-2]
    results: dict[int, LoopResult | ConceptryError] = {}
    with (
        plain_attention(first.pipeline, positions=positions),
        checkpointed_gradients(first),
        compiled_blocks(first.pipeline, first.job.settings, first.device),
        packed_base(first.pipeline, first.job.settings, [run.learner for run in runs]),
    ):
        for place, run in enumerate(runs):
            with _catch_failure(runs, results, place), group.only(run):
                run.start()
                run.context.watch.look(run)
        started = time.perf_counter()
        _run_steps(runs, group, results)
        seconds = time.perf_counter() - started
        for place, run in enumerate(runs):
            if place not in results:
                run.seconds = run.seconds or seconds
                with _catch_failure(runs, results, place), group.only(run):
                    results[place] = _settle(run)
    return [results[place] for place in range(len(runs))]


@contextmanager
def _catch_failure(
    runs: Sequence[Run], results: dict[int, LoopResult | ConceptryError], place: int, *, keep: bool = False
) -> Iterator[None]:
    """Puts a failure of one run into ``results``; with ``keep`` its state is a whole step's, and is saved."""
    try:
        yield
    except InterruptedByUserError:
        raise
    except ConceptryError as error:
        results[place] = error
    except Exception as error:
        if not is_exhaustion(error):
            if len(runs) == 1:
                raise
            results[place] = explain_fault(error)  # one fault must not cost the neighbours their work
            return
        if keep:
            runs[place].keep()
        explained = explain_exhaustion(error, runs[place].context.job, together=len(runs))
        explained.__cause__ = error
        results[place] = explained


def _run_steps(runs: Sequence[Run], group: Group, results: dict[int, LoopResult | ConceptryError]) -> None:
    started = time.perf_counter()
    with catch_interrupt() as stop:
        while going := [
            place for place in range(len(runs)) if place not in results and not runs[place].ended
        ]:
            active = [runs[place] for place in going]
            with active[0].context.watch.counted(len(active)):
                losses = _try_step(active, group)
            for place, run, loss in zip(going, active, losses, strict=True):
                with _catch_failure(runs, results, place, keep=True):
                    _conclude_step(run, loss, group, stop)
                if place in results or run.ended:
                    run.seconds = time.perf_counter() - started
            if runs[0].context.team.any(stop.requested, runs[0].context.device):
                _interrupt(runs, results)


def _try_step(runs: Sequence[Run], group: Group) -> list[Tensor]:
    try:
        return _run_step(runs, group)
    except Exception as error:
        for run in runs:
            run.keep()
        if not is_exhaustion(error):
            raise
        raise explain_exhaustion(error, runs[0].context.job, together=len(runs)) from error


def _run_step(runs: Sequence[Run], group: Group) -> list[Tensor]:
    drawn = [run.context.draw_batch(run.state.step) for run in runs]
    sizes = [len(batch.prompts) for batch in drawn]
    batches = [run.context.team.take_share(batch) for run, batch in zip(runs, drawn, strict=True)]
    split = [
        batch.split(run.context.job.settings.accumulation_steps)
        for run, batch in zip(runs, batches, strict=True)
    ]
    totals = [torch.zeros((), device=runs[0].context.device) for _ in runs]
    for number in range(max(len(pieces) for pieces in split)):
        having = [place for place, pieces in enumerate(split) if number < len(pieces)]
        pieces = [split[place][number] for place in having]
        losses = group.compute_losses([runs[place] for place in having], pieces)
        shares = [
            loss * (len(piece.prompts) / sizes[place])
            for place, piece, loss in zip(having, pieces, losses, strict=True)
        ]
        torch.stack(shares).sum().backward()  # type: ignore[no-untyped-call]
        for place, share in zip(having, shares, strict=True):
            totals[place] += share.detach()
    for run, batch, size, total in zip(runs, batches, sizes, totals, strict=True):
        run.context.team.add_up([total, *(value.grad for value in run.learner.parameters.values())])
        _update(run)
        _average_state(run, len(batch.prompts) / size)
    return totals


def _update(run: Run) -> None:
    state, settings = run.state, run.context.job.settings
    run.moving = True
    set_rates(state.optimizer, settings, state.step)
    if settings.clip_norm is not None:
        nn.utils.clip_grad_norm_(list(run.learner.parameters.values()), settings.clip_norm, foreach=False)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    run.learner.finish_step()
    state.move_averages()


@torch.no_grad()
def _average_state(run: Run, share: float) -> None:
    """Gives all processes the mean of what the learner keeps beside its parameters, by their shares of the batch."""
    if run.context.team.size == 1 or not run.learner.state:
        return
    for value in run.learner.state.values():
        value.mul_(share)
    run.context.team.add_up(run.learner.state.values())
    run.learner.reload_state()


def _conclude_step(run: Run, loss: Tensor, group: Group, stop: StopRequest) -> None:
    state, settings = run.state, run.context.job.settings
    state.step += 1
    run.moving = False
    try:
        finite = run.reporter.add(loss, state.step)
    except KeyboardInterrupt:  # raised by the caller's own callback, between two steps
        finite, stop.requested = True, True
    with group.only(run):
        if finite and state.stop is not None:
            _measure_flatness(run)
        if finite and settings.keep == "best" and state.step % settings.evaluate_every_steps == 0:
            _offer_best(run)
    due = state.step % settings.checkpoint_every_steps == 0 and not state.ended
    broken = state.find_broken() if due and finite else None
    if not finite or broken is not None:
        _end_diverged(run, "the loss" if broken is None else broken)
    elif due:
        run.save()
    run.context.watch.look(run)


def _end_diverged(run: Run, what: str) -> None:
    """Ends a run whose numbers are lost: with the best values, where any were better than the first."""
    state, job = run.state, run.context.job
    message = f"{what} is not finite at step {state.step}"
    hint = "lower the learning rate"
    if run.context.autocast_dtype is not None:
        hint += ", or train with --precision float32"
    if not (state.best.tensors and state.best.loss < state.fixed_loss_before):
        raise TrainingError(message, hint=hint)
    run.context.warn(f"{message}: the values of step {state.best.step} are kept; {hint}")
    state.settings = job.settings.model_copy(update={"steps": state.step})  # so that it counts as ended
    state.averages = {}


def _interrupt(runs: Sequence[Run], results: dict[int, LoopResult | ConceptryError]) -> None:
    for place, run in enumerate(runs):
        if place not in results:
            run.save()
    last = max(runs, key=lambda run: run.state.step)
    message = f"training was stopped after step {last.state.step} of {last.context.job.settings.steps}"
    raise InterruptedByUserError(
        f"{message}; its state is saved", hint=f"{last.context.job.job.to_command()} --resume"
    )


def _settle(run: Run) -> LoopResult:
    """Puts the values that are kept into the parameters, and measures them."""
    state, settings = run.state, run.context.job.settings
    state.use_averages()
    kept, after = state.step, math.nan
    if state.find_broken() is None:
        after = measure_fixed_loss(run.context, run.learner)
        run.context.watch.note_measure(kept, after)
    if settings.keep == "best" and state.best.tensors and not after <= state.best.loss:
        state.use_best()
        kept, after = state.best.step, state.best.loss
    return LoopResult(
        state.fixed_loss_before,
        after,
        steps=state.step - run.first_step,
        seconds=run.seconds,
        last_step=state.step,
        kept_step=kept,
    )


# --- measures ------------------------------------------------------------------------------------------------------


def _offer_best(run: Run) -> None:
    with run.state.averaged():
        loss = measure_fixed_loss(run.context, run.learner)
        run.state.best.offer(loss, run.state.step, run.state.values)
    run.context.watch.note_measure(run.state.step, loss)


@torch.no_grad()
def _measure_flatness(run: Run) -> None:
    """Adds the loss on the batch that never changes; read back from an accelerator now and then only."""
    stop = run.state.stop
    if stop is None:
        return
    batch = run.context.draw_fixed_batch(stop.settings.samples, noise=_STOP_SET)
    pieces = run.context.job.settings.accumulation_steps > 1
    at_once = count_at_once(run.context) if pieces else stop.settings.samples
    run.flat_losses.append(measure_error(run.learner, batch, at_once))
    on_processor = run.context.device.type == "cpu"
    if on_processor or len(run.flat_losses) >= REPORT_EVERY_STEPS:
        losses = torch.stack(run.flat_losses).double().tolist()
        stop.add(run.context.team.agree(losses, run.context.device))
        run.flat_losses.clear()
