"""Concepts of each kind for a pipeline, written to a folder as real packages and opened again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from conceptry.bases import BaseIdentity, find_family
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.hypernetworks import find_attention
from conceptry.composer.lora import LoraFactors
from conceptry.composer.pipelines import find_tensor, iter_cross_attention
from conceptry.composer.tensors import from_torch
from conceptry.concepts import MANIFEST_NAME, Concept, open_concept
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, write_embedding
from conceptry.formats.full import FullContents, name_full_file, write_full
from conceptry.formats.hypernetwork import (
    HYPERNETWORK_NAME,
    TARGETS,
    HyperLayer,
    HypernetworkContents,
    Target,
    measure_layers,
    write_hypernetwork,
)
from conceptry.formats.lora import LORA_NAME, LoraContents, LoraModule, write_lora
from conceptry.formats.packages import describe_file
from conceptry.formats.rank_one import RANK_ONE_NAME, RankOneContents, write_rank_one
from conceptry.kinds import ActivationId
from conceptry.manifest import Base, Manifest
from tests.fakes.edits import make_edit, make_factors, make_rows

COVARIANCE = "sha256:" + "c" * 64


def list_paths(pipeline: Any) -> list[str]:
    """Returns a few layers of each sort: self-attention, keys, values, a convolution."""
    cross, _ = next(iter_cross_attention(pipeline.unet))
    self_attention = cross.removesuffix("attn2") + "attn1"
    return [f"{self_attention}.to_q", f"{cross}.to_k", f"{cross}.to_v", "mid_block.resnets.0.conv1"]


def describe_base(identity: BaseIdentity, *, fingerprints: bool = True) -> dict[str, Any]:
    return {
        "family": identity.family,
        "architecture": find_family(identity.family).architecture,
        "prediction_type": identity.prediction_type,
        "fingerprints": {
            name: {"layout": str(found.layout), "weights": list(found.weights)}
            for name, found in identity.fingerprints.items()
        }
        if fingerprints
        else {},
    }


def write_concept(
    folder: Path,
    name: str,
    base: Mapping[str, Any],
    method: Mapping[str, Any],
    *,
    files: list[str],
    tokens: list[dict[str, Any]],
    **fields: Any,
) -> Concept:
    """Returns the concept whose files already lie in ``folder``."""
    described = [describe_file(folder / file, name=file).model_dump(mode="json") for file in sorted(files)]
    build = {
        "id": f"{base['family']}-{method['kind']}".replace("_", "-"),
        "base": Base.model_validate(base).model_dump(mode="json"),
        "parts": [{"kind": method["kind"], "method": method, "files": described}],
    }
    manifest = Manifest.model_validate(
        {"schema": 1, "name": name, "version": "1.0.0", "tokens": tokens, "builds": [build], **fields}
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return open_concept(folder)


def make_embedding(
    folder: Path, pipeline: Any, placeholder: str = "<e>", *, vectors: int = 2, seed: int = 11, **fields: Any
) -> Concept:
    rows = make_rows(pipeline, placeholder, vectors=vectors, seed=seed)
    contents = EmbeddingContents(
        rows={(component, rows.placeholder): from_torch(values) for component, values in rows.rows.items()}
    )
    folder.mkdir(parents=True)
    write_embedding(folder / EMBEDDING_NAME, contents)
    return write_concept(
        folder,
        fields.pop("name", "test/embedding"),
        fields.pop("base", None) or describe_base(identify_pipeline(pipeline)),
        {"kind": "embedding", "components": list(rows.rows)},
        files=[EMBEDDING_NAME],
        tokens=[{"placeholder": placeholder, "vectors": vectors, "superclass": "cat"}],
        **fields,
    )


def make_layered(
    folder: Path, pipeline: Any, placeholder: str = "<p>", *, vectors: int = 1, seed: int = 15, **fields: Any
) -> Concept:
    """Returns an embedding with rows of its own for each cross-attention layer."""
    layers = fields.pop("layers", None) or tuple(path for path, _ in iter_cross_attention(pipeline.unet))
    per_layer = [
        make_rows(pipeline, placeholder, vectors=vectors, seed=seed + at) for at in range(len(layers))
    ]
    rows = {
        (component, per_layer[0].placeholder): from_torch(
            torch.stack([one.rows[component] for one in per_layer])
        )
        for component in per_layer[0].rows
    }
    folder.mkdir(parents=True)
    write_embedding(folder / EMBEDDING_NAME, EmbeddingContents(rows=rows, layers=layers))
    return write_concept(
        folder,
        fields.pop("name", "test/layered"),
        fields.pop("base", None) or describe_base(identify_pipeline(pipeline)),
        {"kind": "embedding", "components": sorted(per_layer[0].rows), "layers": list(layers)},
        files=[EMBEDDING_NAME],
        tokens=[{"placeholder": placeholder, "vectors": vectors, "superclass": "cat"}],
        **fields,
    )


def make_rank_one(
    folder: Path, pipeline: Any, placeholder: str = "<r>", *, seed: int = 12, **fields: Any
) -> Concept:
    superclass = fields.pop("superclass", "cat")
    edit = make_edit(pipeline, placeholder, seed=seed)
    rows = make_rows(pipeline, placeholder, seed=seed)
    contents = RankOneContents(
        i_star=from_torch(edit.i_star),
        c_inv_i_star=from_torch(edit.c_inv_i_star),
        rows={(component, rows.placeholder): from_torch(values) for component, values in rows.rows.items()},
        o_v={layer: from_torch(values) for layer, values in edit.o_v.items()},
    )
    folder.mkdir(parents=True)
    write_rank_one(folder / RANK_ONE_NAME, contents)
    return write_concept(
        folder,
        fields.pop("name", "test/rank-one"),
        fields.pop("base", None) or describe_base(identify_pipeline(pipeline)),
        {
            "kind": "rank_one",
            "layers": list(edit.o_v),
            "superclass": superclass,
            "key_lock": fields.pop("key_lock", "local"),
            "train_gate": {"bias": 0.75, "temperature": 0.1},
            "gate": {"bias": edit.bias, "temperature": edit.temperature},
            "covariance": fields.pop("covariance", COVARIANCE),
        },
        files=[RANK_ONE_NAME],
        tokens=[{"placeholder": placeholder, "vectors": 1, "superclass": superclass}],
        **fields,
    )


def make_lora(folder: Path, pipeline: Any, *, seed: int = 13, **fields: Any) -> Concept:
    factors = make_factors(pipeline.unet, list_paths(pipeline), seed=seed)
    modules = {f"unet.{path}": _as_module(one) for path, one in factors.items()}
    prefix = "text_model." if hasattr(pipeline.text_encoder, "text_model") else ""
    text = make_factors(pipeline.text_encoder, [f"{prefix}encoder.layers.0.self_attn.q_proj"], seed=seed)
    (query,) = text.values()
    modules["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"] = _as_module(query)
    folder.mkdir(parents=True)
    write_lora(folder / LORA_NAME, LoraContents(modules=fields.pop("modules", modules)))
    return write_concept(
        folder,
        fields.pop("name", "test/lora"),
        fields.pop("base", None) or describe_base(identify_pipeline(pipeline)),
        {"kind": "lora", "rank": 2, "modules": len(modules), "scale": 0.5},
        files=[LORA_NAME],
        tokens=[{"placeholder": fields.pop("placeholder", "zork"), "vectors": 0, "superclass": "cat"}],
        **fields,
    )


def _as_module(factors: LoraFactors) -> LoraModule:
    return LoraModule.of_factors(
        down=from_torch(factors.down), up=from_torch(factors.up), alpha=factors.scale * factors.rank
    )


def make_full(folder: Path, pipeline: Any, *, seed: int = 14, **fields: Any) -> Concept:
    generator = torch.Generator().manual_seed(seed)
    names = fields.pop("names", None) or [f"{path}.weight" for path in list_paths(pipeline)]
    tensors = {}
    for name in names:
        value = find_tensor(pipeline.unet, name)
        assert value is not None
        change = 0.2 * torch.randn(value.shape, generator=generator)
        tensors[name] = from_torch(value.detach().float() + change)
    folder.mkdir(parents=True)
    contents = FullContents(component=next(iter(identify_pipeline(pipeline).fingerprints)), tensors=tensors)
    file = name_full_file(contents.component)
    write_full(folder / file, contents)
    return write_concept(
        folder,
        fields.pop("name", "test/full"),
        fields.pop("base", None) or describe_base(identify_pipeline(pipeline)),
        {"kind": "full", "components": ["unet"], "changed_tensors": len(names), "total_tensors": 100},
        files=[file],
        tokens=fields.pop("tokens", [{"placeholder": "zork", "vectors": 0, "superclass": "cat"}]),
        **fields,
    )


def make_hypernetwork(
    folder: Path,
    pipeline: Any,
    *,
    seed: int = 16,
    structure: tuple[float, ...] = (1.0, 2.0, 1.0),
    activation: ActivationId = "swish",
    **fields: Any,
) -> Concept:
    """Returns a hypernetwork for every width that attention of the pipeline reads."""
    generator = torch.Generator().manual_seed(seed)
    normed, activate_output = fields.pop("layer_norm", True), fields.pop("activate_output", False)

    def draw(*shape: int) -> Any:
        return from_torch(torch.randn(shape, generator=generator) / shape[-1] ** 0.5)

    networks: dict[tuple[int, Target], tuple[HyperLayer, ...]] = {}
    for width in sorted(set(find_attention(pipeline.unet).values())):
        sizes = measure_layers(width, structure)
        for target in TARGETS:
            networks[width, target] = tuple(
                HyperLayer(
                    weight=draw(outputs, inputs),
                    bias=draw(outputs),
                    norm_weight=draw(outputs) if normed else None,
                    norm_bias=draw(outputs) if normed else None,
                )
                for inputs, outputs in pairwise(sizes)
            )
    contents = HypernetworkContents(
        networks=networks, structure=structure, activation=activation, activate_output=activate_output
    )
    folder.mkdir(parents=True)
    write_hypernetwork(folder / HYPERNETWORK_NAME, contents)
    method = {
        "kind": "hypernetwork",
        "self_attention": contents.widths,
        "structure": structure,
        "activation": activation,
        "activate_output": activate_output,
        "layer_norm": normed,
    }
    return write_concept(
        folder,
        fields.pop("name", "test/hypernetwork"),
        fields.pop("base", None) or describe_base(identify_pipeline(pipeline)),
        method,
        files=[HYPERNETWORK_NAME],
        tokens=[],
        **fields,
    )


MAKERS = {
    "embedding": make_embedding,
    "rank_one": make_rank_one,
    "lora": make_lora,
    "full": make_full,
    "hypernetwork": make_hypernetwork,
}
