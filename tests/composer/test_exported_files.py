"""Files that were exported do in diffusers and PEFT what the concept does here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.composer import Composition, attach
from conceptry.composer.tensors import from_torch, to_torch
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.export_files import write_export
from conceptry.formats.exporting import ExportSettings, plan_export
from conceptry.formats.lora import LoraModule, read_lora
from tests.fakes.concepts import list_paths, make_embedding, make_full, make_lora, make_rank_one
from tests.fakes.edits import make_generator
from tests.fakes.forwards import make_calm_pipeline
from tests.fakes.pipelines import Shape
from tests.fakes.real import make_sd15

LIMIT = 1e-5
PROMPT = "a photo of a cat on the beach"
_MADE: dict[Shape, Any] = {}


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def shape(request: pytest.FixtureRequest) -> Shape:
    """Each shape in turn."""
    shape: Shape = request.param
    return shape


@pytest.fixture
def ours(shape: Shape) -> Any:
    """Give a pipeline that our own attach changes and restores."""
    if shape not in _MADE:
        _MADE[shape] = make_calm_pipeline(shape)
    return _MADE[shape]


@pytest.fixture
def theirs(shape: Shape) -> Iterator[Any]:
    """Give a pipeline with the same weights for the loaders of other libraries, which leave traces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield make_calm_pipeline(shape)


def export(concept: Concept, path: Path, target: str = "diffusers", **settings: Any) -> Path:
    """Return ``path`` with the files of ``concept`` for ``target``."""
    write_export(plan_export(concept, ExportSettings(target=target, path=path, **settings)))
    return path


@torch.no_grad()
def run(pipeline: Any, prompt: str = PROMPT) -> dict[str, torch.Tensor]:
    """Return the outputs of one forward of each component."""
    generator = make_generator(5)
    unet = pipeline.unet
    size = unet.config.cross_attention_dim
    context = torch.randn(2, 7, size, generator=generator)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    extra = {}
    if unet.config.addition_embed_type:
        pooled = pipeline.text_encoder_2.config.projection_dim
        extra["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.ones(2, 6),
        }
    outputs = {"unet": unet(sample, torch.tensor([3, 700]), context, **extra).sample}
    encoded = pipeline.encode_prompt(
        prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    outputs |= {f"text {number}": part for number, part in enumerate(encoded) if part is not None}
    return outputs


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in ours.items():
        error = (theirs[name] - expected).abs().max() / expected.abs().max()
        assert error <= LIMIT, f"{name}: {error:.2e}"


def make_mixed_lora(folder: Path, pipeline: Any) -> Concept:
    """Return an adapter whose modules differ in rank and scale, in every component."""
    generator = make_generator(8)
    modules = {}
    for place, path in enumerate([*list_paths(pipeline), "conv_in", "time_embedding.linear_1"]):
        weight = pipeline.unet.get_submodule(path).weight
        modules[f"unet.{path}"] = make_module(weight.shape, 2 + place, generator)
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipeline, name, None)
        if encoder is None:
            continue
        for layer, part in enumerate(("self_attn.q_proj", "mlp.fc1")):
            ending = f"encoder.layers.{layer}.{part}"
            weight = next(
                value for key, value in encoder.named_parameters() if key.endswith(f"{ending}.weight")
            )
            modules[f"{name}.text_model.{ending}"] = make_module(weight.shape, 3 + layer, generator)
    return make_lora(folder, pipeline, modules=modules)


def make_module(shape: torch.Size, rank: int, generator: torch.Generator) -> LoraModule:
    down = torch.randn(rank, *shape[1:], generator=generator) / 4
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator) / 4
    return LoraModule.of_factors(down=from_torch(down), up=from_torch(up), alpha=1.0 + 0.3 * rank)


def test_diffusers_computes_the_adapter_as_attach_does(ours: Any, theirs: Any, tmp_path: Path) -> None:
    concept = make_mixed_lora(tmp_path / "lora", ours)
    before = run(ours)
    with attach(Composition(concept), ours):
        expected = run(ours)
    assert not any(torch.allclose(before[name], expected[name], rtol=1e-2) for name in expected)
    theirs.load_lora_weights(str(export(concept, tmp_path / "out")))
    assert_equal(expected, run(theirs))


def test_diffusers_reads_the_rows_of_a_word_as_attach_does(ours: Any, theirs: Any, tmp_path: Path) -> None:
    concept = make_embedding(tmp_path / "embedding", ours, "<e>", vectors=3)
    prompt = "a photo of <e> on the beach"
    with attach(Composition(concept), ours):
        expected = run(ours, prompt)
    load_rows(theirs, export(concept, tmp_path / "out"))
    if hasattr(theirs, "text_encoder_2"):
        theirs.text_encoder_2.text_model.eos_token_id = theirs.tokenizer_2.eos_token_id
    assert_equal(expected, run(theirs, prompt))


