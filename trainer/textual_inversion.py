"""Textual Inversion (arXiv 2208.01618): the rows of one placeholder are learned, nothing else moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.tensors import from_torch
from conceptry.composer.tokens import TokenPatch
from conceptry.formats.embedding import EmbeddingContents, write_embedding
from conceptry.manifest import EmbeddingMethod, Token
from conceptry.trainer.conditioning import Conditioning, encode_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.learners import Draft, DraftPart, Learner
from conceptry.trainer.words import check_words, init_rows, to_token_rows


@dataclass(slots=True, eq=False)
class TextualInversion(Learner):
    """Minimises E ||target - prediction(z_t, t, c(y))||^2 over the placeholder's rows (eq. 2 of the paper)."""

    context: TrainingContext
    rows: dict[ComponentName, nn.Parameter]
    started_from: Mapping[str, Tensor]
    patch: TokenPatch

    @classmethod
    def prepare(cls, context: TrainingContext) -> TextualInversion:
        """Returns the learner with rows at the mean of the superclass's.

        Raises:
            InvalidPlaceholderError: if the placeholder is a word of the base's vocabulary.
        """
        job, settings = context.job.job, context.job.settings
        check_words(context.pipeline, job.placeholder, job.superclass, single_token=False)
        rows = init_rows(context.pipeline, job.superclass, vectors=settings.vectors, seed=job.seed)
        return cls(
            context=context,
            rows=rows,
            started_from={f"embedding/{name}": row.detach().clone() for name, row in rows.items()},
            patch=TokenPatch(context.pipeline, to_token_rows(job.placeholder, rows)),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The rows, one parameter for each text encoder."""
        return {f"embedding/{name}": row for name, row in self.rows.items()}

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The rows that training began with."""
        return self.started_from

    def attach(self) -> None:
        """Gives the placeholder its ids and rows."""
        self.patch.attach()

    def detach(self) -> None:
        """Takes them out."""
        self.patch.detach()

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding; gradients reach the rows."""
        return encode_prompts(self.context.pipeline, texts)

    def draft(self) -> Draft:
        """Returns an ``embedding`` part."""
        job, vectors = self.context.job.job, self.context.job.settings.vectors
        contents = EmbeddingContents(
            rows={(name, job.placeholder): from_torch(row) for name, row in self.rows.items()}, layers=None
        )

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_embedding(path, contents, metadata)

        part = DraftPart(
            kind="embedding",
            method=EmbeddingMethod(components=tuple(self.rows)),
            files={"embedding.safetensors": write},
        )
        token = Token(placeholder=job.placeholder, vectors=vectors, superclass=job.superclass)
        return Draft(parts=(part,), tokens=(token,))
