"""What a file is: kind, dialect and base family from names and shapes, every tensor explained or named."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conceptry.formats.catalog import FORMATS
from conceptry.formats.header import Header, TensorInfo, read_header
from conceptry.formats.identify import identify, identify_header
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.kinds import KIND_BY_ID
from tests.formats.adapters import GOLDEN, SHARED, Shape, list_modules, write_dotted, write_kohya


def header_of(shapes: dict[str, Shape], **metadata: str) -> Header:
    return Header({name: TensorInfo("F16", shape, 0, 0) for name, shape in shapes.items()}, metadata, 0, 0)


def ones(*shape: int) -> RawTensor:
    return RawTensor.from_numpy(np.ones(shape, np.float32))


@pytest.mark.parametrize(("family", "count"), [("sd1", 792 + 86 * 3), ("sd2", 792 + 86 * 3), ("sdxl", 3159)])
def test_complete_kohya_adapter_is_wholly_explained(family: str, count: int, tmp_path: Path) -> None:
    modules = list_modules(family)
    found = identify(write_kohya(tmp_path / "file.bin", modules))
    assert (found.kind, found.dialect, found.family) == ("lora", "kohya", family)
    assert found.coverage.complete
    assert found.coverage.total == 3 * len(modules)
    assert found.ranks == {1: len(modules)}
    assert found.confidence >= 0.9


@pytest.mark.parametrize(
    ("path", "width", "family"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 768, "sd1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 1024, "sd2"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 2048, "sdxl"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 128, "toybox"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 999, None),
        ("unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_k", 1280, "sdxl"),
        ("unet.down_blocks.0.resnets.0.conv1", 320, None),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 1024, "sd2"),
    ],
)
def test_family_follows_from_shapes(path: str, width: int, family: str | None, tmp_path: Path) -> None:
    found = identify(write_dotted(tmp_path / "file", {path: (320, width)}))
    assert (found.kind, found.dialect, found.family) == ("lora", "diffusers", family)
    assert found.coverage.complete


def test_shapes_overrule_metadata_and_the_disagreement_is_said(tmp_path: Path) -> None:
    path = {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 2048)}
    plain = identify(write_dotted(tmp_path / "1", path))
    agreed = identify(write_dotted(tmp_path / "2", path, ss_base_model_version="sdxl_base_v1-0"))
    disputed = identify(write_dotted(tmp_path / "3", path, ss_base_model_version="sd_v1"))
    assert (plain.family, agreed.family, disputed.family) == ("sdxl", "sdxl", "sdxl")
    assert disputed.confidence < plain.confidence
    assert any("claims sd1" in reason for reason in disputed.reasons)


def test_shapes_of_two_families_leave_the_family_open(tmp_path: Path) -> None:
    block = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    found = identify(
        write_dotted(tmp_path / "file", {f"{block}.to_k": (1280, 2048), f"{block}.to_v": (1280, 768)})
    )
    assert found.family is None
    assert any("several families" in reason for reason in found.reasons)


BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn2"
SPELLINGS: dict[str, tuple[dict[str, Shape], tuple[str, str], str]] = {
    "PEFT": ({f"base_model.model.{BLOCK}.to_k": (1280, 768)}, (".lora_A.weight", ".lora_B.weight"), "peft"),
    "PEFT with the adapter's name": (
        {f"base_model.model.{BLOCK}.to_k": (1280, 768)},
        (".lora_A.default.weight", ".lora_B.default.weight"),
        "peft",
    ),
    "diffusers with lora.down": (
        {f"unet.{BLOCK}.to_k": (1280, 768)},
        (".lora.down.weight", ".lora.up.weight"),
        "diffusers_old",
    ),
    "diffusers' processors": (
        {f"unet.{BLOCK}.processor.to_out": (1280, 1280), f"unet.{BLOCK}.processor.to_k": (1280, 768)},
        ("_lora.down.weight", "_lora.up.weight"),
        "diffusers_old",
    ),
    "processors without a component": (
        {f"{BLOCK}.processor.to_k": (1280, 768)},
        ("_lora.down.weight", "_lora.up.weight"),
        "diffusers_bare",
    ),
    "text encoder layers of early diffusers": (
        {
            f"unet.{BLOCK}.to_k": (1280, 768),
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj": (768, 768),
        },
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        "diffusers_old",
    ),
    "ComfyUI": (
        {"diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k": (1280, 768)},
        (".lora_down.weight", ".lora_up.weight"),
        "comfyui",
    ),
}


@pytest.mark.parametrize(("modules", "names", "dialect"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_each_spelling_of_a_module_is_known(
    modules: dict[str, Shape], names: tuple[str, str], dialect: str, tmp_path: Path
) -> None:
    found = identify(write_dotted(tmp_path / "file", modules, names))
    assert (found.kind, found.dialect, found.family) == ("lora", dialect, "sd1")
    assert found.coverage.complete


EMBEDDINGS: dict[str, tuple[dict[str, Shape], str, str | None]] = {
    "kohya": ({"emb_params": (5, 768)}, "kohya_emb_params", "sd1"),
    "OneTrainer": ({"emp_params": (2, 1024)}, "onetrainer_emp_params", "sd2"),
    "SDXL pair": ({"clip_l": (3, 768), "clip_g": (3, 1280)}, "sdxl_pair", "sdxl"),
    "diffusers, one vector": ({"<cat-toy>": (768,)}, "diffusers", "sd1"),
    "diffusers, several vectors": ({"<cat-toy>": (4, 1024)}, "diffusers", "sd2"),
    "half of an SDXL pair": ({"<cat-toy>": (1, 1280)}, "diffusers", "sdxl"),
    "toybox": ({"<imp>": (2, 128)}, "diffusers", "toybox"),
    "unknown width": ({"emb_params": (5, 999)}, "kohya_emb_params", None),
}


@pytest.mark.parametrize(("shapes", "dialect", "family"), EMBEDDINGS.values(), ids=EMBEDDINGS.keys())
def test_embedding_is_known_by_names_and_widths(
    shapes: dict[str, Shape], dialect: str, family: str | None, tmp_path: Path
) -> None:
    write_tensors(tmp_path / "file", {name: ones(*shape) for name, shape in shapes.items()})
    found = identify(tmp_path / "file")
    assert (found.kind, found.dialect, found.family) == ("embedding", dialect, family)
    assert found.coverage.complete


def test_embedding_that_several_families_share_is_not_certain() -> None:
    found = identify_header(header_of({"emb_params": (5, 768)}))
    assert found.confidence < 0.8
    assert not found.family_is_certain
    assert any("shares" in reason for reason in found.reasons)


def test_word_in_the_tensor_name_is_a_trigger() -> None:
    assert identify_header(header_of({"<cat-toy>": (768,)})).triggers == ("<cat-toy>",)
    assert identify_header(header_of({"*": (768,)})).triggers == ()


STRANGERS: dict[str, tuple[dict[str, Shape], str]] = {
    "an IP-Adapter": (
        {"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.weight": (3072, 1024)},
        "ip_adapter",
    ),
    "a ControlNet": ({"control_model.zero_convs.0.0.weight": (320, 320, 1, 1)}, "controlnet"),
    "shifts of singular values of no network": ({"proj.weight.delta": (320,)}, "unknown"),
    "a bare network": ({"conv_in.weight": (320, 4, 3, 3), "conv_in.bias": (320,)}, "component"),
    "a vector that is a weight": ({"weight": (768,)}, "unknown"),
    "a covariance": ({"covariance": (768, 768)}, "unknown"),
    "nothing": ({}, "unknown"),
    "an adapter for a network that is not known": (
        {"lora_unet_nothing_like_it_1.lora_down.weight": (4, 9)},
        "unknown",
    ),
}


@pytest.mark.parametrize(("shapes", "kind"), STRANGERS.values(), ids=STRANGERS.keys())
def test_other_kinds_are_named_and_never_taken_for_ours(shapes: dict[str, Shape], kind: str) -> None:
    found = identify_header(header_of(shapes))
    assert found.kind == kind
    assert not found.stored
    if kind == "unknown":
        assert found.coverage.unexplained == tuple(sorted(shapes))
        assert "no known format" in found.reasons[0]


def test_tensors_without_a_role_are_named(tmp_path: Path) -> None:
    path = write_dotted(
        tmp_path / "file", {f"unet.{BLOCK}.to_k": (1280, 768), "unet.mid_block.no_such": (5, 6)}
    )
    found = identify(path)
    assert found.kind == "lora"
    assert (found.coverage.explained, found.coverage.total) == (2, 4)
    assert found.coverage.unexplained == (
        "unet.mid_block.no_such.lora_A.weight",
        "unet.mid_block.no_such.lora_B.weight",
    )
    assert found.confidence <= 0.5


def test_half_of_a_module_is_unexplained() -> None:
    found = identify_header(
        header_of(
            {
                f"unet.{BLOCK}.to_k.lora_A.weight": (4, 768),
                f"unet.{BLOCK}.to_v.lora_A.weight": (4, 768),
                f"unet.{BLOCK}.to_v.lora_B.weight": (1280, 4),
            }
        )
    )
    assert found.coverage.unexplained == (f"unet.{BLOCK}.to_k.lora_A.weight",)
    assert any("its other half" in reason for reason in found.reasons)


def test_module_that_is_spelled_twice_is_not_taken_twice() -> None:
    first, second = (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    )
    shapes: dict[str, Shape] = {}
    for stem in (first, second):
        shapes |= {f"{stem}.lora_down.weight": (4, 768), f"{stem}.lora_up.weight": (3072, 4)}
    found = identify_header(header_of(shapes))
    assert len(found.coverage.unexplained) == 2


@pytest.mark.parametrize(
    "suffix", ["hada_w1_a", "lokr_w1", "lokr_w1_a", "oft_blocks", "dora_scale", "diff", "w_norm"]
)
def test_other_algorithms_are_named(suffix: str) -> None:
    found = identify_header(header_of({f"lora_unet_conv_in.{suffix}": (4, 4)}))
    assert found.kind == "lora"
    assert found.algorithms
    assert "lora" not in found.algorithms


SHAPE_MAPS = {
    "flux_lora_kohya_format": ("lora", "kohya", "flux", 912),
    "flux_lora_diffusers_format": ("lora", "diffusers", "flux", 988),
    "flux_lora_diffusers_base_model_format": ("lora", "peft", "flux", 762),
    "flux_lora_aitoolkit_format": ("lora", "ai_toolkit", "flux", 456),
    "xlabs_flux_ip_adapter": ("ip_adapter", "xlabs", "flux", 80),
    "flux_lora_xlabs_format": ("lora", "xlabs", "flux", 24),
    "krea2_lora_kohya_format": ("lora", "kohya", "krea2", 120),
}


@pytest.mark.parametrize("name", SHAPE_MAPS)
def test_published_key_sets_are_known(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    shapes = {key: tuple(shape) for key, shape in json.loads(path.read_text(encoding="utf-8")).items()}
    found = identify_header(header_of(shapes))
    kind, dialect, family, count = SHAPE_MAPS[name]
    assert (found.kind, found.dialect, found.family, found.coverage.total) == (kind, dialect, family, count)
    assert found.coverage.complete


def test_real_embedding_is_known() -> None:
    found = identify(GOLDEN / "emb_params_5x768.safetensors")
    assert (found.kind, found.dialect, found.family) == ("embedding", "kohya_emb_params", "sd1")


def test_real_pickle_is_identified_without_being_run() -> None:
    path = SHARED / "cat_toy_learned_embeds.bin"
    if not path.exists():
        pytest.skip("cat_toy_learned_embeds.bin is in ../shared/fixtures only, which is absent here")
    found = identify(path)
    assert (found.kind, found.family) == ("embedding", "sd1")
    assert found.triggers == ("<cat-toy>",)


def test_json_has_the_agreed_shape(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"emb_params": ones(5, 768)})
    document = identify(tmp_path / "file").to_json()
    assert {"kind", "dialect", "family", "confidence", "reasons", "coverage"} <= document.keys()
    assert document["coverage"] == {"explained": 1, "total": 1, "unexplained": []}
    assert json.loads(json.dumps(document)) == document


def test_rows_of_the_table_are_distinct_and_of_known_kinds() -> None:
    assert len({row.id for row in FORMATS}) == len(FORMATS)
    for row in FORMATS:
        assert row.title
        assert (row.read is not None) == (row.stored_kind is not None)
        assert row.stored_kind is None or (row.kind == row.stored_kind and row.kind in KIND_BY_ID)


def test_large_file_is_identified_from_its_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    width = 13 << 20
    head = json.dumps(
        {
            f"{stem}.lora_down.weight": {"dtype": "F32", "shape": [1, width], "data_offsets": [0, 4 * width]},
            f"{stem}.lora_up.weight": {
                "dtype": "F32",
                "shape": [width, 1],
                "data_offsets": [4 * width, 8 * width],
            },
        }
    ).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 8 * width)
    assert path.stat().st_size > 100 << 20
    identify(path)
    tracemalloc.start()
    started = time.perf_counter()
    found = identify(path)
    seconds = time.perf_counter() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.kind == "lora"
    assert peak_bytes < 1 << 20
    assert seconds < 0.5


words = st.text(st.sampled_from("lora_unet.downABweightemb_params<>*/0178 attn2"), min_size=1, max_size=30)
infos = st.builds(
    TensorInfo,
    st.sampled_from(["F32", "F16", "I64"]),
    st.lists(st.integers(0, 2048), max_size=5).map(tuple),
    st.just(0),
    st.just(0),
)
known = st.sampled_from(
    [
        f"lora_unet_{BLOCK.replace('.', '_')}_to_k",
        f"unet.{BLOCK}.to_k",
        f"base_model.model.{BLOCK}.to_k",
        "lora_unet_output_blocks_11_1_proj_in",
        "x",
    ]
)
suffixes = st.sampled_from(
    [".lora_down.weight", ".lora_up.weight", ".alpha", ".lora_A.weight", ".hada_w1_a", "", ".delta"]
)


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.dictionaries(
        st.one_of(words, st.builds(lambda stem, end: stem + end, known, suffixes)), infos, max_size=8
    ),
    metadata=st.dictionaries(
        st.sampled_from(["ss_base_model_version", "modelspec.architecture", "conceptry.kind"]), words
    ),
)
def test_any_names_and_shapes_get_an_answer(tensors: dict[str, TensorInfo], metadata: dict[str, str]) -> None:
    found = identify_header(Header(tensors, metadata, 0, 0))
    assert found.coverage.explained + len(found.coverage.unexplained) == found.coverage.total == len(tensors)
    assert 0 <= found.confidence <= 1
    json.dumps(found.to_json())


def test_header_alone_gives_the_answer_of_the_file(tmp_path: Path) -> None:
    path = write_dotted(tmp_path / "file", {f"unet.{BLOCK}.to_k": (1280, 768)})
    assert identify(path) == identify_header(read_header(path))
