"""Extended Textual Inversion (P+, arXiv 2303.09522): rows of a placeholder for each cross-attention layer.

Each layer reads the prompt with its own rows in the placeholder's place. The prompts of all layers are encoded as one
batch; their encodings go through the denoiser side by side, and each layer takes its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.hooks import Patch
from conceptry.composer.pipelines import iter_cross_attention
from conceptry.composer.tensors import from_torch
from conceptry.composer.tokens import TokenPatch, TokenRows
from conceptry.formats.embedding import EmbeddingContents, write_embedding
from conceptry.manifest import EmbeddingMethod, Token
from conceptry.names import Placeholder
from conceptry.trainer.conditioning import Conditioning, encode_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.learners import Draft, DraftPart, Learner
from conceptry.trainer.words import check_words, init_rows

Rows = Mapping[ComponentName, nn.Parameter]


class _MeanRows(Mapping[ComponentName, Tensor]):
    """What reads the word outside of the layers gets: the mean of their rows, as they are at this moment."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self._rows = tuple(rows.values())

    def __getitem__(self, component: ComponentName) -> Tensor:
        return torch.stack([own[component] for own in self._rows]).mean(dim=0)

    def __iter__(self) -> Iterator[ComponentName]:
        return iter(self._rows[0])

    def __len__(self) -> int:
        return len(self._rows[0])


class LayerPatch(Patch):
    """Has each layer read its own part of encodings that lie side by side, [batch, layers x positions, width]."""

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self._layers = tuple(layers)

    def _put_in(self) -> None:
        for number, attention in enumerate(self._layers):
            for projection in (attention.to_k, attention.to_v):
                take = _make_hook(number, len(self._layers))
                self._handles.append(projection.register_forward_pre_hook(take))


def _make_hook(number: int, layers: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def take_part(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        positions = args[0].shape[1] // layers
        return (args[0][:, number * positions : (number + 1) * positions], *args[1:])

    return take_part


@dataclass(slots=True, eq=False)
class ExtendedInversion(Learner):
    """Minimises the denoising loss over the placeholder's rows of all layers."""

    context: TrainingContext
    rows: Mapping[str, Rows]
    """Path of a cross-attention layer -> its rows for each text encoder."""

    started_from: Mapping[str, Tensor]
    words: tuple[Placeholder, ...]
    """What stands for the placeholder in the prompt of each layer."""

    tokens: TokenPatch
    parts: LayerPatch

    @classmethod
    def prepare(cls, context: TrainingContext) -> ExtendedInversion:
        """Returns the learner with all rows at the mean of the superclass's.

        Raises:
            InvalidPlaceholderError: if the placeholder is a word of the base's vocabulary.
        """
        job, settings, pipeline = context.job.job, context.job.settings, context.pipeline
        check_words(pipeline, job.placeholder, job.superclass, single_token=False)
        layers = dict(iter_cross_attention(pipeline.unet))
        rows: dict[str, Rows] = {
            path: init_rows(pipeline, job.superclass, vectors=settings.vectors, seed=job.seed)
            for path in layers
        }
        bare = job.placeholder.strip("<>")
        words = tuple(Placeholder(f"<{bare}-layer-{number}>") for number in range(len(layers)))
        tokens = [TokenRows(word, dict(own)) for word, own in zip(words, rows.values(), strict=True)]
        return cls(
            context=context,
            rows=rows,
            started_from={name: row.detach().clone() for name, row in _name_parameters(rows).items()},
            words=words,
            tokens=TokenPatch(pipeline, [*tokens, TokenRows(job.placeholder, _MeanRows(rows))]),
            parts=LayerPatch(list(layers.values())),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The rows, one parameter for each layer and text encoder."""
        return _name_parameters(self.rows)

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The rows that training began with."""
        return self.started_from

    def attach(self) -> None:
        """Gives the words of all layers their rows, and each layer its part of the encodings."""
        self.tokens.attach()
        try:
            self.parts.attach()
        except BaseException:
            self.tokens.detach()
            raise

    def detach(self) -> None:
        """Takes both out."""
        self.parts.detach()
        self.tokens.detach()

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encodings of all layers side by side; gradients reach the rows.

        What SDXL adds to the time embedding is read off the prompt with the mean of all layers' rows, as in use.
        """
        pipeline, placeholder = self.context.pipeline, self.context.job.job.placeholder
        distinct = list(dict.fromkeys(texts))
        found = encode_prompts(
            pipeline, [text.replace(placeholder, word) for text in distinct for word in self.words]
        )
        pooled = None if found.pooled is None else encode_prompts(pipeline, distinct).pooled
        states = found.states.reshape(len(distinct), -1, found.states.shape[-1])
        chosen = torch.tensor([distinct.index(text) for text in texts])
        return Conditioning(states, pooled).select(chosen)

    def draft(self) -> Draft:
        """Returns an ``embedding`` part of the per-layer variant."""
        job, vectors = self.context.job.job, self.context.job.settings.vectors
        layers, components = tuple(self.rows), tuple(next(iter(self.rows.values())))
        contents = EmbeddingContents(
            rows={
                (name, job.placeholder): from_torch(torch.stack([self.rows[path][name] for path in layers]))
                for name in components
            },
            layers=layers,
        )

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_embedding(path, contents, metadata)

        part = DraftPart(
            kind="embedding",
            method=EmbeddingMethod(components=components, layers=layers),
            files={"embedding.safetensors": write},
        )
        token = Token(placeholder=job.placeholder, vectors=vectors, superclass=job.superclass)
        return Draft(parts=(part,), tokens=(token,))


def _name_parameters(rows: Mapping[str, Rows]) -> dict[str, nn.Parameter]:
    return {f"embedding/{name}.{path}": row for path, own in rows.items() for name, row in own.items()}
