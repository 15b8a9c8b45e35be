"""A file of several concepts, a concept of several files, and models that are kept as what differs from their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.bases import ComponentName
from conceptry.concepts import open_concept
from conceptry.errors import (
    ConceptryError,
    IncompatibleError,
    InvalidFileError,
    MissingAnswerError,
    UsageError,
)
from conceptry.formats.embedding import EmbeddingContents, read_embedding
from conceptry.formats.embedding_rows import list_layers
from conceptry.formats.full import read_full
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base, plan_import, split_plan
from conceptry.formats.importing import import_file, write_import
from conceptry.formats.lora import read_lora
from conceptry.formats.tensors import RawTensor, read_tensors, write_tensors
from conceptry.manifest import EmbeddingMethod, FullMethod
from conceptry.names import ConceptName, Placeholder, parse_version
from tests.formats.adapters import factors, write_dotted, write_kohya

IMP, CAT = Placeholder("<imp>"), Placeholder("<cat>")
TO_K = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT, TEXT_2 = ComponentName("text_encoder"), ComponentName("text_encoder_2")


def settings(**changes: Any) -> ImportSettings:
    return ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), **changes)


def rows(*shape: int, seed: int = 0) -> RawTensor:
    return RawTensor.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def write(path: Path, tensors: dict[str, RawTensor], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, metadata)
    return path


# --- several files, one concept ------------------------------------------------------------------------------------


def test_two_halves_of_an_sdxl_embedding_become_one(tmp_path: Path) -> None:
    narrow, wide = rows(2, 768), rows(2, 1280)
    first = write(tmp_path / "learned_embeds.safetensors", {IMP: narrow})
    second = write(tmp_path / "learned_embeds_2.safetensors", {IMP: wide})
    manifest = import_file([first, second], tmp_path / "package", settings())
    assert manifest.builds[0].base.family == "sdxl"
    assert [(token.placeholder, token.vectors) for token in manifest.tokens] == [(IMP, 2)]
    kept = read_embedding(tmp_path / "package" / "embedding.safetensors").rows
    assert kept == {(TEXT, IMP): narrow, (TEXT_2, IMP): wide}
    assert len(manifest.builds[0].provenance.derived_from) == 1


PAIRS: dict[str, tuple[tuple[str, int, int], tuple[str, int, int], str]] = {
    "different words": ((IMP, 1, 768), (CAT, 1, 1280), "no pair"),
    "two halves of the same encoder": ((IMP, 1, 768), (IMP, 1, 768), "as another file does"),
}


@pytest.mark.parametrize(("one", "other", "expected"), PAIRS.values(), ids=PAIRS.keys())
def test_halves_that_are_no_pair_are_refused(
    one: tuple[str, int, int], other: tuple[str, int, int], expected: str, tmp_path: Path
) -> None:
    paths = [
        write(tmp_path / name, {word: rows(count, width)})
        for name, (word, count, width) in (("a", one), ("b", other))
    ]
    with pytest.raises(IncompatibleError, match=expected) as caught:
        import_file(paths, tmp_path / "package", settings(base=declare_base("sdxl")))
    assert caught.value.exit_code == 6
    assert not (tmp_path / "package").exists()


def test_halves_with_different_numbers_of_rows_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", {IMP: rows(1, 768)}), write(tmp_path / "b", {IMP: rows(2, 1280)})]
    with pytest.raises(InvalidFileError, match="vectors"):
        import_file(paths, tmp_path / "package", settings())


def test_pivotal_tuning_is_an_adapter_and_a_word_for_each_row(tmp_path: Path) -> None:
    adapter = write_dotted(tmp_path / "lora.safetensors", {TO_K: (1280, 2048)})
    clip_l, clip_g = rows(2, 768), rows(2, 1280)
    embedding = write(tmp_path / "x_emb.safetensors", {"clip_l": clip_l, "clip_g": clip_g})
    words = (Placeholder("<s0>"), Placeholder("<s1>"))
    manifest = import_file([adapter, embedding], tmp_path / "package", settings(row_placeholders=words))
    assert manifest.builds[0].kinds == ("lora", "embedding")
    assert [(token.placeholder, token.vectors) for token in manifest.tokens] == [("<s0>", 1), ("<s1>", 1)]
    kept = read_embedding(tmp_path / "package" / "embedding.safetensors").rows
    assert np.array_equal(kept[TEXT_2, words[1]].to_numpy(), clip_g.to_numpy()[1:])
    with pytest.raises(UsageError, match="2 rows"):
        plan_import([adapter, embedding], settings(row_placeholders=(*words, CAT)))


def test_adapters_for_two_bases_are_no_one_concept(tmp_path: Path) -> None:
    paths = [
        write_dotted(tmp_path / "a", {TO_K: (1280, 2048)}),
        write_dotted(tmp_path / "b", {TO_K: (1280, 768)}),
    ]
    with pytest.raises(IncompatibleError, match="no one concept"):
        plan_import(paths, settings())


def test_folder_of_peft_with_a_network_each_is_one_adapter(tmp_path: Path) -> None:
    for name, module, shape in (
        ("unet", TO_K.removeprefix("unet."), (1280, 768)),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", (3072, 768)),
    ):
        folder = tmp_path / "adapter" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}), encoding="utf-8")
        write_dotted(folder / "adapter_model.safetensors", {f"base_model.model.{module}": shape})
    manifest = import_file(tmp_path / "adapter", tmp_path / "package", settings())
    modules = read_lora(tmp_path / "package" / "lora.safetensors").modules
    assert set(modules) == {TO_K, "text_encoder.text_model.encoder.layers.0.mlp.fc1"}
    assert {module.scale for module in modules.values()} == {3.0}
    assert manifest.builds[0].base.family == "sd1"


# --- one file, several concepts ------------------------------------------------------------------------------------


def write_bundle(path: Path) -> Path:
    tensors = dict(read_tensors(write_kohya(path, {TO_K: (1280, 768)})))
    return write(
        path, {**tensors, "bundle_emb.first.emb_params": rows(2, 768), "<second>": rows(768, seed=1)}
    )


def test_words_inside_an_adapter_are_a_part_of_its_concept(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "file")
    assert identify(path).coverage.complete
    manifest = import_file(path, tmp_path / "package", settings(placeholder=IMP))
    assert manifest.builds[0].kinds == ("lora", "embedding")
    assert {token.placeholder: token.vectors for token in manifest.tokens} == {
        "first": 2,
        "<second>": 1,
        IMP: 0,
    }
    assert open_concept(tmp_path / "package").digest == manifest.digest


def test_a_bundle_can_be_split_into_its_concepts(tmp_path: Path) -> None:
    plans = split_plan(plan_import(write_bundle(tmp_path / "file"), settings(placeholder=IMP)))
    assert [str(plan.settings.name) for plan in plans] == ["me/imp", "me/imp-first", "me/imp-second"]
    manifests = [write_import(plan, tmp_path / str(number)) for number, plan in enumerate(plans)]
    assert [manifest.builds[0].kinds for manifest in manifests] == [("lora",), ("embedding",), ("embedding",)]
    assert [[token.placeholder for token in one.tokens] for one in manifests] == [
        [IMP],
        ["first"],
        ["<second>"],
    ]


# --- the word of a file that names none ----------------------------------------------------------------------------


def test_a_trigger_phrase_of_one_word_is_the_word_and_that_is_said(tmp_path: Path) -> None:
    said = {"modelspec.trigger_phrase": "<blue-imp>"}
    path = write(tmp_path / "file", {"emb_params": rows(2, 768)}, **said)
    plan = plan_import(path, settings())
    assert [(token.placeholder, token.vectors) for token in plan.tokens] == [("<blue-imp>", 2)]
    assert "the word is <blue-imp>, the trigger phrase of the file's metadata" in plan.notes
    [chosen] = plan_import(path, settings(placeholder=CAT)).tokens
    assert chosen.placeholder == CAT


@pytest.mark.parametrize("phrase", ["imp, blue fur", "blue imp", "", "x" * 65, "im\x07p"])
def test_a_trigger_phrase_that_is_not_one_word_is_asked_about(phrase: str, tmp_path: Path) -> None:
    said = {"modelspec.trigger_phrase": phrase}
    path = write(tmp_path / "file", {"emb_params": rows(2, 768)}, **said)
    with pytest.raises(MissingAnswerError, match="does not say which word"):
        plan_import(path, settings())


# --- a row for each layer ------------------------------------------------------------------------------------------


IN, OUT = (
    ("IN01", "IN02", "IN04", "IN05", "IN07", "IN08"),
    tuple(f"OUT{number:02}" for number in range(3, 12)),
)
XTI = (*IN, "MID", *OUT)


@pytest.mark.parametrize("dialect", ["xti", "p_plus", "ed"])
def test_rows_for_each_layer_keep_the_order_in_which_a_picture_passes_them(
    dialect: str, tmp_path: Path
) -> None:
    layers = rows(16, 768)
    each = [RawTensor.from_numpy(row) for row in layers.to_numpy()]
    tensors = {
        "xti": dict(zip(XTI, each, strict=True)),
        "p_plus": {f"{IMP}-{number}": row for number, row in enumerate(each)},
        "ed": {f"params.new_concept_embedding.{IMP}": layers},
    }[dialect]
    manifest = import_file(write(tmp_path / "file", tensors), tmp_path / "package", settings(placeholder=IMP))
    contents = read_embedding(tmp_path / "package" / "embedding_layers.safetensors")
    assert contents == EmbeddingContents(
        rows={(TEXT, IMP): layers.reshape((16, 1, 768))}, layers=list_layers()
    )
    method = manifest.builds[0].parts[0].method
    assert method == EmbeddingMethod(components=("text_encoder",), layers=list_layers())


def test_vectors_that_no_kind_holds_are_named_and_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file", {"emp_params": rows(2, 768), "emp_params_out": rows(2, 768)})
    assert identify(path).coverage.complete
    with pytest.raises(InvalidFileError, match="output of the text encoder"):
        import_file(path, tmp_path / "package", settings(placeholder=IMP))


@pytest.mark.parametrize(
    ("tensors", "given", "option"),
    [
        ({"emb_params": rows(1, 768)}, {}, "placeholder"),
        ({"emb_params": rows(1, 999)}, {"placeholder": IMP}, "base"),
    ],
)
def test_what_only_the_caller_can_know_is_asked_for(
    tensors: dict[str, RawTensor], given: dict[str, Any], option: str, tmp_path: Path
) -> None:
    with pytest.raises(MissingAnswerError) as caught:
        plan_import(write(tmp_path / "file", tensors), settings(**given))
    assert caught.value.option == option


# --- new weights ---------------------------------------------------------------------------------------------------


def test_custom_diffusion_is_kept_as_new_weights_and_its_words(tmp_path: Path) -> None:
    stem = TO_K.removeprefix("unet.").removesuffix(".to_k")
    key, value = rows(1280, 768), rows(1280, 768, seed=1)
    weights = write(
        tmp_path / "weights",
        {
            f"{stem}.processor.to_k_custom_diffusion.weight": key,
            f"{stem}.processor.to_v_custom_diffusion.weight": value,
        },
    )
    word = write(tmp_path / "<new1>.safetensors", {"<new1>": rows(768)})
    manifest = import_file([weights, word], tmp_path / "package", settings(base=declare_base("sd1")))
    assert manifest.builds[0].kinds == ("embedding", "full")
    kept = read_full(tmp_path / "package" / "unet.safetensors").tensors
    assert kept == {f"{stem}.to_k.weight": key, f"{stem}.to_v.weight": value}


BLOCK = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
PUBLISHED = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def write_model(path: Path, *, seed: int, dtype: type = np.float32) -> Path:
    def cast(tensor: RawTensor) -> RawTensor:
        return RawTensor.from_numpy(tensor.to_numpy().astype(dtype))

    return write(
        path,
        {
            f"model.diffusion_model.{BLOCK}": cast(rows(320, 768, seed=seed)),
            "model.diffusion_model.out.2.weight": cast(rows(4, 320, 3, 3)),
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": cast(rows(768)),
            "first_stage_model.decoder.conv_in.weight": cast(rows(4, 4, 3, 3)),
        },
    )


def test_whole_model_is_kept_as_what_differs_from_its_base(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.safetensors", seed=0)
    model = write_model(tmp_path / "model.safetensors", seed=5, dtype=np.float16)
    found = identify(model)
    assert (found.kind, found.dialect, found.family) == ("full", "checkpoint", "sd1")
    plan = plan_import(model, settings(base=declare_base("sd1"), base_path=base, placeholder=IMP))
    manifest = write_import(plan, tmp_path / "package")
    kept = read_full(tmp_path / "package" / "unet.safetensors").tensors
    assert list(kept) == [PUBLISHED]
    method = manifest.builds[0].parts[0].method
    assert method == FullMethod(components=("unet",), changed_tensors=1, total_tensors=3)
    assert any("not kept" in note for note in plan.notes)


def test_whole_model_without_a_base_on_this_machine_is_asked_for_one(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", seed=5)
    with pytest.raises(UsageError, match="differs from its base"):
        plan_import(model, settings(base=declare_base("sd1")))


def test_model_that_is_its_base_in_another_precision_has_nothing_to_keep(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.safetensors", seed=0)
    copy = write_model(tmp_path / "copy.safetensors", seed=0, dtype=np.float16)
    with pytest.raises(IncompatibleError, match="nothing in"):
        plan_import(copy, settings(base=declare_base("sd1"), base_path=base))


def test_diffusers_folder_is_compared_with_a_base_in_one_file(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.safetensors", seed=0)
    folder = tmp_path / "model"
    changed = rows(320, 768, seed=9)
    write(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        {PUBLISHED: changed, "conv_out.weight": rows(4, 320, 3, 3)},
    )
    write(folder / "text_encoder" / "model.safetensors", {"text_model.final_layer_norm.weight": rows(768)})
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    assert identify(folder).kind == "full"
    import_file(folder, tmp_path / "package", settings(base=declare_base("sd1"), base_path=base))
    assert read_full(tmp_path / "package" / "unet.safetensors").tensors == {PUBLISHED: changed}


def test_fused_attention_of_the_second_encoder_is_cut_into_its_three_layers(tmp_path: Path) -> None:
    def model(path: Path, seed: int) -> Path:
        stem = "conditioner.embedders.1.model"
        fused = rows(3 * 8, 8, seed=1).to_numpy().copy()
        fused[8:16] += seed
        return write(
            path,
            {
                f"{stem}.transformer.resblocks.0.attn.in_proj_weight": RawTensor.from_numpy(fused),
                f"{stem}.text_projection": rows(8, 4, seed=seed),
            },
        )

    base, tuned = model(tmp_path / "base.safetensors", 0), model(tmp_path / "model.safetensors", 3)
    import_file(tuned, tmp_path / "package", settings(base=declare_base("sdxl"), base_path=base))
    kept = read_full(tmp_path / "package" / "text_encoder_2.safetensors").tensors
    # Only the keys were trained; the projection lies the other way round in the published folder.
    assert set(kept) == {"text_model.encoder.layers.0.self_attn.k_proj.weight", "text_projection.weight"}
    assert kept["text_projection.weight"].shape == (4, 8)


def test_nothing_is_left_behind_where_an_adapter_lost_a_half(tmp_path: Path) -> None:
    down, _ = factors((1280, 768), 4, 0)
    path = write(tmp_path / "file", {f"{TO_K}.lora_A.weight": down})
    with pytest.raises(ConceptryError, match="other half") as caught:
        import_file(path, tmp_path / "package", settings(placeholder=IMP, base=declare_base("sd1")))
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == [path]
