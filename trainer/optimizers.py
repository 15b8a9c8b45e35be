"""The optimisers, one frozen row each; those of other packages are imported when a job asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import torch

from conceptry.errors import MissingExtraError, UsageError
from conceptry.trainer.learners import Learner
from conceptry.trainer.settings import Settings

Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRow:
    """One optimiser: how it is made, what it keeps, and the package that it comes from."""

    id: str
    make: Callable[[Groups, Settings], torch.optim.Optimizer]
    state_bytes: int
    """Bytes kept for each trained value; Adafactor's row and column sums are too few to count."""

    module: str | None = None
    """What must be importable; None is torch itself."""

    group_numbers: tuple[str, ...] = ()
    """Numbers of a parameter group that change from step to step and belong to the state of a run."""


def _make_adamw(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.999), fused=True)


def _make_adafactor(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, weight_decay=settings.weight_decay)


def _make_prodigy(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
    # Its own estimate of the distance is what sets the rate: rates of a preset are relative to each other only.
    largest = max(group["lr"] for group in groups)
    relative = [{**group, "lr": group["lr"] / largest} for group in groups]
    kind: Any = import_module("prodigyopt").Prodigy
    made: torch.optim.Optimizer = kind(
        _merge_rates(relative), lr=1.0, weight_decay=settings.weight_decay, safeguard_warmup=True
    )
    return made


def _merge_rates(groups: Groups) -> list[dict[str, Any]]:
    """Returns one group for each rate: Prodigy asks that groups differ in nothing but being off."""
    rates = {group["lr"] for group in groups}
    if rates != {1.0}:
        raise UsageError(
            "prodigy takes one learning rate for all that is trained",
            where="settings.learning_rates",
            hint="give all groups the same rate, or --set optimizer=adamw",
        )
    return [{"params": [value for group in groups for value in group["params"]], "lr": 1.0}]


def _make_adamw_8bit(groups: Groups, settings: Settings) -> torch.optim.Optimizer:
    kind: Any = import_module("bitsandbytes.optim").AdamW8bit
    made: torch.optim.Optimizer = kind(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.999))
    return made


OPTIMIZERS: Final[tuple[OptimizerRow, ...]] = (
    OptimizerRow(id="adamw", make=_make_adamw, state_bytes=8),
    OptimizerRow(id="adafactor", make=_make_adafactor, state_bytes=0),
    OptimizerRow(
        id="prodigy",
        make=_make_prodigy,
        state_bytes=16,
        module="prodigyopt",
        group_numbers=("k", "d", "d0", "d_max", "d_numerator", "d_denom", "d_hat"),
    ),
    OptimizerRow(id="adamw_8bit", make=_make_adamw_8bit, state_bytes=2, module="bitsandbytes"),
)
OPTIMIZER_BY_ID: Final[Mapping[str, OptimizerRow]] = {row.id: row for row in OPTIMIZERS}


def make_optimizer(learner: Learner, settings: Settings) -> torch.optim.Optimizer:
    """Returns the optimiser over the learner's parameters, one group for each, in order of name.

    Raises:
        UsageError: if a group of parameters has no learning rate.
        MissingExtraError: if the optimiser's package is not installed.
    """
    row = OPTIMIZER_BY_ID[settings.optimizer]
    groups = [
        {"params": [parameter], "lr": _find_rate(name, settings)}
        for name, parameter in sorted(learner.parameters.items())
    ]
    try:
        return row.make(groups, settings)
    except ImportError as error:
        raise MissingExtraError(
            f"the optimizer {row.id!r} needs the package {row.module}, which cannot be imported: {error}",
            where="settings.optimizer",
            hint="pip install 'conceptry[optimizers]', or --set optimizer=adamw",
        ) from error


def _find_rate(name: str, settings: Settings) -> float:
    group = name.partition("/")[0]
    if group not in settings.learning_rates:
        raise UsageError(f"no learning rate is given for {group!r}", where="settings.learning_rates")
    return settings.learning_rates[group]


def set_rates(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    """Gives each group its learning rate of ``step``."""
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


def list_group_numbers(optimizer: torch.optim.Optimizer, row: OptimizerRow) -> dict[str, float]:
    """Returns the changing numbers of all parameter groups, by ``GROUP/NAME``."""
    return {
        f"{index}/{name}": float(group[name])
        for index, group in enumerate(optimizer.param_groups)
        for name in row.group_numbers
        if name in group
    }


def put_group_number(optimizer: torch.optim.Optimizer, place: str, value: float) -> None:
    """Puts back one number of ``list_group_numbers``."""
    index, _, name = place.partition("/")
    group = optimizer.param_groups[int(index)]
    group[name] = type(group.get(name, value))(value)
