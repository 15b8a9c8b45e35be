"""LiDB files: the factors that their program computes with, under the names that other adapters have."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conceptry.bases import ComponentName
from conceptry.concepts import open_concept
from conceptry.errors import InvalidFileError
from conceptry.formats.export_files import write_export
from conceptry.formats.exporting import ExportSettings, plan_export
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.importing import import_file
from conceptry.formats.lora import LoraModule, read_lora
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from conceptry.manifest import LoraMethod
from conceptry.names import ConceptName, parse_version
from conceptry.trainer.adapters import Lightweight, Place
from tests.formats.networks import list_layers

SETTINGS = ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), license="CC0-1.0")
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
DOWN_DIM, UP_DIM = 16, 8


def draw_layer(outputs: int, inputs: int, *, rank: int = 1) -> dict[str, torch.Tensor]:
    """Return what the program keeps of one layer: frozen factors, the seed that drew them, the numbers."""
    return {
        "aux_seed": torch.tensor([4294967290]),
        "down_aux": torch.randn(DOWN_DIM, inputs) / inputs**0.5,
        "up_aux": torch.randn(outputs, UP_DIM) / UP_DIM**0.5,
        "weight_embedding": torch.randn((DOWN_DIM + UP_DIM) * rank),
    }


def compute(x: torch.Tensor, layer: dict[str, torch.Tensor], rank: int = 1) -> torch.Tensor:
    """Return what the layer adds for ``x``, as the program's forward pass does it."""
    numbers = layer["weight_embedding"]
    down_weight, up_weight = numbers[: DOWN_DIM * rank], numbers[DOWN_DIM * rank :]
    down = down_weight.reshape(rank, -1) @ layer["down_aux"]
    up = layer["up_aux"] @ up_weight.reshape(-1, rank)
    return nn.functional.linear(nn.functional.linear(x, down), up)


def assert_computes(module: LoraModule, layer: dict[str, torch.Tensor], rank: int = 1) -> None:
    x = torch.randn(5, layer["down_aux"].shape[1])
    down, up = (torch.from_numpy(module.parts[part].to_numpy().copy()) for part in ("down", "up"))
    expected = compute(x, layer, rank)
    found = module.scale * nn.functional.linear(nn.functional.linear(x, down), up)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def write_named(path: Path, layers: dict[str, dict[str, torch.Tensor]]) -> Path:
    tensors = {
        f"{name}.{'lora' if name.startswith('unet') else 'lora_linear_layer'}.{part}": RawTensor.from_numpy(
            value.numpy()
        )
        for name, layer in layers.items()
        for part, value in layer.items()
    }
    write_tensors(path, tensors)
    return path


@pytest.mark.parametrize("rank", [1, 3])
def test_names_beside_layers_become_the_factors_of_the_program(rank: int, tmp_path: Path) -> None:
    torch.manual_seed(rank)
    layers = {
        f"unet.{BLOCK}.attn2.to_k": draw_layer(320, 768, rank=rank),
        f"unet.{BLOCK}.attn1.to_out.0": draw_layer(320, 320, rank=rank),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": draw_layer(768, 768, rank=rank),
    }
    path = write_named(tmp_path / "imp.safetensors", layers)
    found = identify(path)
    assert (found.kind, found.dialect, found.family, found.stored) == ("lora", "lidb", "sd1", True)
    assert found.coverage.complete
    assert found.ranks == {rank: 3}
    manifest = import_file(path, tmp_path / "package", SETTINGS)
    method = manifest.builds[0].parts[0].method
    assert isinstance(method, LoraMethod)
    assert (method.variant, method.rank, method.modules, method.scale) == ("lora", rank, 3, 1.0)
    modules = read_lora(tmp_path / "package" / "lora.safetensors").modules
    assert modules.keys() == layers.keys()
    for name, layer in layers.items():
        assert_computes(modules[name], layer, rank)


def test_what_comes_of_a_file_is_what_the_trainer_stores(tmp_path: Path) -> None:
    """The same numbers, once through a file of the other program and once through our own training."""
    torch.manual_seed(0)
    name = f"{BLOCK}.attn2.to_k"
    place = Place(
        component=ComponentName("unet"),
        path=name,
        layer=nn.Linear(768, 320),
        rank=2,
        alpha=2.0,
        frozen_outputs=UP_DIM,
        frozen_inputs=DOWN_DIM,
        generator=torch.Generator().manual_seed(1),
    )
    adapter = Lightweight(place)
    nn.init.normal_(adapter.up)
    numbers = torch.cat([adapter.down.detach().flatten(), adapter.up.detach().flatten()])
    layer = {"down_aux": adapter.basis_down, "up_aux": adapter.basis_up, "weight_embedding": numbers}
    path = write_named(tmp_path / "imp.safetensors", {f"unet.{name}": layer})
    import_file(path, tmp_path / "package", SETTINGS)
    ours, trained = (
        read_lora(tmp_path / "package" / "lora.safetensors").modules[f"unet.{name}"],
        adapter.to_module(),
    )
    assert (ours.algorithm, ours.scale, ours.rank) == (trained.algorithm, trained.scale, trained.rank)
    for part in ("down", "up"):
        expected = trained.parts[part].to_numpy()
        assert abs(ours.parts[part].to_numpy() - expected).max() <= 1e-6 * abs(expected).max()


