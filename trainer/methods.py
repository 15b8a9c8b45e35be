"""The training methods, one frozen row each. Reading this table loads no torch; carrying out a row does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from conceptry.errors import UsageError, suggest_nearest
from conceptry.kinds import KIND_BY_ID, Kind, KindId

if TYPE_CHECKING:
    from conceptry.trainer.context import TrainingContext
    from conceptry.trainer.learners import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRow:
    """One way to learn a concept: what it stores and the function that makes its learner for a run."""

    id: str
    title: str
    paper: str
    kind_id: KindId
    prepare: Callable[[TrainingContext], Learner]

    @property
    def kind(self) -> Kind:
        """The kind that the method's result is stored as."""
        return KIND_BY_ID[self.kind_id]

    @property
    def expands_placeholder(self) -> bool:
        """The placeholder becomes ids of its own; otherwise prompts say "placeholder superclass" in plain text."""
        return self.kind.expands_placeholder


def _prepare_textual_inversion(context: TrainingContext) -> Learner:
    from conceptry.trainer.textual_inversion import TextualInversion

    return TextualInversion.prepare(context)


def _prepare_perfusion(context: TrainingContext) -> Learner:
    from conceptry.trainer.perfusion import Perfusion

    return Perfusion.prepare(context)


def _prepare_lora(context: TrainingContext) -> Learner:
    from conceptry.trainer.lora import Lora

    return Lora.prepare(context)


def _prepare_dreambooth(context: TrainingContext) -> Learner:
    from conceptry.trainer.dreambooth import DreamBooth

    return DreamBooth.prepare(context)


TRAINERS: Final[tuple[TrainerRow, ...]] = (
    TrainerRow(
        id="textual_inversion",
        title="Textual Inversion",
        paper="arXiv 2208.01618",
        kind_id="embedding",
        prepare=_prepare_textual_inversion,
    ),
    TrainerRow(
        id="perfusion",
        title="Perfusion",
        paper="arXiv 2305.01644",
        kind_id="rank_one",
        prepare=_prepare_perfusion,
    ),
    TrainerRow(id="lora", title="LoRA", paper="arXiv 2106.09685", kind_id="lora", prepare=_prepare_lora),
    TrainerRow(
        id="dreambooth",
        title="DreamBooth",
        paper="arXiv 2208.12242",
        kind_id="full",
        prepare=_prepare_dreambooth,
    ),
)
TRAINER_BY_ID: Final[dict[str, TrainerRow]] = {row.id: row for row in TRAINERS}


def find_trainer(id: str) -> TrainerRow:
    """Returns the method called ``id``; a hyphen is read as an underscore. Raises UsageError with the nearest."""
    row = TRAINER_BY_ID.get(id.replace("-", "_"))
    if row is None:
        raise UsageError(
            f"no training method is called {id!r}",
            where="method",
            hint=suggest_nearest(id, TRAINER_BY_ID) or f"methods: {', '.join(TRAINER_BY_ID)}",
        )
    return row
