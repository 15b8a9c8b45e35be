"""Every algorithm of the LoRA family: the numbers of independent code, exact round trips, faults named."""

from __future__ import annotations

import pytest

pytest.importorskip("lycoris", reason="of make install")

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import nn

from conceptry.errors import InvalidFileError
from conceptry.formats.adapter_configs import AdapterConfig
from conceptry.formats.data_files import load_table
from conceptry.formats.deltas import dense_bias_delta, dense_delta
from conceptry.formats.header import read_header
from conceptry.formats.lora import LoraContents, LoraModule, read_lora, write_lora
from conceptry.formats.lora_methods import describe_modules
from conceptry.formats.lora_reading import Said, read_module
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from tests.fakes.modules import DTYPES, FORMS, fits_layer, make_module

TOLERANCE: Final = 1e-6

LAYERS: Final[dict[str, Callable[[], nn.Module]]] = {
    "linear": lambda: nn.Linear(24, 48),
    "square": lambda: nn.Linear(32, 32),
    "1x1": lambda: nn.Conv2d(16, 24, 1),
    "3x3": lambda: nn.Conv2d(12, 16, 3, padding=1),
}


def make_layer(name: str) -> Any:
    torch.manual_seed(len(name))
    layer: Any = LAYERS[name]()
    return layer.requires_grad_(False)


