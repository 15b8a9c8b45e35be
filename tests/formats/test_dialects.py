"""Complete key sets of real networks, in the names of every program and of every algorithm, are wholly explained."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from conceptry.formats.header import Header, TensorInfo
from conceptry.formats.identify import Identification, identify_header
from tests.formats import adapter_shapes as spelled
from tests.formats.adapters import list_modules
from tests.formats.networks import Shape, list_layers, list_norms

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner")
TRANSFORMERS = ("flux", "sd3", "qwen_image", "wan", "z_image", "krea2", "flux2")


def identify_shapes(shapes: Mapping[str, Shape], **metadata: str) -> Identification:
    tensors = {name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}
    return identify_header(Header(tensors, metadata, 0, 0))


def check(shapes: Mapping[str, Shape], dialect: str, family: str | None, **metadata: str) -> Identification:
    found = identify_shapes(shapes, **metadata)
    assert found.coverage.unexplained == ()
    assert (found.kind, found.dialect, found.family) == ("lora", dialect, family)
    assert found.coverage.total == len(shapes)
    return found


def kohya(family: str) -> Mapping[str, str]:
    return spelled.KOHYA_ONE if family in ("sd1", "sd2") else spelled.KOHYA_TWO


@pytest.mark.parametrize("family", FAMILIES)
def test_kohya_with_the_names_of_diffusers(family: str) -> None:
    modules = list_layers(family)
    shapes = spelled.write(modules, spelled.flatten(kohya(family)), spelled.with_alpha)
    found = check(shapes, "kohya", family)
    assert (found.ranks, found.algorithms, found.family_is_certain) == (
        {4: len(modules)},
        ("locon", "lora"),
        True,
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_kohya_with_the_names_of_a_published_key_list(family: str) -> None:
    modules = list_modules(family)
    shapes = spelled.write(modules, spelled.flatten(kohya(family)), spelled.with_alpha)
    check(shapes, "kohya", family)


@pytest.mark.parametrize("algorithm", spelled.ALGORITHMS)
@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_lycoris_with_every_algorithm(family: str, algorithm: str) -> None:
    modules = {**list_modules(family)}
    shapes = spelled.write(modules, spelled.flatten(kohya(family)), spelled.ALGORITHMS[algorithm])
    found = identify_shapes(shapes)
    assert found.coverage.unexplained == ()
    assert (found.kind, found.dialect) == ("lora", "kohya")
    # What rotates or rescales outputs says nothing of what a layer reads.
    assert found.family in ((family, None) if algorithm in ("oft", "boft", "ia3") else (family,))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_lycoris_with_the_differences_of_norms(family: str) -> None:
    spell = spelled.flatten(kohya(family))
    shapes = spelled.write(list_norms(family), spell, spelled.norm)
    shapes |= spelled.write(list_layers(family), spell, spelled.full)
    check(shapes, "kohya", family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_wrapper_of_lycoris(family: str) -> None:
    modules = spelled.of(list_layers(family), ["unet"])
    shapes = spelled.write(modules, spelled.flatten(spelled.LYCORIS), spelled.loha)
    check(shapes, "lycoris", family)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers(family: str) -> None:
    modules = list_layers(family)
    check(spelled.write(modules, spelled.replace(spelled.DIFFUSERS), spelled.peft), "diffusers", family)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_of_the_first_generation(family: str) -> None:
    attention = {
        name: shape
        for name, shape in list_layers(family).items()
        if ".attn" in name and name.startswith("unet.")
    }
    shapes = spelled.write(attention, spelled.spell_processors, spelled.old_processors)
    text = spelled.pick(spelled.of(list_layers(family), ["text_encoder", "text_encoder_2"]), "self_attn")
    check({**shapes, **spelled.write(text, str, spelled.old_text)}, "diffusers_old", family)
    bare = {name.removeprefix("unet."): shape for name, shape in shapes.items()}
    check(bare, "diffusers_bare", family)


@pytest.mark.parametrize("family", [*FAMILIES, "flux", "qwen_image", "wan", "z_image"])
def test_peft_with_one_network_a_file(family: str) -> None:
    modules = spelled.of(list_layers(family), ["unet", "transformer"])
    check(spelled.write(modules, spelled.replace(spelled.PEFT), spelled.peft), "peft", family)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_comfyui_with_the_names_of_the_original_network(family: str) -> None:
    modules = spelled.of(list_modules(family), ["unet", "te1", "te2"])
    if family == "sd1":
        modules = spelled.of(list_layers("sd1"), ["unet", "text_encoder"])
    shapes = spelled.write(modules, spelled.replace(spelled.COMFYUI), spelled.with_alpha)
    check(shapes, "comfyui", family)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_networks_of_transformers_in_the_names_of_diffusers(family: str) -> None:
    modules = spelled.of(list_layers(family), ["transformer"])
    found = check(
        spelled.write(modules, spelled.replace(spelled.DIFFUSERS), spelled.peft), "diffusers", family
    )
    assert found.family_is_certain
    toolkit = spelled.write(modules, spelled.replace(spelled.COMFYUI), spelled.peft)
    check(toolkit, "ai_toolkit", family)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_onetrainer(family: str) -> None:
    modules = list_layers(family)
    shapes = spelled.write(modules, spelled.flatten(spelled.ONETRAINER), spelled.dora_in)
    check(shapes, "onetrainer", family)


def test_onetrainer_with_the_prefixes_of_kohya_is_told_by_its_metadata() -> None:
    shapes = spelled.write(list_layers("sdxl"), spelled.flatten(spelled.KOHYA_TWO), spelled.with_alpha)
    check(shapes, "onetrainer", "sdxl", ot_branch="master")
    check(shapes, "kohya", "sdxl")


WAN = {
    f"transformer.blocks.{n}.{path}": shape
    for n in range(40)
    for path, shape in {
        **{f"self_attn.{one}": (5120, 5120) for one in "qkvo"},
        **{f"cross_attn.{one}": (5120, 5120) for one in ("q", "k", "v", "o", "k_img", "v_img")},
        "ffn.0": (13824, 5120),
        "ffn.2": (5120, 13824),
    }.items()
}
SD3 = {
    f"transformer.joint_blocks.{n}.{block}_block.{path}": shape
    for n in range(24)
    for block in ("x", "context")
    for path, shape in {
        "attn.qkv": (4608, 1536),
        "attn.proj": (1536, 1536),
        "mlp.fc1": (6144, 1536),
        "mlp.fc2": (1536, 6144),
        "adaLN_modulation.1": (9216, 1536),
    }.items()
}
Z_IMAGE = {
    f"transformer.{part}.{n}.{path}": shape
    for part, count in (("layers", 30), ("noise_refiner", 2), ("context_refiner", 2))
    for n in range(count)
    for path, shape in {
        "attention.qkv": (11520, 3840),
        "attention.out": (3840, 3840),
        **{f"feed_forward.w{one}": (10240, 3840) for one in (1, 3)},
        "feed_forward.w2": (3840, 10240),
    }.items()
}
ORIGINAL = {"wan": WAN, "sd3": SD3, "z_image": Z_IMAGE}


@pytest.mark.parametrize("family", ORIGINAL)
def test_the_authors_own_names(family: str) -> None:
    modules = ORIGINAL[family]
    check(spelled.write(modules, spelled.flatten(spelled.KOHYA_TWO), spelled.with_alpha), "kohya", family)
    check(spelled.write(modules, spelled.replace(spelled.COMFYUI), spelled.with_alpha), "comfyui", family)
    check(spelled.write(modules, spelled.replace(spelled.COMFYUI), spelled.peft), "ai_toolkit", family)
    fun = spelled.write(modules, spelled.flatten({"transformer": "lora_unet__"}), spelled.with_alpha)
    check(fun, "kohya", family)


# --- unsure is said as unsure --------------------------------------------------------------------------------------


def test_a_text_encoder_that_several_families_have_is_said_to_be_unsure() -> None:
    text = spelled.of(list_layers("sd1"), ["text_encoder"])
    found = check(spelled.write(text, spelled.flatten(spelled.KOHYA_ONE), spelled.with_alpha), "kohya", "sd1")
    assert not found.family_is_certain
    assert any(reason.startswith("unsure") for reason in found.reasons)
    named = check(
        spelled.write(text, spelled.flatten(spelled.KOHYA_TWO), spelled.with_alpha),
        "kohya",
        "flux",
        ss_base_model_version="flux1",
    )
    assert any("shares these shapes" in reason for reason in named.reasons)


def test_shapes_of_sdxl_are_said_to_be_those_of_pony_too() -> None:
    modules = spelled.of(list_layers("sdxl"), ["unet"])
    found = check(
        spelled.write(modules, spelled.replace(spelled.DIFFUSERS), spelled.peft), "diffusers", "sdxl"
    )
    assert any("Pony" in reason for reason in found.reasons)


def test_attention_that_flux_and_qwen_share_is_said_to_be_unsure() -> None:
    attention = {
        f"transformer.transformer_blocks.{n}.attn.to_{one}": (3072, 3072) for n in range(4) for one in "qkv"
    }
    found = identify_shapes(spelled.write(attention, str, spelled.peft))
    assert not found.family_is_certain
    assert any(reason.startswith("unsure") for reason in found.reasons)


def test_t5_of_flux_is_its_second_encoder_and_that_of_sd3_its_third() -> None:
    t5 = {"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": (4, 4096)}
    t5 |= {"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": (4096, 4)}
    double = {f"transformer.double_blocks.{n}.img_mlp.2": (3072, 12288) for n in range(2)}
    for modules, family, place in ((double, "flux", "text_encoder_2"), (SD3, "sd3", "text_encoder_3")):
        from conceptry.formats.lora_keys import list_dialects, parse_keys

        shapes = spelled.write(modules, spelled.flatten(spelled.KOHYA_TWO), spelled.lora) | t5
        tensors = {name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}
        keys = parse_keys(Header(tensors, {}, 0, 0), list_dialects()["kohya"])
        assert {key.component for key in keys.keys.values()} == {"transformer", place}
        assert keys.verdict.family == family
