"""The one loop: draw, predict, update, save now and then. A run that is stopped goes on where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conceptry.errors import InterruptedByUserError, TrainingError, UsageError
from conceptry.trainer.checkpoints import Checkpoint, CheckpointFolder
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.events import TrainEvent
from conceptry.trainer.interrupts import catch_interrupt
from conceptry.trainer.learners import Learner
from conceptry.trainer.objectives import weighted_error
from conceptry.trainer.preparation import plain_attention
from conceptry.trainer.settings import Settings

REPORT_EVERY_STEPS = 20
FIXED_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a run went: the mean loss on the same samples before and after, and the time of the steps made now."""

    fixed_loss_before: float
    fixed_loss_after: float
    steps: int
    seconds: float


@dataclass(slots=True)
class TrainingState:
    """All that changes during a run; a checkpoint holds exactly this."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    averages: dict[str, Tensor] = field(default_factory=dict)
    """Running means of the parameters; empty unless ``ema_decay`` is set."""

    step: int = 0
    fixed_loss_before: float = math.nan


def run_loop(
    context: TrainingContext, learner: Learner, checkpoints: CheckpointFolder, *, resume: bool
) -> LoopResult:
    """Returns when all steps are done, with the trained values in the learner's parameters.

    Raises:
        InterruptedByUserError: after Ctrl-C, once the state is saved; its hint is the command that goes on.
        TrainingError: when the loss is no longer finite.
        UsageError: when there is a checkpoint of another job, or none to resume from.
    """
    settings = context.job.settings
    state = TrainingState(learner, make_optimizer(learner, settings))
    positions = context.latents.mean.shape[-1] * context.latents.mean.shape[-2]
    with learner.attached(), plain_attention(context.pipeline, positions=positions):
        if resume:
            _load_checkpoint(state, checkpoints.read_newest())
        else:
            state.averages = _start_averages(learner, settings)
            state.fixed_loss_before = measure_fixed_loss(context, learner)
        started = time.perf_counter()
        first = state.step
        _run_steps(context, state, checkpoints)
        seconds = time.perf_counter() - started
        _use_averages(state)
        after = measure_fixed_loss(context, learner)
    return LoopResult(state.fixed_loss_before, after, settings.steps - first, seconds)


def _run_steps(context: TrainingContext, state: TrainingState, checkpoints: CheckpointFolder) -> None:
    settings = context.job.settings
    reporter = _LossReporter(context, settings.steps)
    with catch_interrupt() as stop:
        while state.step < settings.steps:
            loss = _run_step(context, state)
            state.step += 1
            try:
                reporter.add(loss, state.step)
            except KeyboardInterrupt:  # raised by the caller's own callback, between two steps
                stop.requested = True
            due = state.step % settings.checkpoint_every_steps == 0 and state.step < settings.steps
            if due or stop.requested:
                checkpoints.write(_make_checkpoint(state))
            if stop.requested:
                raise InterruptedByUserError(
                    f"training was stopped after step {state.step} of {settings.steps}; its state is saved",
                    hint=f"{context.job.job.to_command()} --resume",
                )


def _run_step(context: TrainingContext, state: TrainingState) -> Tensor:
    settings, learner = context.job.settings, state.learner
    _set_rates(state.optimizer, settings, state.step)
    pieces = context.draw_batch(state.step).split(settings.accumulation_steps)
    total = torch.zeros((), device=context.device)
    size = sum(len(piece.prompts) for piece in pieces)
    for piece in pieces:
        loss = learner.compute_loss(piece, state.step) * (len(piece.prompts) / size)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    if settings.clip_norm is not None:
        nn.utils.clip_grad_norm_(list(learner.parameters.values()), settings.clip_norm, foreach=False)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    learner.finish_step()
    _move_averages(state, settings.ema_decay)
    return total


class _LossReporter:
    """Reports each step; the loss is read back from an accelerator only now and then, so that it never waits."""

    def __init__(self, context: TrainingContext, total: int) -> None:
        self._context = context
        self._total = total
        self._pending: list[Tensor] = []
        self._shown: float | None = None
        self._started = time.perf_counter()

    def add(self, loss: Tensor, step: int) -> None:
        self._pending.append(loss)
        if loss.device.type == "cpu" or len(self._pending) >= REPORT_EVERY_STEPS or step == self._total:
            value = float(torch.stack(self._pending).mean())
            self._pending.clear()
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {step}",
                    hint="lower the learning rate, or train with --precision float32",
                )
            self._shown = value if self._shown is None else 0.9 * self._shown + 0.1 * value
        seconds = time.perf_counter() - self._started
        self._context.on_event(
            TrainEvent(kind="step", step=step, total=self._total, loss=self._shown, seconds=seconds)
        )


# --- the optimiser -------------------------------------------------------------------------------------------------


def make_optimizer(learner: Learner, settings: Settings) -> torch.optim.Optimizer:
    """Returns the optimiser over the learner's parameters, one group for each, in order of name."""
    groups = [
        {"params": [parameter], "lr": _find_rate(name, settings)}
        for name, parameter in sorted(learner.parameters.items())
    ]
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.999), fused=True)


