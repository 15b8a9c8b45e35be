"""Control adapters of Flux: kept whole, written in their own names, read by diffusers to the same factors."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers", reason="of the extra torch")

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from safetensors.torch import load_file

from conceptry.bases import FamilyId
from conceptry.concepts import open_concept
from conceptry.errors import IncompatibleError, InvalidFileError
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.export_contract import WriteRequest
from conceptry.formats.export_files import write_export
from conceptry.formats.exporting import ExportSettings, plan_export, write_for
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, plan_import
from conceptry.formats.importing import import_file, write_import
from conceptry.formats.lora import LoraContents, read_lora
from conceptry.formats.lora_reading import read_module
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from conceptry.formats.writers import find_writer
from conceptry.manifest import LoraMethod
from conceptry.names import ConceptName, parse_version
from tests.formats.corpus import control_of_flux

SETTINGS = ImportSettings(name=ConceptName("me", "depth"), version=parse_version("1.0.0"), license="CC0-1.0")


def write_control(path: Path, *, doubles: int = 1, singles: int = 1, rank: int = 2) -> Path:
    """Write a control adapter with random values of half precision."""
    generator = np.random.default_rng(0)
    shapes = control_of_flux(rank, doubles, singles)
    tensors = {
        name: RawTensor.from_numpy(generator.standard_normal(shape).astype(np.float16))
        for name, shape in shapes.items()
    }
    write_tensors(path, tensors)
    return path


@pytest.mark.parametrize("target", ["diffusers", "comfyui"])
def test_a_control_adapter_comes_back_in_its_own_names_bit_for_bit(target: str, tmp_path: Path) -> None:
    path = write_control(tmp_path / "depth.safetensors")
    manifest = import_file(path, tmp_path / "package", SETTINGS)
    concept = open_concept(tmp_path / "package")
    kept = read_lora(tmp_path / "package" / "lora.safetensors")
    method = manifest.builds[0].parts[0].method
    assert isinstance(method, LoraMethod)
    assert method.algorithms == {"lora": 23, "value": 6}
    settings = ExportSettings(target=target, path=tmp_path / "back.safetensors", sidecars=False)
    [written] = write_export(plan_export(concept, settings))
    assert read_tensors(written.path) == read_tensors(path)
    again = plan_import(written.path, SETTINGS).reading.contents
    assert again == (kept,)
    weight = np.zeros((3072, 128), np.float32)
    first, second = (one.modules["transformer.img_in"] for one in (kept, again[0]))
    assert np.array_equal(
        np.asarray(dense_delta(first, weight.shape)), np.asarray(dense_delta(second, weight.shape))
    )
    assert np.array_equal(np.asarray(dense_bias_delta(first)), np.asarray(dense_bias_delta(second)))


def test_what_other_programs_do_to_the_base_is_said(tmp_path: Path) -> None:
    path = write_control(tmp_path / "depth.safetensors")
    found = identify(path)
    assert (found.kind, found.dialect, found.family, found.stored) == ("lora", "bfl_control", "flux", True)
    assert found.coverage.complete
    for said in (found.reasons, plan_import(path, SETTINGS).notes):
        assert any("widens x_embedder by zeros" in sentence for sentence in said)
        assert any("scales of norms take the place" in sentence for sentence in said)
    write_import(plan_import(path, SETTINGS), tmp_path / "package")
    plan = plan_export(
        open_concept(tmp_path / "package"), ExportSettings(target="diffusers", path=tmp_path / "to")
    )
    assert any("FluxControlPipeline" in warning for warning in plan.warnings)
    # One double block of nineteen and one single block of thirty-eight.
    assert any(f"{18 * 14 + 37 * 5} modules are not in it" in warning for warning in plan.warnings)


def test_diffusers_makes_the_same_factors_of_the_whole_exported_file(tmp_path: Path) -> None:
    path = write_control(tmp_path / "depth.safetensors", doubles=19, singles=38)
    contents = plan_import(path, SETTINGS).reading.contents[0]
    assert isinstance(contents, LoraContents)
    request = WriteRequest(contents=contents, family=FamilyId("flux"), stem="x", metadata={})
    written = write_for(find_writer("diffusers"), "lora", request)
    assert [one for one in written.warnings if "not in it" in one] == []
    write_tensors(tmp_path / "back.safetensors", written.files[0].tensors)
    theirs = _convert_bfl_flux_control_lora_to_diffusers(load_file(tmp_path / "back.safetensors"))

    def join(*names: str, part: str = "lora_B.weight") -> Any:
        return torch.cat([theirs[f"transformer.{name}.{part}"] for name in names]).numpy()

    def ours(name: str, part: str) -> Any:
        return contents.modules[f"transformer.{name}"].parts[part].to_numpy()

    block = "transformer_blocks.18.attn"
    split = [f"{block}.to_{one}" for one in "qkv"]
    assert np.array_equal(ours("double_blocks.18.img_attn.qkv", "up"), join(*split))
    assert np.array_equal(ours("double_blocks.18.img_attn.qkv", "bias"), join(*split, part="lora_B.bias"))
    assert np.array_equal(ours("double_blocks.18.img_attn.qkv", "down"), join(split[0], part="lora_A.weight"))
    assert np.array_equal(
        ours("double_blocks.18.txt_attn.norm.key_norm", "value"), join(f"{block}.norm_added_k", part="weight")
    )
    single = "single_transformer_blocks.37"
    parts = [*(f"{single}.attn.to_{one}" for one in "qkv"), f"{single}.proj_mlp"]
    assert np.array_equal(ours("single_blocks.37.linear1", "up"), join(*parts))
    assert np.array_equal(ours("img_in", "down"), join("x_embedder", part="lora_A.weight"))
    # Its outputs trade halves there, shift for scale, and so do the rows of the other factor: another delta.
    last = "final_layer.adaLN_modulation.1"
    up, down = ours(last, "up").astype(np.float64), ours(last, "down").astype(np.float64)
    meant = np.roll(up, 3072, axis=0) @ down
    read = join("norm_out.linear").astype(np.float64) @ join("norm_out.linear", part="lora_A.weight")
    assert np.abs(read - meant).max() > 0.1
    assert np.array_equal(join("norm_out.linear"), np.roll(ours(last, "up"), 3072, axis=0))
    assert any(last in warning for warning in written.warnings)


def test_diffusers_widens_the_input_by_zeros_and_replaces_the_norms() -> None:
    """What the notes say of its loader, on a network of the same layers."""
    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=0,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    before = network.x_embedder.weight.detach().clone()
    factors = {
        "transformer.x_embedder.lora_A.weight": torch.ones(1, 8),
        "transformer.x_embedder.lora_B.weight": torch.ones(16, 1),
    }
    assert FluxLoraLoaderMixin._maybe_expand_transformer_param_shape_or_error_(network, factors)
    assert torch.equal(network.x_embedder.weight[:, :4], before)
    assert not network.x_embedder.weight[:, 4:].any()
    name = "transformer_blocks.0.attn.norm_q.weight"
    kept = FluxLoraLoaderMixin._load_norm_into_transformer(
        {f"transformer.{name}": torch.full((8,), 3.0)}, network
    )
    assert torch.equal(network.state_dict()[name], torch.full((8,), 3.0))
    assert torch.equal(kept[name], torch.ones(8))


def test_a_program_without_a_place_for_new_values_is_refused_with_one_that_has(tmp_path: Path) -> None:
    write_import(plan_import(write_control(tmp_path / "depth.safetensors"), SETTINGS), tmp_path / "package")
    settings = ExportSettings(target="kohya", path=tmp_path / "to")
    with pytest.raises(IncompatibleError, match="new value in place of the base's") as caught:
        plan_export(open_concept(tmp_path / "package"), settings)
    assert caught.value.hint == "--for diffusers holds all of it"


def test_a_control_adapter_that_lost_a_half_is_refused_by_name(tmp_path: Path) -> None:
    path = write_control(tmp_path / "depth.safetensors")
    tensors = dict(read_tensors(path))
    del tensors["img_in.lora_B.weight"]
    write_tensors(path, tensors)
    with pytest.raises(InvalidFileError):
        plan_import(path, SETTINGS)


def test_a_new_value_is_what_the_weight_becomes() -> None:
    generator = np.random.default_rng(1)
    value, weight = generator.standard_normal((2, 128))
    module = read_module("transformer.a", {"value": RawTensor.from_numpy(value)})
    delta = dense_delta(module, (128,), weight)
    assert delta is not None
    np.testing.assert_allclose(weight + delta, value, rtol=0, atol=1e-12)
