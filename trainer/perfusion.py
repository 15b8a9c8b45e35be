"""Perfusion (arXiv 2305.01644): values of one word learned through gated rank-one edits, keys locked to its superclass.

``i*`` is the running mean of the word's encoding; no gradient passes through it. The keys are W_K e_super and are
recomputed wherever the concept is used. The embedding is trained through the text encoder at the same time. With
``key_lock = "global"`` keys are, in use and in use only, those of the whole prompt with the superclass in the place of
the word (section 4, which gives it as a method of inference).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.pipelines import find_last_token, iter_cross_attention
from conceptry.composer.rank_one import RankOneEdit, RankOnePatch, encode_superclass
from conceptry.composer.tensors import from_torch
from conceptry.composer.tokens import TokenPatch
from conceptry.formats.rank_one import RankOneContents, write_rank_one
from conceptry.manifest import Gate, RankOneMethod, Token
from conceptry.trainer.conditioning import Conditioning, encode_prompts
from conceptry.trainer.context import TrainingContext
from conceptry.trainer.covariance import Covariance, load_covariance
from conceptry.trainer.learners import Draft, DraftPart, Learner
from conceptry.trainer.settings import GateSettings
from conceptry.trainer.words import check_words, init_rows, to_token_rows

KEPT_SHARE: Final = 0.99
_SEEN_PROMPTS: Final = 32


@dataclass(slots=True, eq=False)
class Perfusion(Learner):
    """Minimises the denoising loss over the placeholder's rows and o_V of every cross-attention layer."""

    context: TrainingContext
    rows: dict[ComponentName, nn.Parameter]
    o_v: dict[str, nn.Parameter]
    i_star: Float[Tensor, " context"]
    c_inv_i_star: Float[Tensor, " context"]
    e_super: Float[Tensor, " context"]
    covariance: Covariance
    started_from: Mapping[str, Tensor]
    tokens: TokenPatch
    edit: RankOnePatch
    places: dict[str, int] = field(default_factory=dict)
    seen: list[Tensor] = field(default_factory=list)
    """Encodings of the placeholder in the forward passes since the last update, one row for each sample."""

    @classmethod
    def prepare(cls, context: TrainingContext) -> Perfusion:
        """Returns the learner: rows and i* at the superclass, o_V = W_V e_super.

        Raises:
            InvalidPlaceholderError: if the placeholder is a word, or the superclass is several tokens.
        """
        job, settings, pipeline = context.job.job, context.job.settings, context.pipeline
        check_words(pipeline, job.placeholder, job.superclass, single_token=True)
        context.announce("covariance of the text encodings")
        covariance = load_covariance(
            pipeline, context.identity, captions=job.captions, cache_folder=context.cache_folder
        )
        e_super = encode_superclass(pipeline, job.superclass)
        rows = init_rows(pipeline, job.superclass, vectors=1, seed=job.seed)
        o_v = {
            path: nn.Parameter(_project(layer, e_super))
            for path, layer in iter_cross_attention(pipeline.unet)
        }
        i_star = _average_superclass(context)
        dual = covariance.solve(i_star.cpu()).to(i_star)
        return cls(
            context=context,
            rows=rows,
            o_v=o_v,
            i_star=i_star,
            c_inv_i_star=dual,
            e_super=e_super,
            covariance=covariance,
            started_from={
                name: value.detach().clone() for name, value in _name_parameters(rows, o_v).items()
            },
            tokens=TokenPatch(pipeline, to_token_rows(job.placeholder, rows)),
            edit=RankOnePatch(pipeline, [_make_edit(i_star, dual, o_v, e_super, settings.train_gate)]),
        )

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The rows and the value targets."""
        return _name_parameters(self.rows, self.o_v)

    @property
    def initial(self) -> Mapping[str, Tensor]:
        """The superclass's rows and W_V e_super."""
        return self.started_from

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The running mean i*."""
        return {"i_star": self.i_star}

    def attach(self) -> None:
        """Gives the placeholder its rows and edits all cross-attention layers."""
        self.seen.clear()  # what was looked at before a run, or in a step that failed, is not of its next step
        self.tokens.attach()
        try:
            self.edit.attach()
        except BaseException:
            self.tokens.detach()
            raise

    def detach(self) -> None:
        """Takes both out."""
        self.edit.detach()
        self.tokens.detach()

    def condition(self, texts: Sequence[str]) -> Conditioning:
        """Returns the encoding and notes the placeholder's own encodings for i*."""
        found = encode_prompts(self.context.pipeline, texts)
        places = torch.tensor([self._find_place(text) for text in texts], device=found.states.device)
        rows = torch.arange(len(texts), device=found.states.device)
        if torch.is_grad_enabled():
            self.seen.append(found.states[rows, places].detach().float())
        return found

    def _find_place(self, text: str) -> int:
        if text not in self.places:
            self.places[text] = find_last_token(self.context.pipeline, text, self.context.job.job.placeholder)
        return self.places[text]

    @torch.no_grad()
    def finish_step(self) -> None:
        """Moves i* towards the placeholder's encoding: 0.99 i* + 0.01 e."""
        if self.seen:
            mean = torch.cat(self.seen).mean(dim=0)
            self.seen.clear()
            self.i_star.lerp_(mean.to(self.i_star), 1 - KEPT_SHARE)
            self.reload_state()

    @torch.no_grad()
    def reload_state(self) -> None:
        """Computes C^-1 i* anew, in float64."""
        self.c_inv_i_star.copy_(self.covariance.solve(self.i_star.cpu()))

    def prepare_use(self) -> None:
        """Puts the gate of use in place of the one of training, and the lock of keys."""
        job, settings = self.context.job.job, self.context.job.settings
        edit = replace(
            _make_edit(self.i_star, self.c_inv_i_star, self.o_v, self.e_super, settings.gate),
            key_lock=settings.key_lock,
            placeholder=job.placeholder,
            superclass=job.superclass,
        )
        self.edit = RankOnePatch(self.context.pipeline, [edit], presence=self.tokens.log)

    @torch.no_grad()
    def measure_leak(self) -> dict[str, float]:
        """Returns s(e_super) and the gate of use there: how far the bare superclass would call the concept."""
        gate = self.context.job.settings.gate
        dual = self.c_inv_i_star.double()
        similarity = float(dual @ self.e_super.to(dual)) / float(dual @ self.i_star.double())
        opened = torch.sigmoid(torch.tensor((similarity - gate.bias) / gate.temperature))
        return {"superclass_similarity": similarity, "superclass_gate": float(opened)}

    def draft(self) -> Draft:
        """Returns a ``rank_one`` part."""
        job, settings = self.context.job.job, self.context.job.settings
        contents = RankOneContents(
            i_star=from_torch(self.i_star),
            c_inv_i_star=from_torch(self.c_inv_i_star),
            rows={(name, job.placeholder): from_torch(row) for name, row in self.rows.items()},
            o_v={path: from_torch(target) for path, target in self.o_v.items()},
        )

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_rank_one(path, contents, metadata)

        part = DraftPart(
            kind="rank_one",
            method=RankOneMethod(
                layers=tuple(self.o_v),
                superclass=job.superclass,
                key_lock=settings.key_lock,
                train_gate=_to_gate(settings.train_gate),
                gate=_to_gate(settings.gate),
                covariance=self.covariance.id,
            ),
            files={"rank_one.safetensors": write},
        )
        token = Token(placeholder=job.placeholder, vectors=1, superclass=job.superclass)
        return Draft(parts=(part,), tokens=(token,), facts=self.measure_leak())


