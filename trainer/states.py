"""All that changes during a run, and how it becomes a checkpoint and comes back from one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conceptry.errors import TrainingError
from conceptry.trainer.checkpoints import Checkpoint
from conceptry.trainer.learners import Learner
from conceptry.trainer.optimizers import (
    OPTIMIZER_BY_ID,
    list_group_numbers,
    make_optimizer,
    put_group_number,
)
from conceptry.trainer.settings import Settings
from conceptry.trainer.stopping import BestValues, VarianceStop


@dataclass(slots=True, eq=False)
class TrainingState:
    """The parameters, the optimiser's memory, the running means, the best values so far, and how flat the loss is."""

    learner: Learner
    settings: Settings
    optimizer: torch.optim.Optimizer
    averages: dict[str, Tensor] = field(default_factory=dict)
    """Running means of the parameters; empty unless ``ema_decay`` is set."""

    best: BestValues = field(default_factory=BestValues)
    stop: VarianceStop | None = None
    step: int = 0
    fixed_loss_before: float = math.nan

    @classmethod
    def start(cls, learner: Learner, settings: Settings) -> TrainingState:
        """Returns the state before the first step; the learner is attached."""
        averages = {}
        if settings.ema_decay:
            averages = {name: value.detach().clone() for name, value in learner.parameters.items()}
        stop = None if settings.early_stop is None else VarianceStop(settings.early_stop)
        return cls(learner, settings, make_optimizer(learner, settings), averages=averages, stop=stop)

    @property
    def ended(self) -> bool:
        """Whether all steps are made, or the loss is flat."""
        return self.step >= self.settings.steps or (self.stop is not None and self.stop.reached)

    @property
    def values(self) -> dict[str, Tensor]:
        """What decides how the concept answers: parameters, and the further tensors of the method."""
        return _prefix("parameters", self.learner.parameters) | _prefix("state", self.learner.state)

    @torch.no_grad()
    def find_broken(self) -> str | None:
        """Returns the name of a parameter that is not finite, or None; waits for the device."""
        for name, value in self.learner.parameters.items():
            if not bool(torch.isfinite(value).all()):
                return name
        return None

    @torch.no_grad()
    def move_averages(self) -> None:
        """Moves the running means towards the parameters, faster in the first steps."""
        warm = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for name, average in self.averages.items():
            average.lerp_(self.learner.parameters[name], 1 - warm)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the running means, where there are some, in the parameters' place while the block runs."""
        own = {name: self.learner.parameters[name].detach().clone() for name in self.averages}
        self.use_averages()
        try:
            yield
        finally:
            _copy_all(own, self.learner.parameters)

    @torch.no_grad()
    def use_averages(self) -> None:
        """Puts the running means in the parameters' place for good."""
        _copy_all(self.averages, self.learner.parameters)

    @torch.no_grad()
    def use_best(self) -> None:
        """Puts the best values in the place of the last ones."""
        self.best.put_back(self.values)
        self.learner.reload_state()

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def to_checkpoint(self) -> Checkpoint:
        """Returns the state as tensors and numbers."""
        tensors = self.values | _prefix("averages", self.averages) | _prefix("best", self.best.tensors)
        numbers: dict[str, float] = {}
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                place = f"optimizer/{index}/{key}"
                if isinstance(value, Tensor):
                    tensors[place] = value
                else:
                    numbers[place] = value
        row = OPTIMIZER_BY_ID[self.settings.optimizer]
        numbers |= {f"groups/{place}": one for place, one in list_group_numbers(self.optimizer, row).items()}
        if self.best.tensors:
            numbers |= {"best/loss": self.best.loss, "best/step": self.best.step}
        if self.stop is not None and self.stop.losses:
            tensors["stop/losses"] = torch.tensor(self.stop.losses, dtype=torch.float64)
        return Checkpoint(
            step=self.step, fixed_loss_before=self.fixed_loss_before, tensors=tensors, numbers=numbers
        )

    @torch.no_grad()
    def load(self, found: Checkpoint) -> None:
        """Takes over a checkpoint of the same job. Raises TrainingError if its tensors are not this job's."""
        for prefix, current in (
            ("parameters", self.learner.parameters),
            ("state", self.learner.state),
            ("averages", self.averages),
        ):
            saved = _pick(found.tensors, prefix)
            if saved.keys() != current.keys():
                message = f"the checkpoint's {prefix} are not those of this job"
                raise TrainingError(message, hint="train again without --resume")
            _copy_all(saved, current)
        self.best = BestValues(
            loss=found.numbers.get("best/loss", math.inf),
            step=int(found.numbers.get("best/step", 0)),
            tensors=_pick(found.tensors, "best"),
        )
        if self.stop is not None and "stop/losses" in found.tensors:
            self.stop.losses = found.tensors["stop/losses"].tolist()
        self._load_optimizer(found)
        self.step, self.fixed_loss_before = found.step, found.fixed_loss_before
        self.learner.reload_state()

    def _load_optimizer(self, found: Checkpoint) -> None:
        saved: dict[int, dict[str, Any]] = {}
        everything: Iterable[tuple[str, Any]] = [*found.tensors.items(), *found.numbers.items()]
        for place, value in everything:
            kind, _, rest = place.partition("/")
            if kind == "optimizer":
                index, _, key = rest.partition("/")
                saved.setdefault(int(index), {})[key] = value
            elif kind == "groups":
                put_group_number(self.optimizer, rest, float(value))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved, "param_groups": groups})
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # A fused step goes through memory in order, and files know one order only.
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value.detach() for name, value in tensors.items()}


def _pick(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


@torch.no_grad()
def _copy_all(saved: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> None:
    for name, value in saved.items():
        current[name].copy_(value)