def randomise(module: nn.Module, spread: float = 0.3) -> None:
    """Give every trained tensor of an adapter random values; a magnitude stays near that of its weight."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn_like(value) * spread
            value.copy_(value + noise if "dora_scale" in name or "rescale" in name else noise)


def to_raw(value: torch.Tensor) -> RawTensor:
    return RawTensor.from_numpy(value.detach().contiguous().numpy())


def part_of(name: str) -> str:
    """Return the part that a suffix means, by the table that importing uses."""
    if name == "weight":
        return "ia3_weight"
    parts = {suffix: part for suffix, _, part in load_table("suffixes")["suffixes"]}
    return str(parts[f".{name}"])


def read_state(state: Mapping[str, torch.Tensor], said: Said | None = None) -> LoraModule:
    tensors = {part_of(name): to_raw(value) for name, value in state.items()}
    return read_module("unet.conv_in", tensors, said or Said())


def difference(ours: Any, theirs: torch.Tensor) -> float:
    reference = theirs.detach().numpy()
    assert ours.shape == reference.shape
    assert np.abs(reference).max() > 1e-3
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


# --- LyCORIS -------------------------------------------------------------------------------------------------------

Make = Callable[[Any, int, float], Any]


def with_options(kind: Any, **options: Any) -> Make:
    return lambda layer, rank, alpha: kind("adapter", layer, 1.0, rank, alpha, **options)


def merged(module: Any, layer: Any) -> Any:
    """Return what LyCORIS adds when it runs: its ``get_diff_weight`` counts the scale of LoHa and LoKr twice."""
    if isinstance(module, LoConModule):
        delta = module.make_weight() * module.scale
    elif isinstance(module, (LohaModule, LokrModule)):
        delta = module.get_weight(module.shape)
    elif isinstance(module, GLoRAModule):
        return module.make_weight()
    elif isinstance(module, (IA3Module, DiagOFTModule, ButterflyOFTModule)):
        return module.make_weight(diff=True)
    else:
        return module.get_diff_weight()[0]
    if module.wd:
        return module.apply_weight_decompose(layer.weight + delta) - layer.weight
    return delta


LYCORIS: Final[dict[str, tuple[str, Make]]] = {
    "LoRA": ("lora", with_options(LoConModule)),
    "LoRA, rank-stabilised": ("lora", with_options(LoConModule, rs_lora=True)),
    "LoCon, core": ("lora", with_options(LoConModule, use_tucker=True)),
    "DoRA by outputs": ("dora", with_options(LoConModule, weight_decompose=True, wd_on_out=True)),
    "DoRA by inputs": ("dora", with_options(LoConModule, weight_decompose=True, wd_on_out=False)),
    "DoRA, core": ("dora", with_options(LoConModule, weight_decompose=True, use_tucker=True)),
    "LoHa": ("loha", with_options(LohaModule)),
    "LoHa, core": ("loha", with_options(LohaModule, use_tucker=True)),
    "LoHa by outputs": ("doha", with_options(LohaModule, weight_decompose=True, wd_on_out=True)),
    "LoHa by inputs": ("doha", with_options(LohaModule, weight_decompose=True, wd_on_out=False)),
    "LoKr": ("lokr", with_options(LokrModule, factor=4)),
    "LoKr, both factored": ("lokr", with_options(LokrModule, factor=8, decompose_both=True)),
    "LoKr, core": ("lokr", with_options(LokrModule, factor=4, use_tucker=True)),
    "LoKr, whole": ("lokr", with_options(LokrModule, factor=4, full_matrix=True)),
    "LoKr, unbalanced": ("lokr", with_options(LokrModule, factor=2, unbalanced_factorization=True)),
    "LoKr by outputs": ("dokr", with_options(LokrModule, factor=4, weight_decompose=True)),
    "LoKr by inputs": ("dokr", with_options(LokrModule, factor=4, weight_decompose=True, wd_on_out=False)),
    "full": ("full", with_options(FullModule)),
    "IA3 on outputs": ("ia3", with_options(IA3Module)),
    "IA3 on inputs": ("ia3", with_options(IA3Module, train_on_input=True)),
    "GLoRA": ("glora", with_options(GLoRAModule)),
    "OFT": ("oft", with_options(DiagOFTModule)),
    "OFT, constrained": ("oft", with_options(DiagOFTModule, constraint=0.02)),
    "OFT, rescaled": ("oft", with_options(DiagOFTModule, rescaled=True)),
    "BOFT": ("boft", with_options(ButterflyOFTModule)),
    "BOFT, constrained": ("boft", with_options(ButterflyOFTModule, constraint=0.02, rescaled=True)),
}


# Sizes of blocks that divide the outputs of every layer, as LyCORIS factorises them.
BLOCKS: Final = {"oft": {2: 4, 3: 8, 8: 12}, "boft": {2: 8, 3: 12, 8: 24}}


@pytest.mark.parametrize("case", LYCORIS)
def test_the_delta_is_that_of_lycoris(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, make = LYCORIS[case]
    for rank, alpha in ((2, 1.0), (3, 6.0), (8, 4.0)):
        for name in LAYERS:
            base = make_layer(name)
            weight = base.weight.numpy().copy()
            adapter = make(base, rank if algorithm not in BLOCKS else BLOCKS[algorithm][rank], alpha)
            if isinstance(adapter, FullModule):
                adapter.apply_to()  # before, it writes its difference minus the weight
            randomise(adapter)
            module = read_state(adapter.state_dict())
            if algorithm in BLOCKS:
                # A small rotation minus the weight cancels, so that float32 leaves LyCORIS itself with 1.3e-6.
                monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
                adapter, base = adapter.double(), base.double()
            with torch.no_grad():
                theirs = merged(adapter, base)
            monkeypatch.undo()
            assert module.algorithm in (algorithm, "locon" if algorithm == "lora" else algorithm)
            assert difference(dense_delta(module, weight.shape, weight), theirs) <= TOLERANCE, (name, rank)


@pytest.mark.parametrize("norm", [nn.LayerNorm(24), nn.GroupNorm(4, 24)])
def test_norms_are_those_of_lycoris(norm: Any) -> None:
    adapter = NormModule("adapter", norm, 1.0)
    randomise(adapter)
    module = read_state(adapter.state_dict())
    weight, bias = adapter.get_diff_weight()
    assert module.algorithm == "norm"
    assert difference(dense_delta(module, (24,)), weight) == 0
    assert difference(dense_bias_delta(module), bias) == 0


def test_the_bias_of_a_full_difference_is_that_of_lycoris() -> None:
    base = make_layer("linear")
    adapter = FullModule("adapter", base, 1.0)
    adapter.apply_to()
    randomise(adapter)
    assert difference(dense_bias_delta(read_state(adapter.state_dict())), adapter.get_diff_weight()[1]) == 0


# --- PEFT ----------------------------------------------------------------------------------------------------------


class Host(nn.Module):
    """What PEFT wraps: one layer that it is told to adapt."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer


PEFT: Final[dict[str, tuple[tuple[str, ...], Callable[[int, float], Any]]]] = {
    "LoRA": (tuple(LAYERS), lambda rank, alpha: peft.LoraConfig(r=rank, lora_alpha=alpha)),
    "rsLoRA": (
        tuple(LAYERS),
        lambda rank, alpha: peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=True),
    ),
    "LoRA with biases": (
        ("linear", "3x3"),
        lambda rank, alpha: peft.LoraConfig(r=rank, lora_alpha=alpha, lora_bias=True),
    ),
    "DoRA": (tuple(LAYERS), lambda rank, alpha: peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=True)),
    "LoHa": (tuple(LAYERS), lambda rank, alpha: peft.LoHaConfig(r=rank, alpha=alpha)),
    "LoHa, core": (("3x3",), lambda r, alpha: peft.LoHaConfig(r=r, alpha=alpha, use_effective_conv2d=True)),
    "LoKr": (tuple(LAYERS), lambda rank, alpha: peft.LoKrConfig(r=rank, alpha=alpha)),
    "LoKr, both factored": (
        ("linear", "square"),
        lambda rank, alpha: peft.LoKrConfig(r=rank, alpha=alpha, decompose_both=True, decompose_factor=8),
    ),
    "LoKr, core": (
        ("3x3",),
        lambda r, alpha: peft.LoKrConfig(r=r, alpha=alpha, use_effective_conv2d=True, decompose_factor=2),
    ),
    "IA3 on outputs": (tuple(LAYERS), lambda _, __: peft.IA3Config(feedforward_modules=[])),
    "IA3 on inputs": (tuple(LAYERS), lambda _, __: peft.IA3Config(feedforward_modules=["layer"])),
    "OFT, series": (tuple(LAYERS), lambda r, _: peft.OFTConfig(oft_block_size=2 * r, r=0)),
    "OFT, exact": (
        tuple(LAYERS),
        lambda rank, _: peft.OFTConfig(oft_block_size=2 * rank, r=0, use_cayley_neumann=False),
    ),
    "OFT, 3 terms": (
        ("linear",),
        lambda rank, _: peft.OFTConfig(oft_block_size=2 * rank, r=0, num_cayley_neumann_terms=3),
    ),
    "OFT, one block for all": (
        ("linear",),
        lambda rank, _: peft.OFTConfig(oft_block_size=2 * rank, r=0, block_share=True),
    ),
    "BOFT": (("linear", "square", "1x1"), lambda rank, _: peft.BOFTConfig(boft_block_size=2 * rank)),
}


@pytest.mark.parametrize("case", PEFT)
@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # of a missing CUDA compiler, and of a merge that is not undone
def test_the_delta_is_that_of_peft(case: str) -> None:
    layers, make = PEFT[case]
    for rank, alpha in ((2, 1.0), (4, 6.0)):
        for name in layers:
            base = make_layer(name)
            before, bias = base.weight.numpy().copy(), base.bias.numpy().copy()
            config = make(rank, alpha)
            config.target_modules = ["layer"]
            wrapped = peft.get_peft_model(Host(base.double()), config).double()
            randomise_peft(wrapped)
            state = peft.get_peft_model_state_dict(wrapped)
            fields = {
                key: sorted(value) if isinstance(value, set) else value
                for key, value in config.to_dict().items()
            }
            said = AdapterConfig("adapter_config.json", {"": fields}).find("unet.layer")
            module = read_state(
                {key.removeprefix("base_model.model.layer."): value.float() for key, value in state.items()},
                said,
            )
            merged = wrapped.merge_and_unload().layer
            assert (
                difference(dense_delta(module, before.shape, before), merged.weight - torch.tensor(before))
                <= TOLERANCE
            )
            ours = dense_bias_delta(module, bias)
            theirs = (merged.bias - torch.tensor(bias)).detach().numpy()
            assert np.allclose(np.zeros_like(theirs) if ours is None else ours, theirs, atol=1e-6)


def randomise_peft(wrapped: Any) -> None:
    """Give every trained tensor random values that float32 holds, as a file does."""
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if value.requires_grad:
                near = "magnitude" in name or "ia3" in name or "boft_s" in name
                value.copy_((value * near + torch.randn_like(value) * 0.2).float())


