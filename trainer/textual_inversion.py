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
from conceptry.manifest import EmbeddingMethod
from conceptry.names import Placeholder
from conceptry.trainer.conditioning import Conditioning, encode_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.learners import Draft, DraftPart, Learner, make_tokens
from conceptry.trainer.words import check_words, init_rows, to_token_rows


@dataclass(slots=True, eq=False)
class TextualInversion(Learner):
    """Minimises E ||target - prediction(z_t, t, c(y))||^2 over the placeholder's rows (eq. 2 of the paper)."""

    context: TrainingContext
    rows: Mapping[Placeholder, dict[ComponentName, nn.Parameter]]
    """The rows of each subject's placeholder."""

    started_from: Mapping[str, Tensor]
    patch: TokenPatch

    @classmethod
    def prepare(cls, context: TrainingContext) -> TextualInversion:
        """Returns the learner with the rows of each subject at the mean of its superclass's.

        Raises:
            InvalidPlaceholderError: if a placeholder is a word of the base's vocabulary.
        """
        job, settings, pipeline = context.job.job, context.job.settings, context.pipeline
        rows = {}
        for number, one in enumerate(job.subjects):
            check_words(pipeline, one.placeholder, one.superclass, single_token=False)
            rows[one.placeholder] = init_rows(
                pipeline,
                one.superclass,
                vectors=settings.vectors,
                seed=job.seed,
                subject=number,
                start=settings.start,
            )
        tokens = [token for word, own in rows.items() for token in to_token_rows(word, own)]
        return cls(
            context=context,
            rows=rows,
            started_from={name: row.detach().clone() for name, row in _name_parameters(rows).items()},
            patch=TokenPatch(pipeline, tokens),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The rows, one parameter for each subject and text encoder."""
        return _name_parameters(self.rows)

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
            rows={
                (name, word): from_torch(row) for word, own in self.rows.items() for name, row in own.items()
            },
            layers=None,
        )

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_embedding(path, contents, metadata)

        part = DraftPart(
            kind="embedding",
            method=EmbeddingMethod(components=tuple(self.rows[job.placeholder])),
            files={"embedding.safetensors": write},
        )
        return Draft(parts=(part,), tokens=make_tokens(job, vectors=vectors))


def _name_parameters(
    rows: Mapping[Placeholder, Mapping[ComponentName, nn.Parameter]],
) -> dict[str, nn.Parameter]:
    """Returns the rows by name; the first subject's have no word in theirs, as where it is the only one."""
    named: dict[str, nn.Parameter] = {}
    for number, (word, own) in enumerate(rows.items()):
        suffix = f"/{word}" if number else ""
        named |= {f"embedding/{name}{suffix}": row for name, row in own.items()}
    return named
