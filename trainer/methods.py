"""The training methods, one frozen row each. Reading this table loads no torch; carrying out a row does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from conceptry.errors import IncompatibleError, UsageError, suggest_nearest
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
    summary: str
    """What it learns, in a line of the help page."""

    kind_ids: tuple[KindId, ...]
    names_superclass: bool
    """Prompts say "placeholder superclass"; otherwise the placeholder stands alone."""

    make: Callable[[TrainingContext], Learner]
    trains_transformers: bool = False
    """It also works on denoisers that are no UNets (SD3, Flux, Qwen-Image, Z-Image)."""

    compiles: bool = True
    """Its hooks decide nothing by the values that they see, so that they can be compiled."""

    takes_several: bool = True
    """One run can learn several subjects, each with a word of its own."""

    def prepare(self, context: TrainingContext) -> Learner:
        """Returns the learner of a run.

        Raises:
            IncompatibleError: if the method is not for the base's denoiser.
            UsageError: if it cannot be compiled and the settings ask for that.
            MissingExtraError: if nothing here compiles.
        """
        from conceptry.trainer.compiling import find_row
        from conceptry.trainer.denoisers import name_denoiser

        if name_denoiser(context.pipeline) != "unet" and not self.trains_transformers:
            able = [row.id for row in TRAINERS if row.trains_transformers]
            raise IncompatibleError(
                f"{self.title} is for bases with a UNet, {context.job.family} has a transformer",
                where="method",
                hint=f"methods for it: {', '.join(able)}",
            )
        if find_row(context.job.settings, context.device) is not None and not self.compiles:
            raise UsageError(
                f"{self.title} cannot be compiled: its gates open by the values that they see",
                where="settings.compile",
                hint="leave compile out",
            )
        return self.make(context)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that the method's result is stored as, one for each part."""
        return tuple(KIND_BY_ID[id] for id in self.kind_ids)

    @property
    def expands_placeholder(self) -> bool:
        """The placeholder becomes ids of its own; otherwise it is plain text that the tokenizer splits."""
        return any(kind.expands_placeholder for kind in self.kinds)


def _prepare_textual_inversion(context: TrainingContext) -> Learner:
    from conceptry.trainer.textual_inversion import TextualInversion

    return TextualInversion.prepare(context)


def _prepare_extended_inversion(context: TrainingContext) -> Learner:
    from conceptry.trainer.extended_inversion import ExtendedInversion

    return ExtendedInversion.prepare(context)


def _prepare_perfusion(context: TrainingContext) -> Learner:
    from conceptry.trainer.perfusion import Perfusion

    return Perfusion.prepare(context)


def _prepare_lora(context: TrainingContext) -> Learner:
    from conceptry.trainer.lora import Lora

    return Lora.prepare(context)


def _prepare_dreambooth(context: TrainingContext) -> Learner:
    from conceptry.trainer.dreambooth import DreamBooth

    return DreamBooth.prepare(context)


def _prepare_words_and_lora(context: TrainingContext) -> Learner:
    from conceptry.trainer.joint import Joint
    from conceptry.trainer.lora import Lora

    return Joint.prepare(context, Lora)


def _prepare_words_and_weights(context: TrainingContext) -> Learner:
    from conceptry.trainer.dreambooth import DreamBooth
    from conceptry.trainer.joint import Joint

    return Joint.prepare(context, DreamBooth)


TRAINERS: Final[tuple[TrainerRow, ...]] = (
    TrainerRow(
        id="textual_inversion",
        title="Textual Inversion",
        paper="arXiv 2208.01618",
        summary="rows of the text encoders' tables for the placeholder: a few KB",
        kind_ids=("embedding",),
        names_superclass=False,
        make=_prepare_textual_inversion,
    ),
    TrainerRow(
        id="xti",
        title="Extended Textual Inversion",
        paper="arXiv 2303.09522",
        summary="rows for each cross-attention layer: 50 KB on SD1.5",
        kind_ids=("embedding",),
        names_superclass=False,
        make=_prepare_extended_inversion,
    ),
    TrainerRow(
        id="perfusion",
        title="Perfusion",
        paper="arXiv 2305.01644",
        summary="gated values for cross-attention, keys locked to the superclass: under 100 KB on SD1.5",
        kind_ids=("rank_one",),
        names_superclass=False,
        make=_prepare_perfusion,
        compiles=False,
        takes_several=False,
    ),
    TrainerRow(
        id="lora",
        title="LoRA",
        paper="arXiv 2106.09685; DoRA: arXiv 2402.09353",
        summary="low-rank factors beside the denoiser's layers; --set algorithm=dora decomposes them",
        kind_ids=("lora",),
        names_superclass=True,
        make=_prepare_lora,
        trains_transformers=True,
    ),
    TrainerRow(
        id="dreambooth_lora",
        title="DreamBooth with LoRA",
        paper="arXiv 2208.12242, arXiv 2106.09685",
        summary="LoRA with a prior that keeps the superclass as it was",
        kind_ids=("lora",),
        names_superclass=True,
        make=_prepare_lora,
        trains_transformers=True,
    ),
    TrainerRow(
        id="pivotal",
        title="pivotal tuning",
        paper="arXiv 2106.05744, with arXiv 2208.01618 and arXiv 2106.09685",
        summary="the placeholder's rows first, then LoRA around them, in one package",
        kind_ids=("embedding", "lora"),
        names_superclass=False,
        make=_prepare_words_and_lora,
    ),
    TrainerRow(
        id="textual_inversion_dreambooth_lora",
        title="Textual Inversion and DreamBooth with LoRA",
        paper="arXiv 2208.01618, arXiv 2208.12242, arXiv 2106.09685",
        summary="rows and LoRA at once, with a prior that keeps the superclass as it was",
        kind_ids=("embedding", "lora"),
        names_superclass=True,
        make=_prepare_words_and_lora,
    ),
    TrainerRow(
        id="lidb",
        title="LiDB",
        paper="HyperDreamBooth, arXiv 2307.06949",
        summary="a rank-one LoRA between frozen orthonormal factors: a tenth of its numbers are trained",
        kind_ids=("lora",),
        names_superclass=True,
        make=_prepare_lora,
        trains_transformers=True,
    ),
    TrainerRow(
        id="custom_diffusion",
        title="Custom Diffusion",
        paper="arXiv 2212.04488",
        summary="keys and values of cross-attention and the placeholder's row, with a prior",
        kind_ids=("embedding", "full"),
        names_superclass=True,
        make=_prepare_words_and_weights,
    ),
    TrainerRow(
        id="textual_inversion_dreambooth",
        title="Textual Inversion and DreamBooth",
        paper="arXiv 2208.01618, arXiv 2208.12242",
        summary="rows and the denoiser's own weights at once, with a prior",
        kind_ids=("embedding", "full"),
        names_superclass=True,
        make=_prepare_words_and_weights,
    ),
    TrainerRow(
        id="dreambooth",
        title="DreamBooth",
        paper="arXiv 2208.12242",
        summary="the denoiser's own weights, with a prior that keeps the superclass as it was",
        kind_ids=("full",),
        names_superclass=True,
        make=_prepare_dreambooth,
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
