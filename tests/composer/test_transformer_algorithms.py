"""Every algorithm of the LoRA family in transformers: narrow, as its dense weight; and two blocks of published size."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conceptry.composer import Composition, attach, export, fuse, identify_pipeline
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from conceptry.formats.algorithms import Algorithm, Form
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.lora import LORA_NAME, LoraContents, write_lora
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.original_names import spell_as_diffusers
from conceptry.formats.tensors import RawTensor, write_tensors
from tests.composer.test_transformers import FAMILIES, LIMIT, ask, differ, get_pipeline, import_adapter
from tests.fakes.concepts import describe_base, write_concept
from tests.fakes.flows import make_published_pipeline
from tests.fakes.modules import FORMS, fits_layer, make_module

STRENGTH: Final = 0.6
_TURNED: Final = 4  # how many rows the fakes turn together
FORM_BY_ALGORITHM: Final[dict[str, tuple[Algorithm, Form]]] = {
    row.id: (row, form) for _, row, form in reversed(FORMS) if fits_layer(row, form, (32, 32))
}
"""The first form of each algorithm that is for a linear layer."""

Modules = Mapping[str, LoraModule]
"""By the authors' names, which may be of several layers of diffusers."""


def make_modules(family: str, algorithms: list[str]) -> dict[str, LoraModule]:
    """Returns modules on all layers of a family, the algorithms by turns; what cannot be cut apart is left out."""
    found = {}
    for place, (path, shape) in enumerate(FAMILIES[family].modules.items()):
        algorithm = algorithms[place % len(algorithms)]
        if "oft" in algorithm and any(size % _TURNED for size in shape):
            continue
        module = make_module(*FORM_BY_ALGORITHM[algorithm], shape, seed=place)
        with contextlib.suppress(
            IncompatibleError
        ):  # by name: what measures or turns several layers together
            spell_as_diffusers({f"transformer.{path}": module}, family)
            found[f"transformer.{path}"] = module
    return found


def make_adapter(folder: Path, pipeline: Any, modules: Modules) -> Concept:
    folder.mkdir()
    write_lora(folder / LORA_NAME, LoraContents(modules=modules))
    return write_concept(
        folder,
        "test/adapter",
        describe_base(identify_pipeline(pipeline)),
        {"kind": "lora", "modules": len(modules)},
        files=[LORA_NAME],
        tokens=[{"placeholder": "zork", "vectors": 0, "superclass": "cat"}],
    )


def find_rows(name: str, shape: tuple[int, int], family: str) -> dict[str, np.ndarray]:
    """Returns the layers of diffusers that hold the rows of a layer of the authors, and which rows these are."""
    numbers = np.repeat(np.arange(shape[0], dtype=np.float32)[:, None], shape[1], axis=1)
    probe = LoraModule(algorithm="full", parts={"diff": RawTensor.from_numpy(numbers)}, rule="none")
    return {
        place: one.parts["diff"].to_numpy()[:, 0].astype(int)
        for place, one in spell_as_diffusers({name: probe}, family).items()
    }


@contextmanager
def written_in(transformer: nn.Module, modules: Modules, family: str) -> Iterator[None]:
    """Gives a block in which the weights are those of the formulas, made of the authors' whole layers in float64."""
    kept: list[tuple[Any, Tensor, Tensor | None]] = []
    with torch.no_grad():
        for name, module in modules.items():
            shape = FAMILIES[family].modules[name.removeprefix("transformer.")]
            rows = find_rows(name, shape, family)
            layers: dict[str, Any] = {
                place: transformer.get_submodule(place.removeprefix("transformer.")) for place in rows
            }
            weight, bias = np.zeros(shape), np.zeros(shape[0])
            for place, layer in layers.items():
                weight[rows[place]] = layer.weight.double().numpy()
                bias[rows[place]] = 0 if layer.bias is None else layer.bias.double().numpy()
            delta, shift = dense_delta(module, shape, weight), dense_bias_delta(module, bias)
            for place, layer in layers.items():
                kept.append((layer, layer.weight.data, layer.bias))
                if delta is not None:
                    own = torch.from_numpy(weight[rows[place]] + STRENGTH * delta[rows[place]])
                    layer.weight.data = own.float()
                if shift is not None:
                    changed = torch.from_numpy(bias[rows[place]] + STRENGTH * shift[rows[place]])
                    layer.bias = nn.Parameter(changed.float())
    try:
        yield
    finally:
        for layer, weight_before, bias_before in reversed(kept):
            layer.weight.data, layer.bias = weight_before, bias_before