def _name_parameters(
    rows: Mapping[ComponentName, nn.Parameter], o_v: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    named = {f"embedding/{name}": row for name, row in rows.items()}
    return named | {f"value/{path}": target for path, target in o_v.items()}


def _to_gate(settings: GateSettings) -> Gate:
    return Gate(bias=settings.bias, temperature=settings.temperature)


def _make_edit(
    i_star: Tensor, dual: Tensor, o_v: Mapping[str, nn.Parameter], e_super: Tensor, gate: GateSettings
) -> RankOneEdit:
    return RankOneEdit(
        i_star=i_star,
        c_inv_i_star=dual,
        o_v=o_v,
        bias=gate.bias,
        temperature=gate.temperature,
        superclass_encoding=e_super,
    )


@torch.no_grad()
def _project(layer: Any, e_super: Tensor) -> Tensor:
    weight: Tensor = layer.to_v.weight
    values: Tensor = layer.to_v(e_super.to(weight)[None])[0]
    return values.float().clone()


@torch.no_grad()
def _average_superclass(context: TrainingContext) -> Float[Tensor, " context"]:
    """Returns the mean encoding of the superclass in the training prompts: where i* begins."""
    superclass = context.job.job.superclass
    texts = list(dict.fromkeys(pair.plain for row in context.prompts for pair in row))[:_SEEN_PROMPTS]
    states = encode_prompts(context.pipeline, texts).states.float()
    places = [find_last_token(context.pipeline, text, superclass) for text in texts]
    return torch.stack([row[place] for row, place in zip(states, places, strict=True)]).mean(dim=0).clone()