def _find_rate(name: str, settings: Settings) -> float:
    group = name.partition("/")[0]
    if group not in settings.learning_rates:
        raise UsageError(f"no learning rate is given for {group!r}", where="settings.learning_rates")
    return settings.learning_rates[group]


def _set_rates(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    factor = scale_rate(settings, step)
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * factor


def scale_rate(settings: Settings, step: int) -> float:
    """Returns what the learning rates are multiplied by at ``step``: a linear warm-up, then constant or a cosine."""
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.schedule == "constant":
        return 1.0
    span = max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - settings.warmup_steps) / span, 1.0)))


def _start_averages(learner: Learner, settings: Settings) -> dict[str, Tensor]:
    if not settings.ema_decay:
        return {}
    return {name: value.detach().clone() for name, value in learner.parameters.items()}


@torch.no_grad()
def _move_averages(state: TrainingState, decay: float) -> None:
    warm = min(decay, (1 + state.step) / (10 + state.step))
    for name, average in state.averages.items():
        average.lerp_(state.learner.parameters[name], 1 - warm)


@torch.no_grad()
def _use_averages(state: TrainingState) -> None:
    for name, average in state.averages.items():
        state.learner.parameters[name].copy_(average)


@torch.no_grad()
def measure_fixed_loss(context: TrainingContext, learner: Learner) -> float:
    """Returns the loss on samples that are the same in every call: fixed pictures, noise and timesteps."""
    losses = []
    size = max(1, math.ceil(FIXED_SAMPLES / max(1, min(context.job.settings.batch_size, FIXED_SAMPLES))))
    for piece in context.draw_fixed_batch(FIXED_SAMPLES).split(size):
        losses.append(
            weighted_error(learner.predict(piece), piece.target, piece.weights) * len(piece.prompts)
        )
    return float(torch.stack(losses).sum() / FIXED_SAMPLES)


# --- checkpoints ---------------------------------------------------------------------------------------------------


def _make_checkpoint(state: TrainingState) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    tensors |= _prefix("parameters", state.learner.parameters)
    tensors |= _prefix("state", state.learner.state)
    tensors |= _prefix("averages", state.averages)
    numbers: dict[str, float] = {}
    for index, values in state.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            place = f"optimizer/{index}/{key}"
            if isinstance(value, Tensor):
                tensors[place] = value
            else:
                numbers[place] = value
    return Checkpoint(
        step=state.step, fixed_loss_before=state.fixed_loss_before, tensors=tensors, numbers=numbers
    )


@torch.no_grad()
def _load_checkpoint(state: TrainingState, found: Checkpoint) -> None:
    parts = {prefix: _pick(found.tensors, prefix) for prefix in ("parameters", "state", "averages")}
    _copy_all(parts["parameters"], state.learner.parameters, "parameters")
    _copy_all(parts["state"], state.learner.state, "state")
    device = state.learner.context.device
    state.averages = {name: value.to(device) for name, value in parts["averages"].items()}
    saved: dict[int, dict[str, Any]] = {}
    everything: Iterable[tuple[str, Any]] = [*found.tensors.items(), *found.numbers.items()]
    for place, value in everything:
        if place.startswith("optimizer/"):
            _, index, key = place.split("/")
            saved.setdefault(int(index), {})[key] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": saved, "param_groups": groups})
    state.step, state.fixed_loss_before = found.step, found.fixed_loss_before
    state.learner.reload_state()


def _prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value.detach() for name, value in tensors.items()}


def _pick(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _copy_all(saved: Mapping[str, Tensor], current: Mapping[str, Tensor], what: str) -> None:
    if saved.keys() != current.keys():
        raise TrainingError(
            f"the checkpoint's {what} are not those of this job", hint="train again without --resume"
        )
    for name, value in saved.items():
        current[name].copy_(value)
