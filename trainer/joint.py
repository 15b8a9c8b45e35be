"""Words and weights learned in one run and kept in one package.

Pivotal tuning (arXiv 2106.05744, for words and LoRA as the field uses it) trains the placeholder's rows first, then the
weights; textual inversion with DreamBooth or LoRA, and Custom Diffusion (arXiv 2212.04488), train both at once. Each
part is trained from ``*_from`` to ``*_until`` of the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.errors import UsageError
from conceptry.trainer.conditioning import Conditioning, PromptCache, encode_prompts
from conceptry.trainer.context import Batch, TrainingContext
from conceptry.trainer.dreambooth import DreamBooth
from conceptry.trainer.learners import Draft, Learner
from conceptry.trainer.lora import Lora
from conceptry.trainer.objectives import weighted_error
from conceptry.trainer.preservation import Preservation
from conceptry.trainer.textual_inversion import TextualInversion


@dataclass(slots=True, eq=False)
class Joint(Learner):
    """Minimises the denoising loss over a placeholder's rows and a network's weights, plus the prior's."""

    context: TrainingContext
    words: TextualInversion
    weights: Lora | DreamBooth
    preservation: Preservation | None = None
    learned_words: PromptCache | None = None
    """Encodings with the placeholder's rows as they stay, once those are no longer trained."""

    @classmethod
    def prepare(cls, context: TrainingContext, weights: type[Lora] | type[DreamBooth]) -> Joint:
        """Returns the learner of both parts.

        Raises:
            InvalidPlaceholderError: if the placeholder is a word of the base's vocabulary.
            UsageError: if nothing of the base matches ``targets``, or nothing is trained for some of the steps.
        """
        settings = context.job.settings
        if settings.words_until < settings.weights_from:
            raise UsageError(
                f"nothing is trained between {settings.words_until:g} and {settings.weights_from:g} of the steps",
                where="settings.words_until",
                hint=f"--set words_until={settings.weights_from:g}",
            )
        words = TextualInversion.prepare(context)
        changing = weights.prepare(context)
        return cls(context=context, words=words, weights=changing, preservation=changing.preservation)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The rows, then the weights."""
        return {**self.words.parameters, **self.weights.parameters}

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The values that training began with."""
        return {**self.words.initial, **self.weights.initial}

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The values that both parts have now."""
        return {**self.words.trained, **self.weights.trained}

    def attach(self) -> None:
        """Puts both parts in."""
        self.words.attach()
        try:
            self.weights.attach()
        except BaseException:
            self.words.detach()
            raise

    def detach(self) -> None:
        """Takes both out."""
        self.weights.detach()
        self.words.detach()

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Lets the base's own weights answer; prompts of the superclass have no placeholder in them anyway."""
        with self.weights.absent():
            yield

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding; gradients reach what is trained of it, and a text that no longer changes is kept."""
        if self.learned_words is not None and torch.is_grad_enabled():
            return self.learned_words.encode(texts)
        return encode_prompts(self.context.pipeline, texts)

    def compute_loss(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """Returns what is minimised, with those parameters free whose turn it is."""
        settings = self.context.job.settings
        words = step < settings.words_until * settings.steps
        weights = step >= settings.weights_from * settings.steps
        for free, part in ((words, self.words), (weights, self.weights)):
            for parameter in part.parameters.values():
                parameter.requires_grad_(free)
        keeps = not words and not settings.train_text_encoder
        if keeps and self.learned_words is None:
            self.learned_words = PromptCache(self.context.pipeline)
        # A prior has nothing to hold while no weight moves.
        return Learner.compute_loss(self, batch, step) if weights else self._compute_plain(batch)

    def _compute_plain(self, batch: Batch) -> Float[Tensor, ""]:
        return weighted_error(self.predict(batch), batch.target, batch.weights, batch.mask)

    def draft(self) -> Draft:
        """Returns the parts of both, called by the words of the first."""
        words, weights = self.words.draft(), self.weights.draft()
        return Draft(
            parts=(*words.parts, *weights.parts), tokens=words.tokens, facts={**words.facts, **weights.facts}
        )
