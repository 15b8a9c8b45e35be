"""Every algorithm of the LoRA family in a pipeline: the numbers of its dense weight, and no trace when it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conceptry.composer import Composition, attach
from conceptry.composer.deltas import DeltaPatch, is_factored, load_factors
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.full import FullPatch
from conceptry.composer.lora import LoraPatch
from conceptry.concepts import open_concept
from conceptry.errors import IncompatibleError
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.import_plans import ImportSettings
from conceptry.formats.importing import import_file
from conceptry.formats.lora_modules import LoraModule
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.manifest import Base
from conceptry.names import ConceptName, Placeholder, parse_version
from tests.fakes.concepts import describe_base, make_lora
from tests.fakes.modules import FORMS, fits_layer, iter_modules, make_module

LAYERS: Final[dict[str, Callable[[], nn.Module]]] = {
    "linear": lambda: nn.Linear(16, 24),
    "square": lambda: nn.Linear(16, 16, bias=False),
    "1x1": lambda: nn.Conv2d(16, 16, 1),
    "3x3": lambda: nn.Conv2d(8, 16, 3, padding=1, stride=2),
    "norm": lambda: nn.GroupNorm(4, 16),
}
TOLERANCE: Final = 1e-5


class Host(nn.Module):
    layer: Any

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def make_host(name: str) -> Host:
    torch.manual_seed(3)
    host = Host(LAYERS[name]())
    for value in host.parameters():
        nn.init.normal_(value, std=0.1)
    host.requires_grad_(False)
    return host


def make_input(layer: Any) -> Tensor:
    torch.manual_seed(5)
    if isinstance(layer, nn.Linear):
        return torch.randn(3, layer.in_features)
    return torch.randn(2, getattr(layer, "in_channels", 16), 6, 6)


def make_patch(host: Host, module: LoraModule, strength: float = 1.0) -> Any:
    if is_factored(module, host.layer):
        return LoraPatch(host, {"layer": load_factors(module, host.layer)}, strength=strength)
    return DeltaPatch(host, {"layer": module}, strength=strength)


def compute(layer: Any, x: Tensor, modules: list[tuple[LoraModule, float]]) -> Tensor:
    """Return what the layer gives with the dense weights of all modules, in float64."""
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach()
    total = weight.clone()
    shift = torch.zeros(weight.shape[0]).double() if bias is None else bias.double().clone()
    for module, strength in modules:
        delta = dense_delta(module, tuple(weight.shape), weight.numpy())
        total += 0 if delta is None else strength * torch.from_numpy(np.ascontiguousarray(delta))
        moved = dense_bias_delta(module, None if bias is None else bias.double().numpy())
        shift += 0 if moved is None else strength * torch.from_numpy(moved)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x.double(), total, shift)
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(x.double(), total, shift, layer.stride, layer.padding)
    return nn.functional.group_norm(x.double(), layer.num_groups, total, shift)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach().double() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", LAYERS)
def test_every_form_gives_the_numbers_of_its_dense_weight_at_any_strength(name: str) -> None:
    host = make_host(name)
    x = make_input(host.layer)
    plain, stored = host.layer(x), [value.clone() for value in host.parameters()]
    found = list(iter_modules(tuple(host.layer.weight.shape)))
    assert len(found) >= 4
    for form, module in found:
        if host.layer.bias is None and not isinstance(host.layer, nn.Linear):
            continue
        for strength in (1.0, 0.6, -1.5):
            expected = compute(host.layer, x, [(module, strength)])
            with make_patch(host, module, strength):
                assert difference(host.layer(x), expected) <= TOLERANCE, (form, strength)
            assert torch.equal(host.layer(x), plain), form
        with make_patch(host, module, 0.0):
            assert torch.equal(host.layer(x), plain), form
    assert all(torch.equal(now, then) for now, then in zip(host.parameters(), stored, strict=True))


@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_two_on_one_layer_add_up_and_leave_in_any_order(name: str) -> None:
    host = make_host(name)
    x = make_input(host.layer)
    plain = host.layer(x)
    modules = [module for _, module in iter_modules(tuple(host.layer.weight.shape))]
    for first, second in zip(modules, modules[1:] + modules[:1], strict=True):
        one, other = make_patch(host, first), make_patch(host, second, 0.5)
        alone = compute(host.layer, x, [(second, 0.5)])
        both = compute(host.layer, x, [(first, 1.0), (second, 0.5)])
        one.attach()
        other.attach()
        assert difference(host.layer(x), both) <= TOLERANCE
        one.detach()
        assert difference(host.layer(x), alone) <= TOLERANCE
        other.detach()
        assert torch.equal(host.layer(x), plain)


def test_what_is_made_of_the_weight_is_made_of_the_bases_own_whatever_else_is_in_place() -> None:
    host = make_host("linear")
    x = make_input(host.layer)
    module = next(one for form, one in iter_modules((24, 16)) if form.startswith("oft "))
    replaced = torch.randn(24, 16)
    expected = compute(host.layer, x, [(module, 1.0)]) + nn.functional.linear(x, replaced - host.layer.weight)
    for order in (1, -1):
        patches = [FullPatch(host, {"layer.weight": replaced}), DeltaPatch(host, {"layer": module})][::order]
        with patches[0], patches[1]:
            assert difference(host.layer(x), expected) <= TOLERANCE


def test_half_precision_layers_keep_their_precision_and_their_bits() -> None:
    for name in ("linear", "3x3"):
        host = make_host(name).to(torch.bfloat16)
        x = make_input(host.layer).to(torch.bfloat16)
        plain = host.layer(x)
        for _, module in iter_modules(tuple(host.layer.weight.shape)):
            expected = compute(host.layer, x, [(module, 1.0)])
            with make_patch(host, module):
                assert host.layer(x).dtype is torch.bfloat16
                assert difference(host.layer(x), expected) <= 0.02
            assert torch.equal(host.layer(x), plain)


def pick_layers(unet: Any) -> dict[str, Any]:
    """Return a linear layer, a convolution and a norm of a UNet by path."""
    cross = next(path for path, _ in unet.named_modules() if path.endswith("attn2"))
    paths = [f"{cross}.to_k", f"{cross}.to_q", "mid_block.resnets.0.conv1", "mid_block.resnets.0.norm1"]
    return {path: unet.get_submodule(path) for path in paths}


# Numbers of every form are compared above; one form of each is enough for the way into a pipeline.
ONE_EACH: Final = tuple({row.id: (name, row, form) for name, row, form in FORMS}.values())


def test_every_algorithm_is_attached_from_its_package_and_leaves_every_bit(sd1: Any, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in sd1.unet.state_dict().items()}
    plain = run_unet(sd1)
    for number, (name, row, form) in enumerate(ONE_EACH):
        modules = {
            f"unet.{path}": make_module(row, form, shape, seed=number)
            for path, layer in pick_layers(sd1.unet).items()
            if fits_layer(row, form, shape := tuple(layer.weight.shape))
            and (row.id != "full" or layer.bias is not None)
        }
        concept = make_lora(tmp_path / str(number), sd1, modules=modules)
        with attach(Composition(concept * 1.0), sd1) as report:
            assert report.concepts[0].tensors == sum(len(module.parts) for module in modules.values())
            assert not torch.equal(run_unet(sd1), plain), name
        assert torch.equal(run_unet(sd1), plain), name
        assert all(torch.equal(value, state[key]) for key, value in sd1.unet.state_dict().items()), name


def run_unet(pipeline: Any) -> Tensor:
    unet = pipeline.unet
    torch.manual_seed(7)
    size = unet.config.sample_size
    noise = torch.randn(1, unet.config.in_channels, size, size)
    with torch.no_grad():
        output: Tensor = unet(noise, 10, torch.randn(1, 5, unet.config.cross_attention_dim)).sample
    return output


def test_an_algorithm_for_another_shape_is_refused_by_name_before_anything_changes(
    sd1: Any, tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in sd1.unet.state_dict().items()}
    layers = pick_layers(sd1.unet)
    for number, (name, row, form) in enumerate(ONE_EACH):
        shape = next(shape for shape in ((60, 60), (60, 60, 3, 3), (60,)) if fits_layer(row, form, shape))
        path = next(path for path, layer in layers.items() if layer.weight.ndim == len(shape))
        wrong = {f"unet.{path}": make_module(row, form, shape)}
        concept = make_lora(tmp_path / str(number), sd1, modules=wrong)
        with pytest.raises(IncompatibleError, match=path.replace(".", r"\.")):
            attach(Composition(concept * 1.0), sd1)
        assert all(torch.equal(value, state[key]) for key, value in sd1.unet.state_dict().items()), name
        assert not any(module._forward_hooks for module in sd1.unet.modules()), name


def test_a_quantised_weight_is_refused_by_name() -> None:
    host = make_host("linear")
    host.layer.weight = nn.Parameter(host.layer.weight.to(torch.uint8), requires_grad=False)
    module = next(one for form, one in iter_modules((24, 16)) if form.startswith("loha"))
    with pytest.raises(IncompatibleError, match="uint8"):
        DeltaPatch(host, {"layer": module}).attach()


KOHYA: Final = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "bias": "lora_B.bias",
    "magnitude_out": "dora_scale",
    "magnitude_in": "dora_scale",
    "alpha": "alpha",
}


@pytest.mark.parametrize("algorithm", ["lora", "dora", "loha", "lokr", "dokr"])
def test_a_file_of_kohya_is_imported_and_attached_with_the_same_numbers(
    algorithm: str, sd1: Any, tmp_path: Path
) -> None:
    row, form = next((row, form) for _, row, form in FORMS if row.id == algorithm)
    path, layer = next(iter(pick_layers(sd1.unet).items()))
    module = make_module(row, form, tuple(layer.weight.shape), seed=4)
    stem = f"lora_unet_{path.replace('.', '_')}"
    numbers = {
        name: RawTensor.from_numpy(np.array(value, np.float32)) for name, value in module.numbers.items()
    }
    tensors = {f"{stem}.{KOHYA.get(part, part)}": value for part, value in module.parts.items()}
    tensors |= {f"{stem}.alpha": numbers["alpha"]} if "alpha" in numbers else {}
    write_tensors(tmp_path / "file.safetensors", tensors)
    settings = ImportSettings(
        name=ConceptName.parse("test/imported"),
        version=parse_version("1.0.0"),
        placeholder=Placeholder("zork"),
        base=Base.model_validate(describe_base(identify_pipeline(sd1))),
    )
    manifest = import_file(tmp_path / "file.safetensors", tmp_path / "package", settings)
    method: Any = manifest.builds[0].parts[0].method
    assert (method.kind, method.variant) == ("lora", algorithm)
    x = torch.randn(2, layer.in_features)
    scale = module.scale if "alpha" in numbers else 1.0
    meant = replace(module, numbers={"scale": scale}) if "scale" in module.numbers else module
    expected = compute(layer, x, [(meant, 0.8)])
    plain = layer(x)
    with attach(Composition(open_concept(tmp_path / "package") * 0.8), sd1):
        assert difference(layer(x), expected) <= TOLERANCE
    assert torch.equal(layer(x), plain)
