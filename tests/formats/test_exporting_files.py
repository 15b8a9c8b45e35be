"""An export appears whole or not at all, and says beside a file what the program beside it shows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.bases import ComponentName
from conceptry.concepts import Concept, open_concept
from conceptry.errors import ConflictError, IncompatibleError, StoreError, UsageError
from conceptry.formats.embedding import EMBEDDING_NAME, EmbeddingContents, read_embedding, write_embedding
from conceptry.formats.export_files import write_export
from conceptry.formats.exporting import ExportPlan, ExportSettings, plan_export
from conceptry.formats.header import read_header
from conceptry.formats.import_plans import ImportSettings, plan_import
from conceptry.formats.importing import import_file
from conceptry.formats.lora import LORA_NAME, LoraContents, read_lora
from conceptry.formats.packages import describe_file
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.manifest import Manifest
from conceptry.names import ConceptName, Placeholder, parse_version
from tests.cli.packages import TO_Q, write_package

TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def imp(tmp_path: Path) -> Concept:
    """Give an adapter for two networks."""
    return open_concept(write_package(tmp_path / "imp", modules=(TO_Q, TEXT), usage={"strength": 0.8}))


def plan(concept: Concept, path: Path, target: str, **settings: Any) -> ExportPlan:
    return plan_export(concept, ExportSettings(target=target, path=path, **settings))


def make_words(folder: Path, family: str, words: dict[str, int], *, layers: int = 0) -> Concept:
    """Return a package with a row of each encoder for each word, as many vectors as asked for."""
    folder.mkdir()
    widths = {"sd1": {"text_encoder": 768}, "sdxl": {"text_encoder": 768, "text_encoder_2": 1280}}[family]
    rows = {
        (ComponentName(component), Placeholder(word)): RawTensor.from_numpy(
            np.full((*([layers] if layers else []), vectors, width), 0.5, np.float16)
        )
        for word, vectors in words.items()
        for component, width in widths.items()
    }
    names = tuple(f"layer{number}" for number in range(layers)) or None
    write_embedding(folder / EMBEDDING_NAME, EmbeddingContents(rows=rows, layers=names))
    file = describe_file(folder / EMBEDDING_NAME).model_dump(mode="json")
    method = {"kind": "embedding", "components": list(widths), "layers": names}
    base = {"family": family, "architecture": family, "prediction_type": "epsilon"}
    parts = [{"kind": "embedding", "method": method, "files": [file]}]
    manifest = Manifest.model_validate(
        {
            "schema": 1,
            "name": "me/words",
            "version": "1.0.0",
            "tokens": [{"placeholder": word, "vectors": vectors} for word, vectors in words.items()],
            "builds": [{"id": "one", "base": base, "parts": parts}],
        }
    )
    (folder / "concept.json").write_bytes(manifest.to_bytes())
    return open_concept(folder)


def test_a_failure_half_way_leaves_what_was_there(imp: Concept, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "text_encoder").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot write"):
        write_export(plan(imp, out, "peft"))
    assert [path.name for path in out.iterdir()] == ["text_encoder"]


def test_a_failure_half_way_gives_back_what_force_would_have_replaced(imp: Concept, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "unet").mkdir(parents=True)
    (out / "unet" / "adapter_model.safetensors").write_text("old", encoding="utf-8")
    (out / "text_encoder").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError):
        write_export(plan(imp, out, "peft", force=True))
    assert (out / "unet" / "adapter_model.safetensors").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in out.rglob("*")) == [
        "adapter_model.safetensors",
        "text_encoder",
        "unet",
    ]


def test_a_file_that_appears_meanwhile_is_not_replaced(imp: Concept, tmp_path: Path) -> None:
    planned = plan(imp, tmp_path / "x.safetensors", "kohya")
    (tmp_path / "x.safetensors").write_text("somebody's", encoding="utf-8")
    with pytest.raises(ConflictError):
        write_export(planned)
    assert (tmp_path / "x.safetensors").read_text(encoding="utf-8") == "somebody's"


def test_the_same_concept_gives_the_same_bytes(imp: Concept, tmp_path: Path) -> None:
    for target in ("diffusers", "kohya", "comfyui", "a1111"):
        first = write_export(plan(imp, tmp_path / f"{target}-1", target))
        again = write_export(plan(imp, tmp_path / f"{target}-2", target))
        assert [one.sha256 for one in first] == [one.sha256 for one in again]


def test_notes_beside_a_file_name_its_digests_and_its_word(imp: Concept, tmp_path: Path) -> None:
    write_export(plan(imp, tmp_path / "models", "a1111"))
    write_export(plan(imp, tmp_path / "loras", "comfyui"))
    path = tmp_path / "models" / "imp.safetensors"
    data = path.read_bytes()
    info = json.loads((tmp_path / "models" / "imp.civitai.info").read_text(encoding="utf-8"))
    assert info["trainedWords"] == ["<imp>"]
    assert info["baseModel"] == "SD 1.5"
    hashes = info["files"][0]["hashes"]
    assert hashes["SHA256"] == hashlib.sha256(data).hexdigest().upper()
    assert hashes["AutoV2"] == hashes["SHA256"][:10]
    assert hashes["AutoV3"] == hashlib.sha256(data[read_header(path).data_start :]).hexdigest()[:12].upper()
    managed = json.loads((tmp_path / "loras" / "imp.metadata.json").read_text(encoding="utf-8"))
    lora = tmp_path / "loras" / "imp.safetensors"
    assert managed["sha256"] == hashlib.sha256(lora.read_bytes()).hexdigest()
    assert managed["size"] == lora.stat().st_size
    assert managed["civitai"]["trainedWords"] == ["<imp>"]
    assert json.loads(managed["usage_tips"]) == {"strength": 0.8}


def test_a_file_says_its_base_in_the_keys_that_a1111_reads(imp: Concept, tmp_path: Path) -> None:
    write_export(plan(imp, tmp_path / "x.safetensors", "a1111"))
    said = read_header(tmp_path / "x.safetensors").metadata
    assert (said["ss_base_model_version"], said["ss_v2"], said["ss_network_dim"]) == ("sd_v1", "False", "2")
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert said["modelspec.trigger_phrase"] == "<imp>"


@pytest.mark.parametrize(
    ("family", "target", "files"),
    [
        ("sd1", "diffusers", {"learned_embeds.safetensors": {"<imp>": (3, 768)}}),
        ("sd1", "a1111", {"imp.safetensors": {"emb_params": (3, 768)}}),
        (
            "sdxl",
            "diffusers",
            {
                "learned_embeds.safetensors": {"<imp>": (3, 768)},
                "learned_embeds_2.safetensors": {"<imp>": (3, 1280)},
            },
        ),
        ("sdxl", "comfyui", {"imp.safetensors": {"clip_l": (3, 768), "clip_g": (3, 1280)}}),
        ("sdxl", "kohya", {"imp.safetensors": {"clip_l": (3, 768), "clip_g": (3, 1280)}}),
    ],
)
def test_rows_of_a_word_have_the_names_that_each_program_reads(
    tmp_path: Path, family: str, target: str, files: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    concept = make_words(tmp_path / "words", family, {"<imp>": 3})
    write_export(plan(concept, tmp_path / "out", target, sidecars=False))
    found = {
        path.name: {name: info.shape for name, info in read_header(path).tensors.items()}
        for path in (tmp_path / "out").iterdir()
    }
    assert found == files


def test_several_words_become_a_file_each(tmp_path: Path) -> None:
    concept = make_words(tmp_path / "words", "sd1", {"<s0>": 1, "<s1>": 2})
    written = write_export(plan(concept, tmp_path / "out", "a1111", sidecars=False))
    assert [one.path.name for one in written] == ["s0.safetensors", "s1.safetensors"]


def test_the_chosen_file_name_is_the_word_and_that_is_said(tmp_path: Path) -> None:
    concept = make_words(tmp_path / "words", "sd1", {"<imp>": 1})
    planned = plan(concept, tmp_path / "devil.safetensors", "a1111")
    assert "the word is the name of the file there: <imp> is called by 'devil'" in planned.warnings


def test_rows_for_each_layer_are_refused_with_the_reason(tmp_path: Path) -> None:
    concept = make_words(tmp_path / "words", "sd1", {"<imp>": 1}, layers=16)
    with pytest.raises(IncompatibleError, match="rows for each of 16 cross-attention layers"):
        plan(concept, tmp_path / "out", "diffusers")


def test_what_one_program_cannot_read_is_refused_with_one_that_can(tmp_path: Path) -> None:
    concept = make_words(tmp_path / "words", "sd1", {"<imp>": 1})
    with pytest.raises(IncompatibleError, match="peft reads no textual inversion") as caught:
        plan(concept, tmp_path / "out", "peft")
    assert caught.value.hint == "--for diffusers holds all of it"


def test_two_words_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    concept = make_words(tmp_path / "words", "sd1", {"<imp>": 1, "[Imp]": 1})
    with pytest.raises(UsageError, match=r"two files would be called 'imp\.safetensors'"):
        plan(concept, tmp_path / "out", "a1111")


def import_pivotal(folder: Path) -> Concept:
    """Return what importing a pivotal training of SDXL gives: an adapter, and the two words beside it."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> RawTensor:
        return RawTensor.from_numpy(generator.standard_normal(shape).astype(np.float32))

    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    factors = {f"{layer}.lora_A.weight": noise(4, 2048), f"{layer}.lora_B.weight": noise(640, 4)}
    rows = {"text_encoders_0": noise(2, 768), "text_encoders_1": noise(2, 1280)}
    paths = folder / "pytorch_lora_weights.safetensors", folder / "embeddings.safetensors"
    for path, tensors in zip(paths, (factors, rows), strict=True):
        write_tensors(path, tensors)
    settings = ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"))
    import_file(paths, folder / "package", settings)
    return open_concept(folder / "package")


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (
            "diffusers",
            {
                "pytorch_lora_weights.safetensors",
                *(f"s{word}{encoder}.safetensors" for word in (0, 1) for encoder in ("", "_2")),
            },
        ),
        ("comfyui", {"imp-lora.safetensors", "s0.safetensors", "s1.safetensors"}),
        ("kohya", {"imp-lora.safetensors", "s0.safetensors", "s1.safetensors"}),
    ],
)
def test_words_and_the_adapter_trained_with_them_are_exported_together(
    tmp_path: Path, target: str, names: set[str]
) -> None:
    concept = import_pivotal(tmp_path)
    files = write_export(plan(concept, tmp_path / "out", target, sidecars=False))
    assert {one.path.name for one in files} == names
    settings = ImportSettings(name=ConceptName("me", "again"), version=parse_version("1.0.0"))
    read: dict[Any, Any] = {}
    for one in files:
        word = one.path.stem.partition("_")[0]
        said = replace(settings, placeholder=Placeholder(f"<{word}>") if word in ("s0", "s1") else None)
        reading = plan_import(one.path, said).reading
        for contents in reading.contents:
            assert isinstance(contents, EmbeddingContents | LoraContents)
            read |= contents.rows if isinstance(contents, EmbeddingContents) else contents.modules
    kept = read_embedding(tmp_path / "package" / EMBEDDING_NAME).rows
    assert {key: tensor for key, tensor in read.items() if isinstance(key, tuple)} == kept
    assert [one for one in read if isinstance(one, str)] == list(
        read_lora(tmp_path / "package" / LORA_NAME).modules
    )


def test_the_picture_of_a_concept_is_laid_beside_its_file(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "imp")
    (folder / "blue.png").write_bytes(b"\x89PNG\r\n\x1a\n and a picture")
    document = json.loads((folder / "concept.json").read_bytes())
    picture = describe_file(folder / "blue.png", "preview").model_dump(mode="json")
    document["builds"][0]["parts"][0]["files"].insert(0, picture)
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
    concept = open_concept(folder)
    write_export(plan(concept, tmp_path / "models" / "devil.safetensors", "a1111"))
    beside = tmp_path / "models" / "devil.preview.png"
    assert beside.read_bytes() == (folder / "blue.png").read_bytes()
    write_export(plan(concept, tmp_path / "bare" / "devil.safetensors", "a1111", sidecars=False))
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["devil.safetensors"]