def check(folder: Path, family: str, algorithms: list[str]) -> None:
    pipeline = get_pipeline(family)
    modules = make_modules(family, algorithms)
    if not modules:
        return
    plain = ask(family, pipeline)
    with written_in(pipeline.transformer, modules, family):
        expected = ask(family, pipeline)
    assert differ(expected, plain) > 1e-4
    composition = Composition(make_adapter(folder, pipeline, modules) * STRENGTH)
    for put in (attach, fuse):
        with put(composition, pipeline) as report:
            assert report.concepts[0].unmatched == ()
            assert differ(ask(family, pipeline), expected) <= LIMIT, (algorithms, put.__name__)
        assert torch.equal(ask(family, pipeline), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_algorithms_at_once_give_the_numbers_of_their_dense_weights(family: str, tmp_path: Path) -> None:
    algorithms = list(FORM_BY_ALGORITHM)
    # Another layer for each, twice, so that layers in pieces meet several.
    for turn in (0, len(algorithms) // 2):
        check(tmp_path / str(turn), family, algorithms[turn:] + algorithms[:turn])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", FORM_BY_ALGORITHM)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_algorithm_on_every_layer_gives_the_numbers_of_its_dense_weight(
    family: str, algorithm: str, tmp_path: Path
) -> None:
    check(tmp_path / "concept", family, [algorithm])


@pytest.mark.parametrize("algorithm", ["glora", "oft", "ia3"])
def test_what_may_have_its_outputs_in_another_order_is_refused_by_name(algorithm: str) -> None:
    name = "transformer.joint_blocks.1.context_block.adaLN_modulation.1"
    module = make_module(*FORM_BY_ALGORITHM[algorithm], (64, 32))
    with pytest.raises(
        IncompatibleError, match=r"context_block\.adaLN_modulation\.1 is a .* in another order"
    ):
        spell_as_diffusers({name: module}, "sd3")


# --- published sizes -------------------------------------------------------------------------------------------------

PUBLISHED: Final[Mapping[str, tuple[str, ...]]] = {
    "flux": (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.attn.add_v_proj",
        "transformer_blocks.0.attn.to_add_out",
        "transformer_blocks.1.ff.net.0.proj",
        "transformer_blocks.0.ff_context.net.2",
        "transformer_blocks.0.norm1.linear",
        "single_transformer_blocks.0.attn.to_k",
        "single_transformer_blocks.0.proj_mlp",
        "single_transformer_blocks.1.proj_out",
    ),
    "sd3": (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff_context.net.0.proj",
        "transformer_blocks.1.ff.net.2",
        "transformer_blocks.1.norm1_context.linear",
    ),
    "qwen_image": (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.attn.add_v_proj",
        "transformer_blocks.0.attn.to_add_out",
        "transformer_blocks.0.img_mlp.net.2",
        "transformer_blocks.1.txt_mlp.net.0.proj",
    ),
    "wan": (
        "blocks.0.attn1.to_q",
        "blocks.0.attn2.to_k",
        "blocks.1.attn1.to_out.0",
        "blocks.1.ffn.net.0.proj",
        "blocks.0.ffn.net.2",
    ),
    "z_image": (
        "layers.0.attention.to_q",
        "layers.1.attention.to_out.0",
        "noise_refiner.0.attention.to_v",
        "context_refiner.1.feed_forward.w2",
        "layers.1.feed_forward.w1",
    ),
}
"""Layers by the names that diffusers has for them."""

LIMIT_BYTES: Final = 10 << 30


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_inputs(family: str, transformer: Any) -> dict[str, Any]:
    """Returns what ``FAMILIES`` asks with, at the widths of the published text encoders."""
    config, inputs = transformer.config, dict(FAMILIES[family].inputs)
    wide = {
        "encoder_hidden_states": draw(1, 6, config.get("joint_attention_dim") or config.get("text_dim") or 1)
    }
    if family in ("flux", "sd3"):
        wide["pooled_projections"] = draw(1, config.pooled_projection_dim)
    if family == "z_image":
        return {**inputs, "cap_feats": [draw(32, config.cap_feat_dim)]}
    return {**inputs, **wide}


@torch.no_grad()
def answer(pipeline: Any, inputs: Mapping[str, Any]) -> Tensor:
    found = pipeline.transformer(**inputs, return_dict=False)[0]
    return torch.stack(found) if isinstance(found, list) else found


def write_in_diffusers_names(path: Path, transformer: nn.Module, names: tuple[str, ...]) -> Path:
    """Returns a file as diffusers' own ``save_lora_weights`` writes it."""
    tensors = {}
    for number, name in enumerate(names):
        layer: Any = transformer.get_submodule(name)
        generator = np.random.default_rng(number)
        outputs, inputs = layer.weight.shape
        down = generator.standard_normal((4, inputs)) / inputs**0.5
        up = 0.5 * generator.standard_normal((outputs, 4))
        for leaf, value in (("lora_A", down), ("lora_B", up)):
            tensors[f"transformer.{name}.{leaf}.weight"] = RawTensor.from_numpy(value.astype(np.float32))
    write_tensors(path, tensors)
    return path


def ask_diffusers(pipeline: Any, path: Path, inputs: Mapping[str, Any]) -> Tensor:
    """Returns what diffusers answers with a file that it loads itself."""
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    found = answer(pipeline, inputs)
    pipeline.unload_lora_weights()
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", PUBLISHED)
def test_two_blocks_of_the_published_size_compute_as_in_diffusers(family: str, tmp_path: Path) -> None:
    pipeline = make_published_pipeline(family)
    inputs = make_inputs(family, pipeline.transformer)
    plain = answer(pipeline, inputs)
    file = write_in_diffusers_names(tmp_path / "theirs.safetensors", pipeline.transformer, PUBLISHED[family])
    concept = import_adapter(file, family, pipeline=pipeline)
    expected = ask_diffusers(pipeline, file, inputs)
    assert torch.equal(answer(pipeline, inputs), plain)
    assert differ(expected, plain) > 1e-3
    for put in (attach, fuse):
        with put(Composition(concept), pipeline) as report:
            assert report.concepts[0].unmatched == ()
            assert differ(answer(pipeline, inputs), expected) <= LIMIT, put.__name__
        assert torch.equal(answer(pipeline, inputs), plain)
    export(Composition(concept), pipeline, tmp_path / "ours.safetensors")
    assert differ(ask_diffusers(pipeline, tmp_path / "ours.safetensors", inputs), expected) <= LIMIT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < LIMIT_BYTES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_diffusers_and_we_cut_the_joined_layers_of_published_flux_alike(tmp_path: Path) -> None:
    """A file of sd-scripts, which diffusers cuts itself, at the widths of the published model alone."""
    pipeline = make_published_pipeline("flux")
    inputs = make_inputs("flux", pipeline.transformer)
    tensors = {}
    for number, (path, shape) in enumerate(
        {
            "double_blocks.0.img_attn.qkv": (9216, 3072),
            "double_blocks.1.txt_attn.qkv": (9216, 3072),
            "double_blocks.0.txt_mlp.2": (3072, 12288),
            "double_blocks.1.img_mod.lin": (18432, 3072),
            "single_blocks.0.linear1": (21504, 3072),
            "single_blocks.1.linear2": (3072, 15360),
        }.items()
    ):
        generator, stem = np.random.default_rng(number), f"lora_unet_{path.replace('.', '_')}"
        down, up = (
            generator.standard_normal((4, shape[1])) / 55,
            0.5 * generator.standard_normal((shape[0], 4)),
        )
        tensors[f"{stem}.lora_down.weight"] = RawTensor.from_numpy(down.astype(np.float32))
        tensors[f"{stem}.lora_up.weight"] = RawTensor.from_numpy(up.astype(np.float32))
        tensors[f"{stem}.alpha"] = RawTensor.from_numpy(np.array(2.0, np.float32))
    write_tensors(tmp_path / "kohya.safetensors", tensors)
    concept = import_adapter(tmp_path / "kohya.safetensors", "flux", pipeline=pipeline)
    expected = ask_diffusers(pipeline, tmp_path / "kohya.safetensors", inputs)
    with attach(Composition(concept), pipeline):
        assert differ(answer(pipeline, inputs), expected) <= LIMIT