# --- the canonical form --------------------------------------------------------------------------------------------

SHAPES: Final = ((12, 8), (16, 16), (8, 12, 1, 1), (12, 8, 3, 3), (8,))


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, LoraModule]:
    """Draws modules of any forms, ranks and precisions for weights of any shape."""
    modules = {}
    for number in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from(SHAPES))
        fitting = [(row, form) for _, row, form in FORMS if fits_layer(row, form, shape)]
        row, form = draw(st.sampled_from(fitting))
        module = make_module(
            row,
            form,
            shape,
            rank=draw(st.integers(1, 6)),
            dtype=draw(st.sampled_from(sorted(DTYPES))),
            seed=draw(st.integers(0, 99)),
        )
        stated = form.scale in ("ranked", "stored") and draw(st.booleans())
        modules[f"unet.layer_{number}.x"] = replace(module, rule="alpha/sqrt(rank)") if stated else module
    return modules


@given(modules=adapters())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_modules_come_back_byte_for_byte(modules: dict[str, LoraModule], tmp_path: Path) -> None:
    contents = LoraContents(modules=modules)
    write_lora(tmp_path / "one", contents)
    again = read_lora(tmp_path / "one")
    assert again == contents
    write_lora(tmp_path / "two", again)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(("name", "row", "form"), FORMS, ids=[name for name, _, _ in FORMS])
def test_a_module_that_lost_a_tensor_or_a_number_is_refused(
    name: str, row: Any, form: Any, tmp_path: Path
) -> None:
    shape = next(shape for shape in SHAPES if fits_layer(row, form, shape))
    path = tmp_path / "lora.safetensors"
    write_lora(path, LoraContents(modules={"unet.a": make_module(row, form, shape)}))
    tensors, metadata = read_tensors(path), read_header(path).metadata
    # Without its core, a module is sound by itself for a layer of another shape, and is refused where it is attached.
    cores = ("lora_mid.weight", "lokr_t2", "bm")
    optional = {f"unet.a.{part}" for part in (*form.optional, "lora_B.bias", *cores)}
    essential = [key for key in tensors if key not in optional]
    for lost in essential if len(essential) > 1 else []:
        kept = {key: value for key, value in tensors.items() if key != lost}
        write_tensors(path, kept, metadata)
        # What is left may be another algorithm, as DoRA without its magnitude is LoRA; never the same one.
        try:
            assert read_lora(path).modules["unet.a"].algorithm != row.id, lost
        except InvalidFileError as error:
            assert str(error.where).startswith("unet.a"), lost  # noqa: PT017  # either end is right
    write_tensors(path, {**tensors, "unet.a.lora_C": to_raw(torch.ones(2))}, metadata)
    with pytest.raises(InvalidFileError, match="lora_C"):
        read_lora(path)


def module_of(**parts: torch.Tensor) -> LoraModule:
    return read_module("unet.a", {part: to_raw(value) for part, value in parts.items()})


FAULTS: Final[dict[str, tuple[dict[str, tuple[int, ...]], str]]] = {
    "half": ({"down": (4, 8)}, "lora_B.weight: this tensor is missing"),
    "ranks": ({"down": (4, 8), "up": (6, 3)}, "ranks"),
    "ranks of LoHa": (
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (6, 3), "hada_w2_b": (3, 8)},
        "ranks",
    ),
    "outputs of LoHa": (
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (5, 2), "hada_w2_b": (2, 8)},
        "outputs",
    ),
    "half of LoKr": ({"lokr_w1": (2, 2), "lokr_w2_a": (3, 2)}, "missing"),
    "core of another rank": ({"down": (4, 8, 1, 1), "core": (3, 3, 3, 3), "up": (6, 4, 1, 1)}, "ranks"),
    "block that is not square": ({"oft_blocks": (4, 3, 2)}, "block sizes"),
    "magnitude of another width": ({"down": (4, 8), "up": (6, 4), "dora_scale": (1, 7)}, "inputs"),
    "magnitude of no axis": ({"down": (4, 8), "up": (8, 4), "dora_scale": (8,)}, "axis"),
    "side not said": ({"ia3_l": (1, 8, 1, 1)}, "inputs or outputs"),
    "series not said": ({"oft_R": (4, 6)}, "rotations"),
    "two algorithms": ({"down": (4, 8), "up": (6, 4), "hada_w1_a": (6, 2)}, "no algorithm"),
    "rank nought": ({"down": (0, 8), "up": (6, 0)}, "nothing"),
}