@pytest.mark.parametrize("target", ["diffusers", "kohya", "comfyui", "peft"])
def test_it_is_exported_as_any_adapter_and_comes_back_bit_for_bit(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = write_named(tmp_path / "imp.safetensors", {f"unet.{BLOCK}.attn2.to_k": draw_layer(320, 768)})
    import_file(path, tmp_path / "package", SETTINGS)
    kept = read_lora(tmp_path / "package" / "lora.safetensors").modules
    plan = plan_export(
        open_concept(tmp_path / "package"),
        ExportSettings(target=target, path=tmp_path / "to", sidecars=False),
    )
    written = [file.path for file in write_export(plan) if file.path.suffix == ".safetensors"]
    again = plan_import(written[0], SETTINGS).reading.contents[0].modules  # type: ignore[union-attr]
    assert {name: module.parts for name, module in again.items()} == {
        name: module.parts for name, module in kept.items()
    }
    assert [module.scale for module in again.values()] == [module.scale for module in kept.values()]


# --- positions -----------------------------------------------------------------------------------------------------


def list_positions(*, mlp: bool) -> list[str]:
    """Return the layers in the order in which the program meets them: down, up, middle; then text."""
    names = [name for name in list_layers("sd1") if ".attn" in name and name.startswith("unet.")]
    stages = ("down_blocks", "up_blocks", "mid_block")
    parts = ("to_q", "to_k", "to_v", "to_out.0")

    def place(name: str) -> tuple[Any, ...]:
        stage = next(number for number, one in enumerate(stages) if f".{one}" in name)
        part = next(number for number, one in enumerate(parts) if name.endswith(one))
        return stage, name.split(".attn", maxsplit=1)[0], ".attn2" in name, part

    stem = "text_encoder.text_model.encoder.layers"
    text = [f"{stem}.{n}.self_attn.{one}_proj" for n in range(12) for one in ("q", "k", "v", "out")]
    text += [f"{stem}.{n}.mlp.fc{one}" for n in range(12) for one in (1, 2)] if mlp else []
    return sorted(names, key=place) + text


def save_numbered(path: Path, layers: dict[str, dict[str, torch.Tensor]], *, concepts: int = 1) -> None:
    """Write what its pre-optimisation writes: factors by position, the numbers of each concept in one tensor."""
    document: dict[str, Any] = {
        f"{part}_{number}": value
        for number, layer in enumerate(layers.values())
        for part, value in layer.items()
        if part != "weight_embedding"
    }
    numbers = torch.stack([layer["weight_embedding"] for layer in layers.values()])[None]
    own = {f"weights.{number}": numbers for number in range(concepts)}
    torch.save({"pre_optimized": own, **document}, path)


@pytest.mark.parametrize("mlp", [False, True])
def test_positions_are_told_by_shapes(mlp: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = list_layers("sd1")
    names = list_positions(mlp=mlp)
    assert len(names) == (176 + 24 * mlp)
    layers = {name: draw_layer(*shapes[name]) for name in names}
    path = tmp_path / "pre_optimized.bin"
    save_numbered(path, layers)
    found = identify(path)
    assert (found.kind, found.dialect, found.family) == ("lora", "lidb", "sd1")
    assert found.coverage.complete
    modules = plan_import(path, SETTINGS).reading.contents[0].modules  # type: ignore[union-attr]
    assert modules.keys() == set(names)
    for name in (names[0], names[5], names[127], names[-1]):
        assert_computes(modules[name], layers[name])


def test_several_concepts_and_positions_of_no_network_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, said = tmp_path / "pre_optimized.bin", replace(SETTINGS, base=declare_base("sd1"))
    layers = {name: draw_layer(*list_layers("sd1")[name]) for name in list_positions(mlp=False)[:128]}
    save_numbered(path, layers, concepts=2)
    with pytest.raises(InvalidFileError, match="holds 2 concepts"):
        plan_import(path, said)
    save_numbered(path, dict(list(layers.items())[1:]))
    assert any("of no network that is known" in reason for reason in identify(path).reasons)
    with pytest.raises(InvalidFileError, match="of no network that is known"):
        plan_import(path, said)


def test_a_network_that_reads_pictures_is_named_and_is_no_concept(tmp_path: Path) -> None:
    path = tmp_path / "hypernetwork.bin"
    layer = draw_layer(320, 320)
    factors = {f"{part}_0": layer[part] for part in ("down_aux", "up_aux", "aux_seed")}
    torch.save({"hypernetwork": {"img.weight": torch.ones(2, 2)}, **factors}, path)
    found = identify(path)
    assert (found.kind, found.stored) == ("lidb", False)
    assert found.coverage.complete
    assert any("follow from a picture" in reason for reason in found.reasons)


@pytest.mark.parametrize("part", ["weight_embedding", "down_aux", "up_aux"])
def test_a_layer_that_lost_a_tensor_or_fits_no_rank_is_refused(part: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = [f"unet.{BLOCK}.attn2.to_{one}" for one in "kv"]
    layers = {name: draw_layer(320, 768) for name in names}
    path = write_named(tmp_path / "imp.safetensors", layers)
    whole = dict(read_tensors(path))
    lost = f"{names[0]}.lora.{part}"
    write_tensors(path, {name: tensor for name, tensor in whole.items() if name != lost})
    with pytest.raises(InvalidFileError, match=f"{part} is missing"):
        plan_import(path, SETTINGS)
    write_tensors(path, {**whole, lost: RawTensor.from_numpy(torch.ones(7, 5).numpy())})
    with pytest.raises(InvalidFileError, match="do not fit frozen factors"):
        plan_import(path, SETTINGS)
