"""What concepts mean, written out once more: a copy of the pipeline with dense weights, other rows and formulas.

Weights are sums in float64, words are words of the vocabulary whose rows were overwritten, and what weights cannot hold
is put in front of, or behind, the projections of each layer for one prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from conceptry.composer.pipelines import find_module, find_tensor, iter_cross_attention, list_text_encoders
from conceptry.composer.rank_one import encode_superclass
from conceptry.composer.tensors import to_torch
from conceptry.concepts import Concept
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.embedding import read_embedding
from conceptry.formats.full import read_full
from conceptry.formats.lora import read_lora
from conceptry.formats.rank_one import RankOneContents, read_rank_one
from conceptry.manifest import RankOneMethod

SPARE: Final = ("beach", "painting", "grass", "house", "style", "creature", "blue", "red", "with", "an")
"""Words of the vocabulary, one token each, that neither the tests' prompts nor sentences of locked keys have."""


@dataclass(slots=True)
class Word:
    """A placeholder: the words that stand for it, and its rows, [layers, vectors, width] where layers differ."""

    stand_ins: list[str]
    rows: dict[str, Tensor] = field(default_factory=dict)
    layers: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A Perfusion concept."""

    contents: RankOneContents
    method: RankOneMethod
    placeholder: str


class DensePipeline:
    """A copy of a pipeline that means what ``pipeline`` with the concepts attached means, for one prompt at a time."""

    def __init__(self, pipeline: Any, concepts: Sequence[tuple[Concept, float]]) -> None:
        self.pipeline = copy.deepcopy(pipeline)
        self.words: dict[str, Word] = {}
        self.edits: list[Edit] = []
        spare = iter(SPARE)
        with torch.no_grad():
            for concept, strength in concepts:
                for part in concept.manifest.builds[0].parts:
                    for file in part.files:
                        path = concept.locate(file)
                        if part.kind == "lora":
                            self._add_lora(pipeline, read_lora(path).modules, strength)
                        elif part.kind == "full":
                            self._add_full(pipeline, read_full(path), strength)
                        elif part.kind == "embedding":
                            contents = read_embedding(path)
                            self._add_words(contents.rows, contents.layers, spare)
                        else:
                            edited = read_rank_one(path)
                            (word,) = {word for _, word in edited.rows}
                            self._add_words(edited.rows, None, spare)
                            assert isinstance(part.method, RankOneMethod)
                            self.edits.append(Edit(edited, part.method, str(word)))

    # --- weights -----------------------------------------------------------------------------------------------------

    def _add_lora(self, plain: Any, modules: Mapping[str, Any], strength: float) -> None:
        for name, module in modules.items():
            component, _, path = name.partition(".")
            layer: Any = find_module(getattr(self.pipeline, component), path)
            base: Any = find_module(getattr(plain, component), path)
            weight, bias = base.weight.detach().double().numpy(), base.bias
            delta = dense_delta(module, weight.shape, weight)
            if delta is not None:
                _add(layer.weight, delta, strength)
            moved = dense_bias_delta(module, None if bias is None else bias.detach().double().numpy())
            if moved is not None:
                if layer.bias is None:  # one that the base lacks is none but zero
                    layer.bias = torch.nn.Parameter(torch.zeros(weight.shape[0]))
                _add(layer.bias, moved, strength)

    def _add_full(self, plain: Any, contents: Any, strength: float) -> None:
        for name, raw in contents.tensors.items():
            target = find_tensor(getattr(self.pipeline, contents.component), name)
            base = find_tensor(getattr(plain, contents.component), name)
            assert target is not None
            assert base is not None
            _add(target, (to_torch(raw).double() - base.detach().double()).numpy(), strength)

    # --- words -------------------------------------------------------------------------------------------------------

    def _add_words(self, rows: Mapping[Any, Any], layers: tuple[str, ...] | None, spare: Any) -> None:
        for (component, placeholder), raw in rows.items():
            values = to_torch(raw).float()
            word = self.words.get(str(placeholder))
            if word is None:
                stand_ins = [next(spare) for _ in range(values.shape[-2])]
                word = self.words[str(placeholder)] = Word(stand_ins, layers=layers)
            word.rows[str(component)] = values

    def _write_rows(self, path: str | None) -> None:
        for encoder in list_text_encoders(self.pipeline):
            tokenizer = getattr(self.pipeline, encoder.tokenizer_name)
            for word in self.words.values():
                rows = word.rows[encoder.component]
                if word.layers is not None:
                    rows = rows[word.layers.index(path)] if path in word.layers else rows.mean(dim=0)
                for text, row in zip(word.stand_ins, rows, strict=True):
                    (number,) = tokenizer(text, add_special_tokens=False)["input_ids"]
                    encoder.table.weight[number] = row

    def spell(self, prompt: str, *, locked: bool = False) -> str:
        """Returns the prompt in words of the vocabulary; ``locked`` as the keys of globally locked concepts read it."""
        for edit in self.edits if locked else ():
            if edit.method.key_lock == "global":
                prompt = prompt.replace(edit.placeholder, edit.method.superclass)
        for placeholder, word in self.words.items():
            prompt = prompt.replace(placeholder, " ".join(word.stand_ins))
        return prompt

    # --- what no weight holds ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, prompt: str, negative: str) -> Any:
        """Returns the pipeline, ready to draw ``spell(prompt)`` beside ``negative``; nothing else."""
        layers = dict(iter_cross_attention(self.pipeline.unet))
        keys, values = {}, {}
        for path in layers:
            self._write_rows(path)
            values[path] = self._encode(self.spell(prompt), negative)
            keys[path] = self._encode(self.spell(prompt, locked=True), negative)
        self._write_rows(None)
        supers = [encode_superclass(self.pipeline, edit.method.superclass).double() for edit in self.edits]
        for path, attention in layers.items():
            local = [number for number, edit in enumerate(self.edits) if edit.method.key_lock == "local"]
            key_targets = {number: attention.to_k.weight.double() @ supers[number] for number in local}
            value_targets = {
                number: to_torch(edit.contents.o_v[path]).double() for number, edit in enumerate(self.edits)
            }
            for layer, own, targets in (
                (attention.to_k, keys[path], key_targets),
                (attention.to_v, values[path], value_targets),
            ):
                layer.register_forward_pre_hook(lambda _, args, own=own: (own.to(args[0]),))
                layer.register_forward_hook(self._make_edit(targets))
        return self.pipeline

    def _encode(self, prompt: str, negative: str) -> Tensor:
        found = self.pipeline.encode_prompt(
            prompt=prompt,
            negative_prompt=negative,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        return torch.cat([found[1], found[0]])

    def _make_edit(self, targets: Mapping[int, Tensor]) -> Any:
        """h(e) = W (e - I (D^T I)^-1 D^T e) + sum_j o_j gate_j(e) with D = C^-1 I (arXiv 2305.01644, appendix B)."""

        def edit_output(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not targets:
                return output
            chosen = [self.edits[number] for number in targets]
            inputs = torch.stack([to_torch(one.contents.i_star).double() for one in chosen], dim=1)
            duals = torch.stack([to_torch(one.contents.c_inv_i_star).double() for one in chosen], dim=1)
            encoding = args[0][1:].double()
            apart = encoding - (encoding @ duals) @ torch.linalg.inv(duals.T @ inputs).T @ inputs.T
            edited = apart @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())
            for column, (one, target) in enumerate(zip(chosen, targets.values(), strict=True)):
                similar = encoding @ duals[:, column] / (inputs[:, column] @ duals[:, column])
                gate = torch.sigmoid((similar - one.method.gate.bias) / one.method.gate.temperature)
                edited = edited + gate[..., None] * target
            return torch.cat([output[:1], edited.to(output)])

        return edit_output


def _add(target: Tensor, delta: np.ndarray[Any, Any], strength: float) -> None:
    target.data = (target.double() + strength * torch.from_numpy(np.ascontiguousarray(delta))).to(target)