@pytest.mark.parametrize(("shapes", "expected"), FAULTS.values(), ids=FAULTS)
def test_tensors_that_make_no_module_are_refused_by_name(
    shapes: dict[str, tuple[int, ...]], expected: str
) -> None:
    with pytest.raises(InvalidFileError, match=expected) as caught:
        module_of(**{part: torch.ones(shape) for part, shape in shapes.items()})
    assert str(caught.value.where).startswith("unet.a")


def test_a_value_that_is_not_finite_is_named() -> None:
    with pytest.raises(InvalidFileError, match="NaN") as caught:
        module_of(
            hada_w1_a=torch.ones(6, 2),
            hada_w1_b=torch.full((2, 8), torch.nan),
            hada_w2_a=torch.ones(6, 2),
            hada_w2_b=torch.ones(2, 8),
        )
    assert caught.value.where == "unet.a.hada_w1_b"


def test_scales_follow_the_rule_that_is_recorded() -> None:
    factors = {"down": torch.ones(4, 8), "up": torch.ones(6, 4)}
    tensors = {part: to_raw(value) for part, value in factors.items()}
    half = {**tensors, "alpha": to_raw(torch.tensor(2.0, dtype=torch.float16))}
    nought = {**tensors, "alpha": to_raw(torch.tensor(0.0))}
    cases = [
        (tensors, Said(), 1.0, "one"),
        (half, Said(alpha=12.0), 0.5, "alpha/rank"),
        (nought, Said(), 1.0, "one"),
        (nought, Said(alpha=12.0), 3.0, "alpha/rank"),
        (tensors, Said(alpha=12.0, rank_stabilised=True), 6.0, "alpha/sqrt(rank)"),
    ]
    for given_tensors, said, scale, rule in cases:
        module = read_module("unet.a", given_tensors, said)
        assert (module.scale, module.rule) == (scale, rule)
    whole = {"lokr_w1": to_raw(torch.ones(2, 2)), "lokr_w2": to_raw(torch.ones(3, 4))}
    assert read_module("unet.a", {**whole, "alpha": to_raw(torch.tensor(9.0))}).scale == 1.0
    assert read_module("unet.a", whole, Said(alpha=8.0, rank=16)).scale == 0.5


def test_a_magnitude_keeps_its_axis_whoever_wrote_it() -> None:
    down, up = torch.ones(4, 8, 1, 1), torch.ones(8, 4, 1, 1)
    written = {
        "dora_scale": ((8, 1, 1, 1), "magnitude_out"),
        "magnitude_vector": ((1, 8, 1, 1), "magnitude_out"),
    }
    for part, (shape, expected) in written.items():
        assert expected in module_of(down=down, up=up, **{part: torch.ones(shape)}).parts
    assert "magnitude_in" in module_of(down=down, up=up, dora_scale=torch.ones(1, 8, 1, 1)).parts


def test_a_manifest_counts_algorithms_ranks_and_rules() -> None:
    rows = {name: (row, form) for name, row, form in FORMS}
    modules = {
        "unet.a": make_module(*rows["lora down+up"], (12, 8), rank=4),
        "unet.b": replace(make_module(*rows["lora down+up"], (12, 8), rank=2), rule="one"),
        "unet.c": make_module(*rows["norm w_norm"], (8,)),
    }
    method = describe_modules(modules)
    assert (method.variant, method.algorithms) == ("mixed", {"lora": 2, "norm": 1})
    assert (method.rank, method.ranks, method.modules) == (4, {"4": 1, "2": 1}, 3)
    assert method.scale_rules == {"alpha/rank": 1, "one": 1, "none": 1}
    assert type(method).model_validate_json(method.model_dump_json(exclude_none=True)) == method
