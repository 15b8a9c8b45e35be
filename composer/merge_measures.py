"""What layers read while each concept of a merge is in the pipeline: encodings of its words, moments of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from conceptry.bases import ComponentName
from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.generate import generate
from conceptry.composer.pipelines import (
    Pipeline,
    encode_prompts,
    find_last_token,
    find_module,
    iter_cross_attention,
    list_components,
    split_word,
    unwrap_layer,
)
from conceptry.composer.plan import Plan, PlannedMember
from conceptry.errors import IncompatibleError

# The widest second moment that is kept: a layer of more columns is summed instead.
MAX_COLUMNS: Final = 2816
_STEPS: Final = 8
_PROMPTS: Final = ("{}", "a photo of {}")

Measured = Mapping[str, Mapping[int, Tensor]]
"""``component.module`` -> the place of a concept -> what was measured with it."""


def measure_encodings(pipeline: Pipeline, plan: Plan, names: Iterable[str]) -> Measured:
    """Returns the encodings of each concept's words, from the first of its tokens to the end, for keys and values.

    Two prompts a word, "<word> superclass" and "a photo of <word> superclass" (arXiv 2212.04488, appendix); [rows,
    context], the same for every layer that reads text.

    Raises:
        IncompatibleError: if a concept has no word, or cannot be attached.
    """
    readers = {
        f"unet.{path}.{leaf}" for path, _ in iter_cross_attention(pipeline.unet) for leaf in ("to_k", "to_v")
    }
    rows = {}
    for place, member in enumerate(plan.members):
        with attach(Composition(member.concept * member.strength), pipeline) as report:
            words = _list_words(member, report.words)
            rows[place] = torch.cat([_encode(pipeline, *word) for word in words])
    return {name: rows for name in names if name in readers}


def _list_words(member: PlannedMember, words: Sequence[str]) -> list[tuple[str, str]]:
    """Returns each word with the word that it is written before."""
    tokens = member.concept.manifest.tokens
    if not tokens:
        raise IncompatibleError(
            f"{member.concept.label} has no word, so there is nothing that its layers should keep",
            hint="--method sum needs none",
        )
    return [(word, token.superclass or "") for word, token in zip(words, tokens, strict=True)]


@torch.no_grad()
def _encode(pipeline: Pipeline, word: str, superclass: str) -> Float[Tensor, "rows context"]:
    prompts = [prompt.format(f"{word} {superclass}".strip()) for prompt in _PROMPTS]
    found = []
    for prompt, encoded in zip(prompts, encode_prompts(pipeline, prompts), strict=True):
        first = find_last_token(pipeline, prompt, word) - len(split_word(pipeline, word)) + 1
        end = len(pipeline.tokenizer(prompt, truncation=True, max_length=len(encoded))["input_ids"])
        found.append(encoded[first:end].double().cpu())
    return torch.cat(found)


def measure_moments(
    pipeline: Pipeline, plan: Plan, names: Iterable[str], *, seed: int, progress: Callable[[str], Any]
) -> Measured:
    """Returns G = X X^T, divided by the number of columns of X, of what each layer reads while a concept is drawn.

    One picture a word and concept, in a few steps, from the noise of ``seed``; convolutions by their patches. Layers
    of more than MAX_COLUMNS columns are left out.
    """
    wanted = list(names)
    found: dict[str, dict[int, Tensor]] = {}
    for place, member in enumerate(plan.members):
        progress(member.concept.label)
        with attach(Composition(member.concept * member.strength), pipeline) as report:
            words = _list_words(member, report.words)
            sums: dict[str, tuple[Tensor, int]] = {}
            handles = [
                layer.register_forward_pre_hook(partial(_record, sums, name))
                for name, layer in _iter_layers(pipeline, wanted)
            ]
            try:
                prompts = ["a photo of " + f"{word} {superclass}".strip() for word, superclass in words]
                generate(pipeline, prompts, [seed] * len(prompts), steps=_STEPS)
            finally:
                for handle in handles:
                    handle.remove()
        for name, (total, count) in sums.items():
            found.setdefault(name, {})[place] = total / count
    return found


def _iter_layers(pipeline: Pipeline, names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    parts = list_components(pipeline)
    for name in names:
        component, _, path = name.partition(".")
        root = parts.get(ComponentName(component))
        layer = None if root is None else find_module(root, path)
        if layer is not None and _count_columns(unwrap_layer(layer)) <= MAX_COLUMNS:
            yield name, layer


def _count_columns(layer: Any) -> int:
    weight = getattr(layer, "weight", None)
    return weight[0].numel() if isinstance(weight, Tensor) and weight.ndim > 1 else MAX_COLUMNS + 1


@torch.no_grad()
def _record(sums: dict[str, tuple[Tensor, int]], name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    inner, x = unwrap_layer(layer), args[0]
    if isinstance(inner, nn.Conv2d):
        patches = F.unfold(x.float(), inner.kernel_size, inner.dilation, _pad(inner.padding), inner.stride)
        rows = patches.movedim(1, -1).flatten(0, -2)
    else:
        rows = x.float().flatten(0, -2)
    total, count = sums.get(name, (0.0, 0))
    sums[name] = (total + (rows.T @ rows).double().cpu(), count + len(rows))


def _pad(padding: Any) -> Any:
    return 0 if isinstance(padding, str) else padding