@pytest.mark.parametrize("shape", ["sdxl"])
def test_diffusers_pools_sdxl_prompts_at_the_new_word_and_export_warns(
    ours: Any, theirs: Any, tmp_path: Path
) -> None:
    concept = make_embedding(tmp_path / "embedding", ours, "<e>", vectors=3)
    prompt = "a photo of <e> on the beach"
    with attach(Composition(concept), ours):
        expected = run(ours, prompt)
    plan = plan_export(concept, ExportSettings(target="diffusers", path=tmp_path / "out"))
    assert any("pooled" in warning for warning in plan.warnings)
    write_export(plan)
    load_rows(theirs, tmp_path / "out")
    found = run(theirs, prompt)
    pooled = expected.pop("text 2"), found.pop("text 2")
    assert (pooled[0] - pooled[1]).abs().max() > 0.1
    assert_equal(expected, found)


def load_rows(pipeline: Any, folder: Path) -> None:
    """Load the files of a word as the documentation of diffusers says."""
    pipeline.load_textual_inversion(str(folder / "learned_embeds.safetensors"))
    if hasattr(pipeline, "text_encoder_2"):
        pipeline.load_textual_inversion(
            str(folder / "learned_embeds_2.safetensors"),
            text_encoder=pipeline.text_encoder_2,
            tokenizer=pipeline.tokenizer_2,
        )


@pytest.mark.parametrize("shape", ["sd1", "sd2"])
def test_lycoris_reads_the_kohya_file_whole_and_to_the_same_deltas(
    ours: Any, theirs: Any, tmp_path: Path
) -> None:
    concept = make_mixed_lora(tmp_path / "lora", ours)
    path = export(concept, tmp_path / "imp.safetensors", "kohya")
    network, tensors = read_with_lycoris(path, theirs)
    network.apply_to(None, None, True, True)
    (file,) = concept.manifest.iter_files()
    deltas = {
        name.partition(".")[2].replace(".", "_"): compute_delta(module)
        for name, module in read_lora(concept.locate(file)).modules.items()
    }
    read = network.unet_loras + network.text_encoder_loras
    assert len(read) == len(deltas) == len(tensors) / 3
    for one in read:
        expected = next(delta for name, delta in deltas.items() if one.lora_name.endswith(name))
        found = one.get_diff_weight(1.0)[0].detach().double().reshape(expected.shape)
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def compute_delta(module: LoraModule) -> torch.Tensor:
    """Return the delta in float64 as [out, everything else]."""
    up, down = (to_torch(factor, dtype=torch.float64).flatten(1) for factor in (module.up, module.down))
    return module.scale * (up @ down)


def read_with_lycoris(path: Path, pipeline: Any) -> Any:
    """Return LyCORIS' network of the file, and the tensors it read."""
    from lycoris.kohya import LycorisNetworkKohya, create_network_from_weights

    # What it would train by itself, before it reads the file; its own default names modules twice.
    LycorisNetworkKohya.apply_preset({"unet_target_module": ["Transformer2DModel"], "unet_target_name": []})
    # LyCORIS looks modules up by the names of transformers 4, whose CLIP had one level more.
    encoder = torch.nn.Module()
    encoder.text_model = pipeline.text_encoder
    network, tensors = create_network_from_weights(1.0, str(path), None, encoder, pipeline.unet)
    return network, tensors


