"""Importing keeps every tensor and says what it decided, or refuses and leaves nothing behind."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from conceptry.bases import ComponentName
from conceptry.concepts import open_concept
from conceptry.digests import Digest
from conceptry.errors import (
    ConceptryError,
    ConflictError,
    IncompatibleError,
    InvalidFileError,
    NotFoundError,
    UsageError,
)
from conceptry.formats.embedding import EmbeddingContents, read_embedding
from conceptry.formats.header import read_header
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import
from conceptry.formats.importing import import_file
from conceptry.formats.lora import LoraContents, LoraModule, read_lora
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from conceptry.manifest import EmbeddingMethod, LoraMethod, Manifest
from conceptry.names import ConceptName, Placeholder, parse_version
from tests.formats.adapters import (
    GOLDEN,
    Shape,
    factors,
    list_modules,
    number,
    write_dotted,
    write_kohya,
)

IMP = Placeholder("<blue-imp>")
BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn2"
TO_K = f"unet.{BLOCK}.to_k"
FLAT_TO_K = f"lora_{TO_K.replace('.', '_')}"


def settings(**changes: Any) -> ImportSettings:
    given: dict[str, Any] = {"name": ConceptName("me", "imp"), "version": parse_version("1.0.0"), **changes}
    return ImportSettings(**given)


def import_lora(path: Path, **changes: Any) -> tuple[LoraContents, Manifest]:
    folder = path.parent / "package"
    manifest = import_file(path, folder, settings(**changes))
    return read_lora(folder / "lora.safetensors"), manifest


def method_of(manifest: Manifest) -> Any:
    return manifest.builds[0].parts[0].method


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_factor_of_a_complete_adapter_is_kept_bit_for_bit(family: str, tmp_path: Path) -> None:
    modules = list_modules(family)
    path = write_kohya(tmp_path / "file.safetensors", modules)
    contents, manifest = import_lora(path, placeholder=IMP)
    given = read_tensors(path)
    kept = [bytes(tensor.data) for module in contents.modules.values() for tensor in (module.down, module.up)]
    sent = [bytes(tensor.data) for name, tensor in given.items() if not name.endswith(".alpha")]
    assert sorted(kept) == sorted(sent)
    assert {module.scale for module in contents.modules.values()} == {0.5}
    assert method_of(manifest) == LoraMethod(variant="locon", rank=1, modules=len(modules), scale=0.5)
    assert manifest.builds[0].base.family == family


def test_package_is_a_concept_that_opens(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "file.safetensors", {TO_K: (1280, 768)})
    import_lora(path, placeholder=IMP, superclass="creature", license="CC0-1.0", title="Blue imp")
    concept = open_concept(tmp_path / "package")
    manifest = concept.manifest
    assert manifest.tokens[0].placeholder == IMP
    assert (manifest.tokens[0].vectors, manifest.tokens[0].superclass) == (0, "creature")
    assert manifest.license.spdx == "CC0-1.0"
    provenance = manifest.builds[0].provenance
    assert (provenance.source, provenance.imported_from) == ("imported", Digest.of_file(path))
    metadata = read_header(concept.locate(manifest.builds[0].parts[0].files[0])).metadata
    assert metadata["modelspec.title"] == "Blue imp"
    assert metadata["modelspec.trigger_phrase"] == IMP
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_same_file_gives_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_kohya(tmp_path / "a" / "one.safetensors", {TO_K: (1280, 768)})
    second = write_kohya(tmp_path / "b" / "two.bin", {TO_K: (1280, 768)})
    assert import_lora(first)[1].digest == import_lora(second)[1].digest


def test_blocks_of_the_original_network_get_their_published_names(tmp_path: Path) -> None:
    original = "lora_unet_output_blocks_5_1_transformer_blocks_0_attn2_to_k"
    down, up = factors((640, 2048), 4, 0)
    write_tensors(
        tmp_path / "file",
        {
            f"{original}.lora_down.weight": down,
            f"{original}.lora_up.weight": up,
            f"{original}.alpha": number(1),
        },
    )
    contents, _ = import_lora(tmp_path / "file")
    name = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
    assert contents.modules == {name: LoraModule.of_factors(down=down, up=up, alpha=1.0)}


SPELLINGS: dict[str, tuple[str, Shape, tuple[str, str], str]] = {
    "diffusers": (TO_K, (1280, 768), (".lora_A.weight", ".lora_B.weight"), TO_K),
    "processors": (
        f"unet.{BLOCK}.processor.to_out",
        (1280, 1280),
        ("_lora.down.weight", "_lora.up.weight"),
        f"unet.{BLOCK}.to_out.0",
    ),
    "PEFT": (f"base_model.model.{BLOCK}.to_k", (1280, 768), (".lora_A.weight", ".lora_B.weight"), TO_K),
    "PEFT, text encoder": (
        "base_model.model.encoder.layers.0.mlp.fc1",
        (3072, 768),
        (".lora_A.weight", ".lora_B.weight"),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    ),
    "PEFT, second text encoder": (
        "base_model.model.text_model.encoder.layers.0.mlp.fc1",
        (5120, 1280),
        (".lora_A.weight", ".lora_B.weight"),
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    ),
    "second text encoder": (
        "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
        (1280, 1280),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
    ),
    "the authors' own names": (
        "diffusion_model.double_blocks.3.img_attn.qkv",
        (9216, 3072),
        (".lora_A.weight", ".lora_B.weight"),
        "transformer.double_blocks.3.img_attn.qkv",
    ),
    "transformer": (
        "transformer.single_transformer_blocks.3.attn.to_q",
        (3072, 3072),
        (".lora_A.weight", ".lora_B.weight"),
        "transformer.single_transformer_blocks.3.attn.to_q",
    ),
}


@pytest.mark.parametrize(("written", "shape", "names", "expected"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_spelling_becomes_the_published_name(
    written: str, shape: Shape, names: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    path = write_dotted(tmp_path / "file", {written: shape}, names)
    family = "flux" if expected.startswith("transformer") else "sdxl" if "_2." in expected else "sd1"
    contents, _ = import_lora(path, base=declare_base(family))
    assert list(contents.modules) == [expected]


# --- scale ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "scale"), [(2.0, 0.5), (8.0, 2.0), (None, 1.0), (0.0, 1.0), (-4.0, -1.0)])
def test_scale_of_kohya_is_alpha_by_rank_and_one_where_alpha_is_missing(
    alpha: float | None, scale: float, tmp_path: Path
) -> None:
    path = write_kohya(tmp_path / "file", {TO_K: (1280, 768)}, rank=4, alpha=alpha)
    contents, manifest = import_lora(path)
    assert contents.modules[TO_K].scale == scale
    assert method_of(manifest).scale == scale
    notes = " ".join(plan_import(path, settings()).notes)
    assert ("alpha = rank" in notes) == (not alpha)


def test_ranks_and_scales_may_differ_between_modules(tmp_path: Path) -> None:
    tensors = {}
    for name, rank, alpha in ((f"{FLAT_TO_K}", 2, 1.0), (f"{FLAT_TO_K[:-1]}v", 8, 8.0)):
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = factors(
            (1280, 768), rank, rank
        )
        tensors[f"{name}.alpha"] = number(alpha)
    write_tensors(tmp_path / "file", tensors)
    contents, manifest = import_lora(tmp_path / "file")
    assert {module.rank: module.scale for module in contents.modules.values()} == {2: 0.5, 8: 1.0}
    assert (method_of(manifest).rank, method_of(manifest).scale) == (8, None)


@pytest.mark.parametrize(
    ("config", "scale", "rule"),
    [
        ({"lora_alpha": 8}, 4.0, "alpha/rank"),
        ({"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 1}}, 0.5, "alpha/rank"),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(2), "alpha/sqrt(rank)"),
    ],
)
@pytest.mark.parametrize("dialect", ["peft", "diffusers"])
def test_alpha_beside_the_tensors_is_used(
    dialect: str, config: dict[str, Any], scale: float, rule: str, tmp_path: Path
) -> None:
    if dialect == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, **config}), encoding="utf-8")
        path = write_dotted(tmp_path / "file", {f"base_model.model.{BLOCK}.to_k": (1280, 768)})
    else:
        text = json.dumps({f"unet.{key}": value for key, value in config.items()})
        path = write_dotted(tmp_path / "file", {TO_K: (1280, 768)}, lora_adapter_metadata=text)
    contents, manifest = import_lora(path)
    assert contents.modules[TO_K].scale == pytest.approx(scale, rel=1e-7)
    assert method_of(manifest).scale_rule == rule
    assert method_of(manifest).scale == contents.modules[TO_K].scale


# --- embeddings ----------------------------------------------------------------------------------------------------


def test_real_embedding_keeps_its_five_vectors(tmp_path: Path) -> None:
    path = GOLDEN / "emb_params_5x768.safetensors"
    manifest = import_file(path, tmp_path / "package", settings(placeholder=IMP, base=declare_base("sd1")))
    contents = read_embedding(tmp_path / "package" / "embedding.safetensors")
    assert contents.rows == {(ComponentName("text_encoder"), IMP): read_tensors(path)["emb_params"]}
    assert method_of(manifest) == EmbeddingMethod(components=("text_encoder",))
    assert manifest.tokens[0].vectors == 5


def test_sdxl_pair_becomes_rows_of_two_encoders(tmp_path: Path) -> None:
    tensors = {"clip_l": factors((2, 768), 768, 0)[1], "clip_g": factors((2, 1280), 1280, 1)[1]}
    write_tensors(tmp_path / "file", tensors)
    import_file(tmp_path / "file", tmp_path / "package", settings(placeholder=IMP))
    contents = read_embedding(tmp_path / "package" / "embedding.safetensors")
    assert contents == EmbeddingContents(
        rows={
            (ComponentName("text_encoder"), IMP): tensors["clip_l"],
            (ComponentName("text_encoder_2"), IMP): tensors["clip_g"],
        }
    )


def test_word_of_a_diffusers_embedding_is_its_tensor_name(tmp_path: Path) -> None:
    vector = RawTensor.from_numpy(np.ones(768, np.float32))
    write_tensors(tmp_path / "file", {"<cat-toy>": vector})
    manifest = import_file(tmp_path / "file", tmp_path / "1", settings())
    assert manifest.tokens[0].placeholder == "<cat-toy>"
    renamed = import_file(tmp_path / "file", tmp_path / "2", settings(placeholder=IMP))
    assert renamed.tokens[0].placeholder == IMP
    rows = read_embedding(tmp_path / "2" / "embedding.safetensors").rows
    assert rows[ComponentName("text_encoder"), IMP].shape == (1, 768)


def test_own_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "file", {TO_K: (1280, 768)})
    contents, _ = import_lora(path, placeholder=IMP)
    again = import_file(tmp_path / "package" / "lora.safetensors", tmp_path / "again", settings())
    assert read_lora(tmp_path / "again" / "lora.safetensors") == contents
    assert [token.placeholder for token in again.tokens] == [IMP]


# --- what is said, and what is refused -----------------------------------------------------------------------------


def test_licence_comes_from_the_caller_else_from_the_file(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "file", {TO_K: (1280, 768)}, {"modelspec.license": "CreativeML OpenRAIL-M"})
    assert plan_import(path, settings()).license.name == "CreativeML OpenRAIL-M"
    assert plan_import(path, settings(license="MIT")).license.spdx == "MIT"
    bare = write_kohya(tmp_path / "bare", {TO_K: (1280, 768)})
    assert "states no licence" in " ".join(plan_import(bare, settings()).notes)


def test_words_of_the_metadata_are_optional_tokens(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "file", {TO_K: (1280, 768)}, {"modelspec.trigger_phrase": "imp, blue fur"})
    tokens = plan_import(path, settings()).tokens
    assert [(token.placeholder, token.role) for token in tokens] == [
        ("imp", "optional"),
        ("blue fur", "optional"),
    ]


def nan_kohya(path: Path) -> Path:
    write_kohya(path, {TO_K: (1280, 768)}, rank=4)
    data = bytearray(path.read_bytes())
    info, header = read_header(path).tensors[f"{FLAT_TO_K}.lora_up.weight"], read_header(path)
    data[header.data_start + info.start + 1] |= 0x7C
    path.write_bytes(data)
    return path


def half_kohya(path: Path) -> Path:
    tensors = dict(read_tensors(write_kohya(path, {TO_K: (1280, 768), TO_K[:-1] + "v": (1280, 768)})))
    del tensors[f"{FLAT_TO_K}.lora_up.weight"]
    write_tensors(path, tensors)
    return path


def other_algorithm(path: Path) -> Path:
    tensors = {**read_tensors(write_kohya(path, {TO_K: (1280, 768)})), f"{FLAT_TO_K}.dora_scale": number(1.0)}
    write_tensors(path, tensors)
    return path


def ranks_that_differ(path: Path) -> Path:
    down, up = factors((1280, 768), 4, 0)[0], factors((1280, 768), 3, 0)[1]
    write_tensors(path, {f"{TO_K}.lora_A.weight": down, f"{TO_K}.lora_B.weight": up})
    return path


def several_alphas(path: Path) -> Path:
    tensors = dict(read_tensors(write_kohya(path, {TO_K: (1280, 768)})))
    tensors[f"{FLAT_TO_K}.alpha"] = RawTensor.from_numpy(np.ones(2, np.float16))
    write_tensors(path, tensors)
    return path


def open_blocks(path: Path) -> Path:
    # Both the SD1 and the SDXL network have this block, and nothing else in the file tells which is meant.
    return write_kohya(path, {"unet.input_blocks.4.0.in_layers.2": (640, 320, 3, 3)})


def written(name: str, *shape: int) -> Any:
    def write(path: Path) -> Path:
        write_tensors(path, {name: RawTensor.from_numpy(np.ones(shape, np.float32))})
        return path

    return write


def empty(path: Path) -> Path:
    path.touch()
    return path


def lora_of(modules: dict[str, Shape]) -> Any:
    return lambda path: write_dotted(path, modules)


REFUSALS: dict[str, tuple[Any, dict[str, Any], type[ConceptryError], str]] = {
    "NaN": (nan_kohya, {}, InvalidFileError, "NaN"),
    "a half": (half_kohya, {}, InvalidFileError, "other half"),
    "a magnitude of no axis": (other_algorithm, {}, InvalidFileError, "axis"),
    "ranks": (ranks_that_differ, {}, InvalidFileError, "ranks"),
    "alpha of two numbers": (several_alphas, {}, InvalidFileError, "not one number"),
    "an unknown module": (
        lora_of({TO_K: (1280, 768), "unet.no.such": (4, 4)}),
        {},
        InvalidFileError,
        "unet.no.such.lora_A.weight",
    ),
    "blocks of an open family": (open_blocks, {"base": declare_base("sd3")}, InvalidFileError, "unet_ldm"),
    "another family": (
        lora_of({TO_K: (1280, 768)}),
        {"base": declare_base("sdxl")},
        IncompatibleError,
        "is for sd1",
    ),
    "rows of another width": (
        written("emb_params", 2, 1024),
        {"base": declare_base("sd1"), "placeholder": IMP},
        IncompatibleError,
        "is for sd2",
    ),
    "rows of no encoder": (
        written("emb_params", 2, 1000),
        {"base": declare_base("sd1"), "placeholder": IMP},
        InvalidFileError,
        "1000",
    ),
    "a word that nobody says": (written("emb_params", 2, 768), {}, UsageError, "which word"),
    "a base that nobody says": (
        written("emb_params", 2, 1000),
        {"placeholder": IMP},
        UsageError,
        "which base",
    ),
    "a checkpoint": (
        written("model.diffusion_model.out.2.weight", 4, 320),
        {"base": declare_base("sd1")},
        UsageError,
        "whole model",
    ),
    "an unknown kind": (written("a.b.c", 3, 3, 3), {}, InvalidFileError, "no kind that is known"),
    "an empty file": (
        empty,
        {},
        InvalidFileError,
        "empty file",
    ),
    "no file": (lambda path: path, {}, NotFoundError, "no file"),
    "a licence without end": (
        lora_of({TO_K: (1280, 768)}),
        {"license": "x" * 999},
        UsageError,
        "200 characters",
    ),
}


@pytest.mark.parametrize(("make", "given", "error", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(
    make: Any, given: dict[str, Any], error: type[ConceptryError], expected: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "file")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error) as caught:
        import_file(path, tmp_path / "package", settings(**given))
    assert expected in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_declared_family_settles_what_the_file_leaves_open(tmp_path: Path) -> None:
    path = open_blocks(tmp_path / "file")
    for family, expected in (
        ("sd1", "down_blocks.1.resnets.0.conv1"),
        ("sdxl", "down_blocks.1.resnets.0.conv1"),
    ):
        contents = plan_import(path, settings(base=declare_base(family))).reading.contents[0]
        assert isinstance(contents, LoraContents)
        assert list(contents.modules) == [f"unet.{expected}"]


def test_stored_kinds_that_need_their_manifest_say_so(tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "unet.safetensors",
        {"conv_in.bias": number(1.0)},
        {"conceptry.kind": "full", "conceptry.schema": "1", "conceptry.component": "unet"},
    )
    with pytest.raises(UsageError, match=r"concept\.json"):
        plan_import(tmp_path / "unet.safetensors", settings())


def test_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "file", {TO_K: (1280, 768)})
    (tmp_path / "package").mkdir()
    with pytest.raises(ConflictError, match="exists already"):
        import_file(path, tmp_path / "package", settings())
    assert list((tmp_path / "package").iterdir()) == []


stems = st.sampled_from(
    [
        TO_K,
        f"{TO_K[:-1]}v",
        "base_model.model.conv_in",
        FLAT_TO_K,
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_te_x",
    ]
)
ends = st.sampled_from(
    [
        *(
            ".lora_A.weight",
            ".lora_B.weight",
            ".lora_down.weight",
            ".lora_up.weight",
            ".alpha",
            "_lora.up.weight",
        ),
        *(".lora_mid.weight", ".dora_scale", ".diff", ""),
    ]
)
singles = st.sampled_from(
    ["emb_params", "clip_l", "clip_g", "*", "<imp>", "text_encoder/<imp>", "i_star", "o_v/a"]
)
shapes = st.one_of(
    st.sampled_from(
        [(), (1,), (4, 768), (320, 4), (768,), (2, 1280), (4, 4, 3, 3), (320, 4, 1, 1), (0, 768)]
    ),
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
)
values = st.sampled_from([0.0, 1.0, -2.5, float("inf"), float("nan")])
configs = st.sampled_from(
    [
        "",
        "{}",
        "[]",
        "{",
        '{"unet.lora_alpha": 4}',
        '{"unet.lora_alpha": "x", "unet.alpha_pattern": 3}',
        '{"a": NaN}',
    ]
)


@example(
    tensors={f"{TO_K}.lora_A.weight": ((), 1.0), f"{TO_K}.lora_B.weight": ((), 1.0)},
    kind="",
    config="",
    family="sd1",
)
@hypothesis.settings(max_examples=150, deadline=None)
@given(
    tensors=st.dictionaries(
        st.one_of(st.builds(lambda stem, end: stem + end, stems, ends), singles),
        st.tuples(shapes, values),
        max_size=6,
    ),
    kind=st.sampled_from(["", "embedding", "lora", "rank_one", "full", "hypernetwork"]),
    config=configs,
    family=st.sampled_from([None, "sd1", "sdxl", "flux"]),
)
def test_any_tensors_are_imported_whole_or_refused_in_words(
    tensors: dict[str, tuple[Shape, float]], kind: str, config: str, family: str | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        metadata = {"lora_adapter_metadata": config} | (
            {"conceptry.kind": kind, "conceptry.schema": "1"} if kind else {}
        )
        arrays = {key: np.full(shape, value, np.float32) for key, (shape, value) in tensors.items()}
        save_file(arrays, path, metadata)
        base = declare_base(family) if family else None
        try:
            manifest = import_file(path, Path(name) / "package", settings(placeholder=IMP, base=base))
        except ConceptryError:
            assert list(Path(name).iterdir()) == [path]
            return
        assert open_concept(Path(name) / "package").digest == manifest.digest
        kept = sum(len(read_tensors(file)) for file in (Path(name) / "package").glob("*.safetensors"))
        assert kept >= len(tensors)
