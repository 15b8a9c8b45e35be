"""Adapters of transformers, in the names of diffusers and of their authors: attached, exported, out again exactly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from conceptry.composer import Composition, attach, export, fuse, identify_pipeline
from conceptry.composer.overlaps import find_idle_parts, find_overlaps
from conceptry.composer.plan import make_plan
from conceptry.composition import Use
from conceptry.concepts import Concept, open_concept
from conceptry.errors import IncompatibleError
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.import_plans import ImportSettings
from conceptry.formats.importing import import_file
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.original_names import spell_as_diffusers
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.manifest import Base
from conceptry.names import ConceptName, Placeholder, parse_version
from tests.fakes.concepts import describe_base
from tests.fakes.flows import make_flow_pipeline

LIMIT = 1e-5
RANK = 2


@dataclass(frozen=True, slots=True)
class Family:
    """What one family's adapters change, in its authors' names: path -> outputs and inputs of the layer."""

    modules: Mapping[str, tuple[int, int]]
    inputs: Mapping[str, Any]
    read_by_diffusers: bool = True
    """Whether diffusers reads kohya's files of it itself."""


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


FAMILIES = {
    "flux": Family(
        {
            "double_blocks.0.img_attn.qkv": (96, 32),
            "double_blocks.1.txt_attn.qkv": (96, 32),
            "double_blocks.0.img_attn.proj": (32, 32),
            "double_blocks.0.txt_attn.proj": (32, 32),
            "double_blocks.0.img_mlp.0": (128, 32),
            "double_blocks.0.txt_mlp.2": (32, 128),
            "double_blocks.1.img_mod.lin": (192, 32),
            "double_blocks.1.txt_mod.lin": (192, 32),
            "single_blocks.0.linear1": (224, 32),
            "single_blocks.1.linear2": (32, 160),
            "single_blocks.1.modulation.lin": (96, 32),
        },
        {
            "hidden_states": draw(1, 16, 64),
            "encoder_hidden_states": draw(1, 6, 32),
            "pooled_projections": draw(1, 24),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(6, 3),
            "guidance": torch.tensor([3.5]),
        },
        read_by_diffusers=False,  # it cuts single blocks at the widths of the published model
    ),
    "sd3": Family(
        {
            "joint_blocks.0.x_block.attn.qkv": (96, 32),
            "joint_blocks.0.context_block.attn.qkv": (96, 32),
            "joint_blocks.1.x_block.attn.proj": (32, 32),
            "joint_blocks.0.context_block.attn.proj": (32, 32),
            "joint_blocks.0.x_block.mlp.fc1": (128, 32),
            "joint_blocks.0.context_block.mlp.fc2": (32, 128),
            "joint_blocks.0.x_block.adaLN_modulation.1": (192, 32),
            "joint_blocks.1.context_block.adaLN_modulation.1": (64, 32),
        },
        {
            "hidden_states": draw(1, 16, 8, 8),
            "encoder_hidden_states": draw(1, 6, 64),
            "pooled_projections": draw(1, 48),
            "timestep": torch.tensor([500.0]),
        },
        read_by_diffusers=False,
    ),
    "qwen_image": Family(
        {
            "transformer_blocks.0.attn.to_q": (32, 32),
            "transformer_blocks.0.attn.add_k_proj": (32, 32),
            "transformer_blocks.1.attn.to_out.0": (32, 32),
            "transformer_blocks.0.img_mlp.net.2": (32, 128),
            "transformer_blocks.1.txt_mlp.net.0.proj": (128, 32),
            "transformer_blocks.1.img_mod.1": (192, 32),
        },
        {
            "hidden_states": draw(1, 16, 64),
            "encoder_hidden_states": draw(1, 6, 32),
            "encoder_hidden_states_mask": torch.ones(1, 6, dtype=torch.long),
            "timestep": torch.tensor([0.5]),
            "img_shapes": [[(1, 4, 4)]],
        },
    ),
    "wan": Family(
        {
            f"blocks.{block}.{path}": shape
            for block in range(2)
            for path, shape in {
                **{
                    f"{attention}.{one}": (32, 32)
                    for attention in ("self_attn", "cross_attn")
                    for one in "qkvo"
                },
                "ffn.0": (64, 32),
                "ffn.2": (32, 64),
            }.items()
        },
        {
            "hidden_states": draw(1, 16, 1, 8, 8),
            "encoder_hidden_states": draw(1, 6, 32),
            "timestep": torch.tensor([500]),
        },
    ),
    "z_image": Family(
        {
            "layers.0.attention.qkv": (192, 64),
            "layers.1.attention.out": (64, 64),
            "noise_refiner.0.attention.qkv": (192, 64),
            "layers.1.feed_forward.w1": (170, 64),
        },
        {"x": [draw(16, 1, 8, 8)], "t": torch.tensor([0.5]), "cap_feats": [draw(32, 32)]},
        read_by_diffusers=False,
    ),
}


