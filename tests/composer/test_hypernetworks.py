"""Hypernetworks in a pipeline: the keys and values of the formula, beside every other kind, and out again exactly."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conceptry.composer import Composition, attach, fuse
from conceptry.composer.hypernetworks import ACTIVATIONS, find_attention, load_pairs
from conceptry.composition import Use
from conceptry.concepts import Concept
from conceptry.errors import IncompatibleError
from conceptry.formats.hypernetwork import HYPERNETWORK_NAME, HypernetworkContents, read_hypernetwork
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import import_file
from conceptry.kinds import ActivationId
from conceptry.names import ConceptName, parse_version
from tests.fakes.concepts import make_hypernetwork, make_layered, make_lora, make_rank_one
from tests.fakes.forwards import TOLERANCE, make_calm_pipeline, measure_difference, run_components
from tests.fakes.hypernetworks import save_hypernetwork
from tests.fakes.pipelines import make_pipeline

# How A1111 calls them, and what it makes of each name; beside these, torch's classes by their names in small letters.
NAMES = {"linear": nn.Identity, "swish": nn.Hardswish}


@pytest.fixture(scope="module")
def calm() -> Any:
    return make_calm_pipeline()


def find_class(name: str) -> type[nn.Module]:
    classes = {one.lower(): getattr(nn.modules.activation, one) for one in nn.modules.activation.__all__}
    return NAMES.get(name) or classes[name]


def build(contents: HypernetworkContents, width: int, target: Any) -> nn.Module:
    """Return h as its definition has it: linear layer, activation, norm; the last activation where it is wanted."""
    modules: list[nn.Module] = []
    layers = contents.networks[width, target]
    for place, layer in enumerate(layers):
        values = {part: torch.from_numpy(tensor.to_numpy().copy()) for part, tensor in layer.list_parts()}
        outputs, inputs = values["weight"].shape
        linear = nn.Linear(inputs, outputs)
        linear.load_state_dict({"weight": values["weight"], "bias": values["bias"]})
        modules.append(linear)
        if place < len(layers) - 1 or contents.activate_output:
            modules.append(find_class(contents.activation)())
        if contents.layer_norm:
            norm = nn.LayerNorm(outputs)
            norm.load_state_dict({"weight": values["norm.weight"], "bias": values["norm.bias"]})
            modules.append(norm)
    return nn.Sequential(*modules).eval()


class Reference:
    """An attention processor that writes the formula out: k = W_K (x + s h_k(x)), v = W_V (x + s h_v(x))."""

    def __init__(self, concepts: list[tuple[HypernetworkContents, float]]) -> None:
        self.concepts = concepts

    def __call__(
        self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any
    ) -> torch.Tensor:
        x = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        before = {"keys": x, "values": x}
        for contents, strength in self.concepts:
            for target, value in before.items():
                if value.shape[-1] in contents.widths:
                    before[target] = value + strength * build(contents, value.shape[-1], target)(value)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        keys, values = (
            attn.head_to_batch_dim(layer(before[target]))
            for layer, target in ((attn.to_k, "keys"), (attn.to_v, "values"))
        )
        weights = (attn.scale * query @ keys.transpose(1, 2)).softmax(dim=-1)
        return attn.to_out[0](attn.batch_to_head_dim(weights @ values))  # type: ignore[no-any-return]


def contents_of(concept: Concept) -> HypernetworkContents:
    (file,) = concept.manifest.builds[0].parts[0].files
    return read_hypernetwork(concept.locate(file))


def run_reference(
    pipeline: Any, prompt: str, *concepts: tuple[Concept, float], without: str = "nowhere"
) -> Any:
    kept = dict(pipeline.unet.attn_processors)
    rows = [(contents_of(concept), strength) for concept, strength in concepts]
    pipeline.unet.set_attn_processor(
        {path: Reference([] if path.startswith(without) else rows) for path in kept}
    )
    try:
        return run_components(pipeline, prompt)
    finally:
        pipeline.unet.set_attn_processor(kept)


@pytest.mark.parametrize("shape", ["sd1", "sd2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "relu", "layer_norm": False, "activate_output": True},
        {"activation": "swish", "structure": (1.0, 2.0, 1.5, 1.0)},
        {"activation": "linear", "layer_norm": False, "structure": (1.0, 1.0)},
        {"activation": "softsign", "activate_output": True},
    ],
)
@torch.no_grad()
def test_keys_and_values_are_those_of_the_formula(shape: Any, settings: Any, tmp_path: Path) -> None:
    pipeline = make_calm_pipeline(shape)
    concept = make_hypernetwork(tmp_path / "h", pipeline, **settings)
    plain = run_components(pipeline, "a cat")
    for strength in (1.0, 0.4, -0.5):
        expected = run_reference(pipeline, "a cat", (concept, strength))
        with attach(Composition(concept * strength), pipeline) as report:
            found = run_components(pipeline, "a cat")
        assert report.concepts[0].unmatched == ()
        assert measure_difference(found, expected) <= TOLERANCE
        assert measure_difference(found, plain) > 1e-3
    assert measure_difference(run_components(pipeline, "a cat"), plain) == 0


def test_every_activation_is_the_class_that_a1111_takes_for_its_name() -> None:
    assert set(ACTIVATIONS) == set(typing.get_args(ActivationId))
    x = torch.linspace(-4, 4, 101)
    for name, compute in ACTIVATIONS.items():
        assert torch.equal(compute(x), find_class(name)().eval()(x)), name


@torch.no_grad()
def test_several_follow_one_another_and_strength_zero_keeps_every_bit(calm: Any, tmp_path: Path) -> None:
    first = make_hypernetwork(tmp_path / "1", calm, name="test/first", seed=1)
    second = make_hypernetwork(tmp_path / "2", calm, name="test/second", seed=2)
    plain = run_components(calm, "a cat")
    expected = run_reference(calm, "a cat", (first, 1.0), (second, 0.5))
    with attach(Composition(first, second * 0.5), calm):
        assert measure_difference(run_components(calm, "a cat"), expected) <= TOLERANCE
    with attach(Composition(first * 0), calm):
        assert measure_difference(run_components(calm, "a cat"), plain) == 0


@torch.no_grad()
def test_a_low_rank_delta_reads_what_the_network_made_whichever_came_first(calm: Any, tmp_path: Path) -> None:
    network, lora = make_hypernetwork(tmp_path / "h", calm), make_lora(tmp_path / "l", calm)
    with fuse(Composition(lora), calm):
        expected = run_reference(calm, "a zork", (network, 1.0))
    for concepts in ((network, lora), (lora, network)):
        with attach(Composition(*concepts), calm):
            assert measure_difference(run_components(calm, "a zork"), expected) <= TOLERANCE


@pytest.mark.parametrize("make", [make_layered, make_rank_one])
@torch.no_grad()
def test_words_with_layers_and_edits_are_found_behind_a_network(make: Any, calm: Any, tmp_path: Path) -> None:
    network, other = make_hypernetwork(tmp_path / "h", calm), make(tmp_path / "o", calm)
    prompt = "a <p> and a <r>"
    found = []
    for concepts in ((network, other), (other, network)):
        with attach(Composition(*concepts), calm):
            found.append(run_components(calm, prompt))
    assert measure_difference(found[0], found[1]) <= TOLERANCE
    with attach(Composition(network), calm):
        assert measure_difference(run_components(calm, "a cat"), found[0]) > 1e-4


@torch.no_grad()
def test_its_share_of_a_part_counts_there_alone(calm: Any, tmp_path: Path) -> None:
    concept = make_hypernetwork(tmp_path / "h", calm)
    assert any(path.startswith("mid_block") for path in find_attention(calm.unet))
    quiet = Use(parts={"unet.mid_block": 0.0})
    expected = run_reference(calm, "a cat", (concept, 1.0), without="mid_block")
    with attach(Composition(concept, use={"test/hypernetwork": quiet}), calm) as report:
        assert not any("does nothing" in warning for warning in report.warnings)
        assert measure_difference(run_components(calm, "a cat"), expected) <= TOLERANCE


def test_what_no_weight_can_hold_is_refused_and_nothing_is_left(calm: Any, tmp_path: Path) -> None:
    concept = make_hypernetwork(tmp_path / "h", calm)
    before = {name: value.clone() for name, value in calm.unet.state_dict().items()}
    with pytest.raises(IncompatibleError, match="activations between its layers"):
        fuse(Composition(concept), calm)
    assert all(torch.equal(value, before[name]) for name, value in calm.unet.state_dict().items())
    assert not any(module._forward_pre_hooks for module in calm.unet.modules())


def test_a_base_that_reads_no_such_width_is_refused(calm: Any, tmp_path: Path) -> None:
    other = make_pipeline("sd2")
    assert not set(find_attention(other.unet).values()) & {999}
    concept = make_hypernetwork(tmp_path / "h", calm)
    path = tmp_path / "h" / HYPERNETWORK_NAME
    assert set(read_hypernetwork(path).widths) == set(find_attention(calm.unet).values())
    with pytest.raises(IncompatibleError):
        attach(Composition(concept), other)


@pytest.mark.parametrize(
    "settings", [{}, {"activation_func": "relu", "is_layer_norm": True, "use_dropout": True}]
)
@torch.no_grad()
def test_a_file_of_a1111_does_what_a1111_computes(settings: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = save_hypernetwork(tmp_path / "imp.pt", widths=(16, 24), structure=(1, 2, 2, 1), **settings)
    said = ImportSettings(
        name=ConceptName("me", "imp"),
        version=parse_version("1.0.0"),
        base=declare_base("sd1"),
        license="CC0-1.0",
    )
    import_file(tmp_path / "imp.pt", tmp_path / "package", said)
    pairs = load_pairs(read_hypernetwork(tmp_path / "package" / HYPERNETWORK_NAME))
    for width, (keys, values) in networks.items():
        x = torch.randn(3, 7, width)
        for ours, theirs in ((pairs[width].keys, keys), (pairs[width].values, values)):
            expected = theirs.eval()(x)
            assert float((ours.compute(x) - expected).abs().max() / expected.abs().max()) <= 1e-6
