"""One job on several devices: each process computes its share of every batch, and all make the same update.

``accelerate launch --multi_gpu --num_processes N -m conceptry train ...`` starts the processes, on processors
``torchrun --nproc_per_node N -m conceptry train ...``; accelerate opens their group. A batch is a function of seed and
step, so that processes exchange gradients alone. The first of them writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from conceptry.errors import TrainingError, UsageError
from conceptry.trainer.settings import Settings

if TYPE_CHECKING:
    from conceptry.trainer.context import Batch


@dataclass(frozen=True, slots=True)
class Team:
    """The processes that train one job; a process by itself is a team of one, which exchanges nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def take_share(self, batch: Batch) -> Batch:
        """Returns this process's part of a batch."""
        return batch if self.size == 1 else batch.split(self.size)[self.rank]

    def add_up(self, tensors: Iterable[Tensor | None]) -> None:
        """Replaces each tensor by its sum over all processes; the same bits in all of them."""
        if self.size == 1:
            return
        work = [
            torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors if tensor is not None
        ]
        for one in work:
            if one is not None:
                one.wait()

    def agree(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Returns the numbers of the leading process, so that all decide alike."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(list(values), dtype=torch.float64, device=device)
        torch.distributed.broadcast(told, src=0)
        return [float(value) for value in told.tolist()]

    def any(self, value: bool, device: torch.device) -> bool:
        """Returns whether ``value`` is true in any process."""
        if self.size == 1:
            return value
        told = torch.tensor([float(value)], device=device)
        torch.distributed.all_reduce(told)
        return bool(told.item() > 0)

    @contextmanager
    def leading(self, device: torch.device) -> Iterator[bool]:
        """Lets the leading process do the block alone: the others get False, and go on when it is done.

        Raises:
            TrainingError: in the others, if it failed there.
        """
        failed = True
        try:
            yield self.leads
            failed = False
        finally:
            lost = self.any(failed and self.leads, device)
            if lost and not self.leads:
                raise TrainingError("the first process of this job failed; its own message says why")


ALONE: Final = Team()


def find_team() -> Team:
    """Returns the team that this process was launched in, its group opened by accelerate."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Team(rank=int(state.process_index), size=int(state.num_processes))


def check_team(team: Team, settings: Settings) -> None:
    """Raises UsageError if a batch is too small to be shared."""
    if settings.batch_size < team.size:
        raise UsageError(
            f"a batch of {settings.batch_size} cannot be shared by {team.size} processes",
            where="settings.batch_size",
            hint=f"--set batch_size={team.size}, or launch fewer",
        )
