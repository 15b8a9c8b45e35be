"""Extended Textual Inversion (P+, arXiv 2303.09522): rows of placeholders for each cross-attention layer.

Each layer reads the prompt with its own rows in a placeholder's place. The prompts of all layers are encoded as one
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
from conceptry.composer.placeholders import compile_words
from conceptry.composer.tensors import from_torch
from conceptry.composer.tokens import TokenPatch, TokenRows
from conceptry.formats.embedding import EmbeddingContents, write_embedding
from conceptry.manifest import EmbeddingMethod
from conceptry.names import Placeholder
from conceptry.trainer.conditioning import Conditioning, encode_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.learners import Draft, DraftPart, Learner, make_tokens
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
    rows: Mapping[Placeholder, Mapping[str, Rows]]
    """Of each subject's placeholder: path of a cross-attention layer -> its rows for each text encoder."""

    started_from: Mapping[str, Tensor]
    words: Mapping[Placeholder, tuple[Placeholder, ...]]
    """What stands for each placeholder in the prompts of the layers."""

    tokens: TokenPatch
    parts: LayerPatch

    @classmethod
    def prepare(cls, context: TrainingContext) -> ExtendedInversion:
        """Returns the learner with all rows of each subject at the mean of its superclass's.

        Raises:
            InvalidPlaceholderError: if a placeholder is a word of the base's vocabulary.
        """
        job, settings, pipeline = context.job.job, context.job.settings, context.pipeline
        layers = dict(iter_cross_attention(pipeline.unet))
        rows: dict[Placeholder, dict[str, Rows]] = {}
        tokens, words = [], {}
        for number, one in enumerate(job.subjects):
            word = one.placeholder
            check_words(pipeline, word, one.superclass, single_token=False)
            rows[word] = {
                path: init_rows(
                    pipeline,
                    one.superclass,
                    vectors=settings.vectors,
                    seed=job.seed,
                    subject=number,
                    start=settings.start,
                )
                for path in layers
            }
            words[word] = tuple(
                Placeholder(f"<{word.strip('<>')}-layer-{place}>") for place in range(len(layers))
            )
            for name, own in zip(words[word], rows[word].values(), strict=True):
                tokens.append(TokenRows(name, dict(own)))
            tokens.append(TokenRows(word, _MeanRows(rows[word])))
        return cls(
            context=context,
            rows=rows,
            started_from={name: row.detach().clone() for name, row in _name_parameters(rows).items()},
            words=words,
            tokens=TokenPatch(pipeline, tokens),
            parts=LayerPatch(list(layers.values())),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The rows, one parameter for each subject, layer and text encoder."""
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
        pipeline = self.context.pipeline
        distinct = list(dict.fromkeys(texts))
        found = encode_prompts(pipeline, [text for one in distinct for text in self._write_layers(one)])
        pooled = None if found.pooled is None else encode_prompts(pipeline, distinct).pooled
        states = found.states.reshape(len(distinct), -1, found.states.shape[-1])
        chosen = torch.tensor([distinct.index(text) for text in texts])
        return Conditioning(states, pooled).select(chosen)

    def _write_layers(self, text: str) -> list[str]:
        """Returns the prompt of each layer: with its own words in the places of the placeholders."""
        pattern = compile_words(tuple(self.words))
        by_key = {word.casefold(): own for word, own in self.words.items()}
        count = len(next(iter(self.words.values())))
        if pattern is None:
            return [text] * count
        return [
            pattern.sub(lambda match, place=place: by_key[match.group().casefold()][place], text)  # type: ignore[misc]
            for place in range(count)
        ]

    def draft(self) -> Draft:
        """Returns an ``embedding`` part of the per-layer variant."""
        job, vectors = self.context.job.job, self.context.job.settings.vectors
        first = self.rows[job.placeholder]
        layers, components = tuple(first), tuple(next(iter(first.values())))
        contents = EmbeddingContents(
            rows={
                (name, word): from_torch(torch.stack([own[path][name] for path in layers]))
                for word, own in self.rows.items()
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
        return Draft(parts=(part,), tokens=make_tokens(job, vectors=vectors))


def _name_parameters(rows: Mapping[Placeholder, Mapping[str, Rows]]) -> dict[str, nn.Parameter]:
    """Returns the rows by name; the first subject's have no word in theirs, as where it is the only one."""
    named: dict[str, nn.Parameter] = {}
    for number, (word, layers) in enumerate(rows.items()):
        suffix = f"/{word}" if number else ""
        for path, own in layers.items():
            named |= {f"embedding/{name}.{path}{suffix}": row for name, row in own.items()}
    return named