@cache
def get_pipeline(family: str) -> Any:
    """Returns the pipeline of a family that our own attach changes and restores."""
    return make_flow_pipeline(family)


@torch.no_grad()
def ask(family: str, pipeline: Any) -> Tensor:
    """Returns what the transformer answers to fixed inputs."""
    answer = pipeline.transformer(**FAMILIES[family].inputs, return_dict=False)[0]
    return torch.stack(answer) if isinstance(answer, list) else answer


def differ(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def make_factors(
    modules: Mapping[str, tuple[int, int]], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return {
        path: (
            generator.standard_normal((RANK, inputs)).astype(np.float32),
            0.2 * generator.standard_normal((outputs, RANK)).astype(np.float32),
        )
        for path, (outputs, inputs) in modules.items()
    }


def write_kohya(path: Path, family: str, seed: int = 0) -> Path:
    """Returns a file as sd-scripts and musubi-tuner write it: flat names of the authors' own code."""
    tensors = {}
    for module, (down, up) in make_factors(FAMILIES[family].modules, seed).items():
        stem = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = RawTensor.from_numpy(down)
        tensors[f"{stem}.lora_up.weight"] = RawTensor.from_numpy(up.astype(np.float32))
        tensors[f"{stem}.alpha"] = RawTensor.from_numpy(np.array(1.0, np.float32))
    write_tensors(path, tensors)
    return path


def import_adapter(path: Path, family: str, name: str = "test/imported", *, pipeline: Any = None) -> Concept:
    """Returns the concept that is made of a file, for the pipeline of a family or another."""
    base = describe_base(identify_pipeline(pipeline or get_pipeline(family)))
    settings = ImportSettings(
        name=ConceptName.parse(name),
        version=parse_version("1.0.0"),
        placeholder=Placeholder("zork"),
        base=Base.model_validate(base),
    )
    import_file(path, path.with_suffix(""), settings)
    return open_concept(path.with_suffix(""))


def load_in_diffusers(family: str, folder: Path, file: str) -> Tensor:
    """Returns what diffusers answers with a file that it loaded itself."""
    pipeline = make_flow_pipeline(family)
    plain = ask(family, pipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(folder), weight_name=file)
    answer = ask(family, pipeline)
    assert not torch.equal(answer, plain)
    return answer


def copy_weights(pipeline: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_in_the_names_of_the_authors_is_attached_and_exported(family: str, tmp_path: Path) -> None:
    pipeline, file = get_pipeline(family), write_kohya(tmp_path / "file.safetensors", family)
    concept = import_adapter(file, family)
    plain, weights = ask(family, pipeline), copy_weights(pipeline)
    with attach(Composition(concept), pipeline) as report:
        attached = ask(family, pipeline)
        assert report.concepts[0].unmatched == ()
    assert differ(attached, plain) > 0.01
    with fuse(Composition(concept), pipeline):
        assert differ(ask(family, pipeline), attached) <= LIMIT
    assert torch.equal(ask(family, pipeline), plain)
    assert all(torch.equal(value, weights[name]) for name, value in pipeline.transformer.state_dict().items())
    export(Composition(concept), pipeline, tmp_path / "ours.safetensors")
    assert differ(load_in_diffusers(family, tmp_path, "ours.safetensors"), attached) <= LIMIT
    if FAMILIES[family].read_by_diffusers:
        assert differ(load_in_diffusers(family, tmp_path, file.name), attached) <= LIMIT


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_two_in_different_names_are_exported_as_the_sum_that_is_attached(family: str, tmp_path: Path) -> None:
    pipeline = get_pipeline(family)
    first = import_adapter(write_kohya(tmp_path / "a.safetensors", family, seed=1), family, "test/a")
    export(Composition(first), pipeline, tmp_path / "b.safetensors")
    second = import_adapter(tmp_path / "b.safetensors", family, "test/b")
    with attach(Composition(first * 0.7, second * 0.5), pipeline):
        attached = ask(family, pipeline)
    with attach(Composition(first * 1.2), pipeline):
        assert differ(ask(family, pipeline), attached) <= LIMIT
    export(Composition(first * 0.7, second * 0.5), pipeline, tmp_path / "sum.safetensors")
    assert differ(load_in_diffusers(family, tmp_path, "sum.safetensors"), attached) <= LIMIT


@pytest.mark.parametrize(
    "family",
    [
        "flux",
        "z_image",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd3", "qwen_image", "wan")),
    ],
)
def test_where_two_in_different_names_meet_is_told_by_the_layers_that_both_change(
    family: str, tmp_path: Path
) -> None:
    pipeline = get_pipeline(family)
    first = import_adapter(write_kohya(tmp_path / "a.safetensors", family), family, "test/a")
    export(Composition(first), pipeline, tmp_path / "b.safetensors")
    second = import_adapter(tmp_path / "b.safetensors", family, "test/b")
    use = {"test/a": Use(parts={"transformer": 0.5, find_layers(pipeline, first)[0]: 1.0})}
    plan = make_plan(Composition(first, second, use=use), identify_pipeline(pipeline))
    (overlap,) = find_overlaps(plan)
    assert list(overlap.modules) == find_layers(pipeline, first) == find_layers(pipeline, second)
    assert find_idle_parts(plan) == ()


def find_layers(pipeline: Any, concept: Concept) -> list[str]:
    """Return the layers whose weights are others while a concept is fused."""
    before = copy_weights(pipeline)
    with fuse(Composition(concept), pipeline):
        changed = [name for name, value in copy_weights(pipeline).items() if not value.equal(before[name])]
    return sorted(f"transformer.{name.rpartition('.')[0]}" for name in changed)


# --- names and rows ------------------------------------------------------------------------------------------------


class Checkpoint(dict[str, Tensor]):
    """The authors' weights; what a test does not ask for is there too, of a few zeros."""

    def pop(self, name: str, *default: Any) -> Any:
        """Returns and removes a weight."""
        return super().pop(name, *default) if name in self or default else torch.zeros(6, 1)


BLOCKS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "flux": {
        **{
            f"double_blocks.0.{side}_{path}": shape
            for side in ("img", "txt")
            for path, shape in {
                "attn.qkv": (9216, 3072),
                "attn.proj": (3072, 3072),
                "mlp.0": (12288, 3072),
                "mlp.2": (3072, 12288),
                "mod.lin": (18432, 3072),
            }.items()
        },
        "single_blocks.0.linear1": (21504, 3072),
        "single_blocks.0.linear2": (3072, 15360),
        "single_blocks.0.modulation.lin": (9216, 3072),
        "img_in": (3072, 64),
        "txt_in": (3072, 4096),
        **{
            f"{one}_in.{end}_layer": (3072, 256)
            for one in ("time", "vector", "guidance")
            for end in ("in", "out")
        },
        "final_layer.linear": (64, 3072),
        "final_layer.adaLN_modulation.1": (6144, 3072),
    },
    "sd3": {
        **{
            f"joint_blocks.0.{block}_block.{path}": shape
            for block in ("x", "context")
            for path, shape in {
                "attn.qkv": (192, 64),
                "attn.proj": (64, 64),
                "mlp.fc1": (256, 64),
                "mlp.fc2": (64, 256),
                "adaLN_modulation.1": (384, 64),
            }.items()
        },
        "joint_blocks.1.x_block.attn2.qkv": (192, 64),
        "joint_blocks.1.x_block.attn2.proj": (64, 64),
        "joint_blocks.1.context_block.adaLN_modulation.1": (128, 64),
        "context_embedder": (64, 96),
        "x_embedder.proj": (64, 64),
        **{f"{one}_embedder.mlp.{layer}": (64, 64) for one in "ty" for layer in (0, 2)},
        "final_layer.linear": (16, 64),
        "final_layer.adaLN_modulation.1": (128, 64),
    },
    "wan": {
        **{f"blocks.0.{one}_attn.{path}": (64, 64) for one in ("self", "cross") for path in "qkvo"},
        **{f"blocks.0.cross_attn.{one}_img": (64, 64) for one in "kv"},
        "blocks.0.ffn.0": (256, 64),
        "blocks.0.ffn.2": (64, 256),
        **{f"{one}_embedding.{layer}": (64, 64) for one in ("text", "time") for layer in (0, 2)},
        "time_projection.1": (384, 64),
        "img_emb.proj.1": (64, 64),
        "img_emb.proj.3": (64, 64),
        "patch_embedding": (64, 16),
        "head.head": (64, 64),
    },
    "z_image": {
        f"{part}.0.{path}": shape
        for part in ("layers", "noise_refiner", "context_refiner")
        for path, shape in {
            "attention.qkv": (192, 64),
            "attention.out": (64, 64),
            "feed_forward.w1": (170, 64),
        }.items()
    },
}
CONVERTERS = {
    "flux": single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "wan": single_file_utils.convert_wan_transformer_to_diffusers,
    "z_image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
}


@pytest.mark.parametrize("family", CONVERTERS)
def test_every_row_of_the_authors_layers_goes_where_diffusers_puts_its_weights(family: str) -> None:
    factors = make_factors(BLOCKS[family], 0)
    modules = {f"transformer.{path}": make_module(*pair) for path, pair in factors.items()}
    found = spell_as_diffusers(modules, family)
    # What diffusers does to a checkpoint, it does to rows alone: it can be asked with one factor of each weight.
    checkpoint = Checkpoint({f"{path}.weight": torch.from_numpy(up) for path, (_, up) in factors.items()})
    checkpoint |= {f"{path}.bias": torch.zeros(outputs) for path, (outputs, _) in BLOCKS[family].items()}
    converted = CONVERTERS[family](checkpoint)
    assert len(found) >= len(modules)
    for name, module in found.items():
        expected = converted[f"{name.removeprefix('transformer.')}.weight"]
        assert np.array_equal(module.up.to_numpy(), expected.numpy()), name


def make_module(down: np.ndarray, up: np.ndarray) -> LoraModule:
    return LoraModule.of_factors(down=RawTensor.from_numpy(down), up=RawTensor.from_numpy(up), alpha=1.0)


QKV = "transformer.layers.0.attention.qkv"
PARTS = [f"transformer.layers.0.attention.to_{one}" for one in "qkv"]


def draw_parts(**shapes: tuple[int, ...]) -> dict[str, RawTensor]:
    generator = np.random.default_rng(5)
    return {
        name: RawTensor.from_numpy(generator.standard_normal(shape).astype(np.float32))
        for name, shape in shapes.items()
    }


def make_adapter(algorithm: Any, rule: Any = "alpha/rank", **shapes: tuple[int, ...]) -> LoraModule:
    numbers = {} if rule == "none" else {"alpha": 1.0}
    return LoraModule(algorithm=algorithm, parts=draw_parts(**shapes), numbers=numbers, rule=rule)


JOINED = {
    "LoRA with a bias": make_adapter("lora", up=(24, 2), down=(2, 6), diff_b=(24,)),
    "LoHa": make_adapter("loha", hada_w1_a=(24, 2), hada_w1_b=(2, 6), hada_w2_a=(24, 2), hada_w2_b=(2, 6)),
    "LoKr": make_adapter("lokr", lokr_w1=(2, 2), lokr_w2_a=(12, 2), lokr_w2_b=(2, 3)),
    "full": make_adapter("full", "none", diff=(24, 6), diff_b=(24,)),
    "DoRA by outputs": make_adapter("dora", up=(24, 2), down=(2, 6), magnitude_out=(24, 1)),
}


@pytest.mark.parametrize("title", JOINED)
def test_a_delta_over_queries_keys_and_values_is_cut_into_the_rows_of_each(title: str) -> None:
    module, weight = JOINED[title], np.random.default_rng(6).standard_normal((24, 6))
    whole, bias = dense_delta(module, (24, 6), weight), dense_bias_delta(module)
    found = spell_as_diffusers({QKV: module}, "z_image")
    assert list(found) == PARTS
    assert whole is not None
    for place, part in enumerate(found.values()):
        rows = slice(8 * place, 8 * place + 8)
        delta = dense_delta(part, (8, 6), weight[rows])
        assert delta is not None
        assert np.abs(delta - whole[rows]).max() <= 1e-6 * np.abs(whole).max()
        own = dense_bias_delta(part)
        assert (own is None) == (bias is None)
        assert bias is None or own is None or np.allclose(own, bias[rows], atol=1e-6)


def test_what_measures_the_inputs_of_all_three_is_refused_by_name() -> None:
    module = make_adapter("dora", up=(24, 2), down=(2, 6), magnitude_in=(1, 6))
    with pytest.raises(IncompatibleError, match=r"layers\.0\.attention\.qkv is a dora over several layers"):
        spell_as_diffusers({QKV: module}, "z_image")
