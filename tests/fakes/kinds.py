"""A concept of every kind and algorithm that a composition may hold, each with a word of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.pipelines import iter_cross_attention
from conceptry.composer.tensors import from_torch
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.formats.full import FullContents, write_full
from conceptry.formats.lora_modules import LoraModule
from conceptry.manifest import Manifest
from tests.fakes.concepts import (
    describe_base,
    list_paths,
    make_embedding,
    make_full,
    make_hypernetwork,
    make_layered,
    make_lora,
    make_rank_one,
    write_concept,
)
from tests.fakes.modules import FORMS, fits_layer, make_module

Make = Callable[[Path, Any, str, int], Concept]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """One kind: how it is made, and whether weights hold it."""

    id: str
    make: Make
    fusable: bool = True
    worded: bool = False
    """Its word has vectors; a word of plain text is written for the others."""


def name_concept(label: str) -> str:
    return f"test/{label.replace('_', '-')}"


def make_kind(
    folder: Path, pipeline: Any, kind: str, *, label: str | None = None, seed: int = 30, biased: bool = True
) -> Concept:
    """Returns a concept ``test/LABEL`` of a kind; ``biased`` adds biases where its algorithm may, in any layer."""
    label = label or kind
    make = KIND_BY_ID[kind].make if biased else _BARE.get(kind, KIND_BY_ID[kind].make)
    return make(folder / label, pipeline, label, seed)


def find_word(concept: Concept) -> str:
    """Returns the word that calls a concept; nothing where it has none."""
    return next((str(token.placeholder) for token in concept.manifest.tokens), "")


def _make_word(label: str) -> str:
    return label[:3]


def _enclose(label: str) -> str:
    return f"<{label[:3]}>"  # short: the prompts of these tokenizers have 24 places


def _make_embedding(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    return make_embedding(folder, pipeline, _enclose(label), vectors=3, seed=seed, name=name_concept(label))


def _make_layered(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    return make_layered(folder, pipeline, _enclose(label), vectors=2, seed=seed, name=name_concept(label))


def _make_local(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    return make_rank_one(folder, pipeline, _enclose(label), seed=seed, name=name_concept(label))


def _make_global(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    settings = {"name": name_concept(label), "key_lock": "global", "superclass": "dog"}
    return make_rank_one(folder, pipeline, _enclose(label), seed=seed, **settings)


def _make_lora(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    return make_lora(folder, pipeline, seed=seed, name=name_concept(label), placeholder=_make_word(label))


def _make_algorithm(algorithm: str, *, biased: bool = True) -> Make:
    row, form = next((row, form) for name, row, form in FORMS if row.id == algorithm)

    def make(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
        shapes = {
            path: tuple(pipeline.unet.get_submodule(path).weight.shape) for path in list_paths(pipeline)
        }
        modules = {
            f"unet.{path}": make_module(row, form, shape, seed=seed + number)
            for number, (path, shape) in enumerate(shapes.items())
            if fits_layer(row, form, shape)
        }
        if not biased:
            modules = {name: drop_bias(module) for name, module in modules.items()}
        return make_lora(
            folder, pipeline, modules=modules, name=name_concept(label), placeholder=_make_word(label)
        )

    return make


def drop_bias(module: LoraModule) -> LoraModule:
    """Returns the module without what it adds to a bias."""
    return replace(module, parts={part: raw for part, raw in module.parts.items() if part != "diff_b"})


def _make_full(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    tokens = [{"placeholder": _make_word(label), "vectors": 0, "superclass": "cat"}]
    return make_full(folder, pipeline, seed=seed, name=name_concept(label), tokens=tokens)


def _make_custom_diffusion(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    """Keys and values of all cross-attention, and a word (arXiv 2212.04488)."""
    generator = torch.Generator().manual_seed(seed)
    new = {
        f"{path}.{name}.weight": layer.weight.detach()
        + 0.1 * torch.randn(layer.weight.shape, generator=generator)
        for path, attention in iter_cross_attention(pipeline.unet)
        for name, layer in (("to_k", attention.to_k), ("to_v", attention.to_v))
    }
    inner = folder / "weights"
    inner.mkdir(parents=True)
    component = next(iter(identify_pipeline(pipeline).fingerprints))
    contents = FullContents(component=component, tensors={name: from_torch(one) for name, one in new.items()})
    write_full(inner / "unet.safetensors", contents)
    method = {"kind": "full", "components": ["unet"], "changed_tensors": len(new), "total_tensors": 100}
    base = describe_base(identify_pipeline(pipeline))
    weights = write_concept(inner, "test/weights", base, method, files=["unet.safetensors"], tokens=[])
    word = make_embedding(
        folder / "word", pipeline, _enclose(label), vectors=1, seed=seed, name=name_concept(label)
    )
    return join_concepts(folder / "both", word, weights)


def _make_hypernetwork(folder: Path, pipeline: Any, label: str, seed: int) -> Concept:
    return make_hypernetwork(folder, pipeline, seed=seed, name=name_concept(label))


def join_concepts(folder: Path, *concepts: Concept) -> Concept:
    """Returns one package with the parts of all, as pivotal tuning and Custom Diffusion publish them."""
    folder.mkdir(parents=True)
    builds = [concept.manifest.builds[0] for concept in concepts]
    for concept in concepts:
        for file in concept.manifest.iter_files():
            shutil.copyfile(concept.locate(file), folder / file.path)
    described = concepts[0].manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    described["builds"][0]["parts"] = [
        part.model_dump(mode="json", by_alias=True, exclude_none=True)
        for build in builds
        for part in build.parts
    ]
    (folder / MANIFEST_NAME).write_bytes(Manifest.model_validate(described).to_bytes())
    return open_concept(folder)


_ALGORITHMS: Final = ("locon", "loha", "lokr", "dora")
KINDS: Final = (
    KindRow(id="embedding", make=_make_embedding, worded=True),
    KindRow(id="xti", make=_make_layered, fusable=False, worded=True),
    KindRow(id="perfusion", make=_make_local, fusable=False, worded=True),
    KindRow(id="perfusion_global", make=_make_global, fusable=False, worded=True),
    KindRow(id="lora", make=_make_lora),
    *(KindRow(id=algorithm, make=_make_algorithm(algorithm)) for algorithm in _ALGORITHMS),
    KindRow(id="full", make=_make_full),
    KindRow(id="custom_diffusion", make=_make_custom_diffusion, worded=True),
    KindRow(id="hypernetwork", make=_make_hypernetwork, fusable=False),
)
_BARE: Final = {algorithm: _make_algorithm(algorithm, biased=False) for algorithm in _ALGORITHMS}
KIND_BY_ID: Final = {row.id: row for row in KINDS}