@pytest.mark.parametrize("shape", ["sd1"])
def test_peft_reads_its_folders_as_attach_does(ours: Any, theirs: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    concept = make_mixed_lora(tmp_path / "lora", ours)
    with attach(Composition(concept), ours):
        expected = run(ours)
    folder = export(concept, tmp_path / "out", "peft")
    theirs.unet = PeftModel.from_pretrained(theirs.unet, str(folder / "unet"))
    theirs.text_encoder = PeftModel.from_pretrained(theirs.text_encoder, str(folder / "text_encoder"))
    assert_equal(expected, run(theirs))


def make_dora(folder: Path, pipeline: Any) -> Concept:
    """Return an adapter with a magnitude for each output of two layers, one a convolution."""
    generator = make_generator(9)
    modules = {}
    for path in (list_paths(pipeline)[1], "mid_block.resnets.0.conv1"):
        weight = pipeline.unet.get_submodule(path).weight
        plain = make_module(weight.shape, 3, generator)
        size = (weight.shape[0], *(1 for _ in weight.shape[1:]))
        magnitude = from_torch(0.5 + torch.rand(size, generator=generator))
        parts = {**plain.parts, "magnitude_out": magnitude}
        modules[f"unet.{path}"] = LoraModule(algorithm="dora", parts=parts, numbers=plain.numbers)
    return make_lora(folder, pipeline, modules=modules)


@pytest.mark.parametrize("shape", ["sd1"])
def test_diffusers_computes_dora_of_its_own_file_and_drops_the_magnitudes_of_a_kohya_file(
    ours: Any, theirs: Any, tmp_path: Path
) -> None:
    concept = make_dora(tmp_path / "dora", ours)
    (file,) = concept.manifest.iter_files()
    expected = {
        name.removeprefix("unet."): ours.unet.get_submodule(name.removeprefix("unet."))
        .weight.detach()
        .double()
        + torch.from_numpy(compute_dense(module, ours.unet.get_submodule(name.removeprefix("unet.")).weight))
        for name, module in read_lora(concept.locate(file)).modules.items()
    }
    theirs.load_lora_weights(str(export(concept, tmp_path / "out")))
    for path, weight in expected.items():
        assert_layer_has(theirs.unet.get_submodule(path), weight, ours.unet.get_submodule(path).bias)
    theirs.unload_lora_weights()
    plan = plan_export(concept, ExportSettings(target="kohya", path=tmp_path / "k.safetensors"))
    assert "diffusers refuses DoRA in this file, or drops a part of it in silence" in plan.warnings
    write_export(plan)
    theirs.load_lora_weights(str(tmp_path / "k.safetensors"))
    for path, weight in expected.items():
        with pytest.raises(AssertionError, match="differs"):
            assert_layer_has(theirs.unet.get_submodule(path), weight, ours.unet.get_submodule(path).bias)


def compute_dense(module: LoraModule, weight: torch.Tensor) -> Any:
    """Return the dense delta of our own formulas, in float64."""
    return dense_delta(module, tuple(weight.shape), weight.detach().numpy())


@torch.no_grad()
def assert_layer_has(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Check that ``layer`` computes what a layer with ``weight`` does."""
    generator = make_generator(6)
    if weight.ndim == 4:
        x = torch.randn(1, weight.shape[1], 8, 8, generator=generator)
        expected = torch.nn.functional.conv2d(x.double(), weight, padding=1)
        expected = expected if bias is None else expected + bias.double().reshape(1, -1, 1, 1)
    else:
        x = torch.randn(3, weight.shape[1], generator=generator)
        expected = x.double() @ weight.T + (0 if bias is None else bias.double())
    assert (layer(x) - expected).abs().max() <= LIMIT * expected.abs().max(), "it differs"


PEFT_MODULES: dict[str, dict[str, tuple[int, ...]]] = {
    "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
    "ia3_peft": {"ia3_l": (8, 1)},
    "oft_peft": {"oft_R": (2, 6)},
    "boft_peft": {"boft_R": (1, 2, 4, 4), "boft_s": (8, 1)},
}
PEFT_NUMBERS: dict[str, dict[str, float]] = {
    "loha": {"alpha": 1.5},
    "ia3_peft": {"on_input": 0.0},
    "oft_peft": {"neumann_terms": 5.0},
}


@pytest.mark.parametrize("shape", ["sd1"])
@pytest.mark.parametrize("algorithm", PEFT_MODULES)
def test_peft_computes_its_other_methods_as_our_formulas_do(
    ours: Any, theirs: Any, tmp_path: Path, algorithm: Any
) -> None:
    from peft import PeftModel

    generator = make_generator(4)
    path = list_paths(ours)[0]
    layer = ours.unet.get_submodule(path)
    parts = {
        part: from_torch(torch.rand(size, generator=generator) / 4)
        for part, size in PEFT_MODULES[algorithm].items()
    }
    rule: Any = "alpha/rank" if algorithm == "loha" else "none"
    numbers = PEFT_NUMBERS.get(algorithm, {})
    module = LoraModule(algorithm=algorithm, parts=parts, numbers=numbers, rule=rule)
    concept = make_lora(tmp_path / "lora", ours, modules={f"unet.{path}": module})
    model = PeftModel.from_pretrained(theirs.unet, str(export(concept, tmp_path / "out", "peft")))
    weight = layer.weight.detach().double() + torch.from_numpy(compute_dense(module, layer.weight))
    bias = dense_bias_delta(module, None if layer.bias is None else layer.bias.detach().numpy())
    assert bias is None
    assert_layer_has(model.get_submodule(f"base_model.model.{path}"), weight, layer.bias)


@pytest.mark.parametrize("shape", ["sd1"])
@pytest.mark.parametrize(("make", "why"), [(make_rank_one, "gate"), (make_full, "whole tensors of the base")])
def test_kinds_that_no_program_reads_are_refused_with_the_reason(
    ours: Any, tmp_path: Path, make: Any, why: str
) -> None:
    concept = make(tmp_path / "concept", ours)
    with pytest.raises(IncompatibleError, match=why) as caught:
        plan_export(concept, ExportSettings(target="diffusers", path=tmp_path / "out"))
    assert caught.value.hint == f"share it as it is: concepts push {concept.label} REMOTE"


@pytest.mark.slow
def test_diffusers_computes_an_adapter_of_sd15_in_full_size_as_attach_does(tmp_path: Path) -> None:
    pipeline = make_sd15()
    pipeline.set_progress_bar_config(disable=True)
    concept = make_mixed_lora(tmp_path / "lora", pipeline)
    with attach(Composition(concept), pipeline):
        expected = run(pipeline)
    pipeline.load_lora_weights(str(export(concept, tmp_path / "out")))
    assert_equal(expected, run(pipeline))
