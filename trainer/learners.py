"""What a method is while it learns: the parameters it moves, how it predicts, and the draft of what it stores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from conceptry.kinds import KindId
from conceptry.manifest import Method, Token
from conceptry.trainer.conditioning import Conditioning
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.jobs import TrainJob
from conceptry.trainer.objectives import weighted_error

if TYPE_CHECKING:
    from conceptry.trainer.preservation import Preservation

WriteFile = Callable[[Path, Mapping[str, str]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPart:
    """What one kind stores, and how to write its files."""

    kind: KindId
    method: Method
    files: Mapping[str, WriteFile]
    """File name in the package -> a function that writes it, given the path and its ModelSpec metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a finished run stores: the parts of one build, and the words that call it."""

    parts: tuple[DraftPart, ...]
    tokens: tuple[Token, ...]
    facts: Mapping[str, float] = field(default_factory=dict)
    """Figures for ``train.json``."""


def make_tokens(job: TrainJob, *, vectors: int = 0) -> tuple[Token, ...]:
    """Returns the words of a job's subjects; without vectors they are plain text."""
    return tuple(
        Token(placeholder=one.placeholder, vectors=vectors, superclass=one.superclass) for one in job.subjects
    )


class Learner(ABC):
    """One method during one run. Its parameters are small, standalone and float32, never the base's own."""

    context: TrainingContext
    preservation: Preservation | None = None
    """The prior that keeps the superclass as the base has it, where the method and its settings have one."""

    trains_base_weights: ClassVar[bool] = False

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name; the name up to the first ``/`` is its group of ``learning_rates``."""

    @property
    @abstractmethod
    def initial(self) -> Mapping[str, Tensor]:
        """The values that the parameters began with."""

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The values that the parameters have now, under the same names; readable while detached."""
        return self.parameters

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Further tensors that a checkpoint must hold."""
        return {}

    @abstractmethod
    def attach(self) -> None:
        """Puts the parameters into the pipeline, with the composer's own code."""

    @abstractmethod
    def detach(self) -> None:
        """Leaves the pipeline as it was."""

    @abstractmethod
    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding of prompts that have the concept in them."""

    def predict(self, batch: Batch) -> Float[Tensor, "batch channels height width"]:
        """Returns the denoiser's answer with the concept in place."""
        conditioning = self.condition([pair.concept for pair in batch.prompts])
        with self.context.autocast():
            return self.context.denoise(batch.noisy, batch.timesteps, conditioning)

    def compute_loss(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """Returns what is minimised; ``step`` is for methods that draw samples of their own."""
        loss = weighted_error(self.predict(batch), batch.target, batch.weights, batch.mask)
        return loss if self.preservation is None else loss + self.preservation.compute_loss(self, batch, step)

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Lets the base answer as it is while the block runs, in the midst of training; gradients stay."""
        self.detach()
        try:
            yield
        finally:
            self.attach()

    def finish_step(self) -> None:  # noqa: B027  most methods have nothing to do here
        """Called after each update."""

    def prepare_use(self) -> None:  # noqa: B027
        """Changes what differs between training and use (gates), before the last comparison with the saved file."""

    def reload_state(self) -> None:  # noqa: B027
        """Called after a checkpoint was put back into ``parameters`` and ``state``."""

    @abstractmethod
    def draft(self) -> Draft:
        """Returns what is to be stored."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keeps the concept attached while the block runs, also when it fails."""
        self.attach()
        try:
            yield
        finally:
            self.detach()
