"""Every adapter file and shape map that others made is identified rightly, wholly explained, and imported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.concepts import open_concept
from conceptry.formats.embedding import read_embedding
from conceptry.formats.header import Header, TensorInfo, read_header
from conceptry.formats.identify import identify, identify_header
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import import_file
from conceptry.formats.lora import read_lora
from conceptry.formats.tensors import RawTensor, write_tensors
from conceptry.names import ConceptName, Placeholder, parse_version
from tests.formats.adapters import GOLDEN

# file -> kind, dialect, family, tensors; the sources and licences are in tests/golden/formats/README.md.
FIXTURES: dict[str, tuple[str, str, str, int]] = {
    "flux_lora_aitoolkit_format.json": ("lora", "ai_toolkit", "flux", 456),
    "flux_lora_diffusers_base_model_format.json": ("lora", "peft", "flux", 762),
    "flux_lora_diffusers_format.json": ("lora", "diffusers", "flux", 988),
    "flux_lora_kohya_format.json": ("lora", "kohya", "flux", 912),
    "flux_lora_xlabs_format.json": ("lora", "xlabs", "flux", 24),
    "krea2_lora_kohya_format.json": ("lora", "kohya", "krea2", 120),
    "xlabs_flux_ip_adapter.json": ("ip_adapter", "xlabs", "flux", 80),
    "lora_disney.json": ("lora", "cloneofsimo", "sd1", 386),
    "emb_params_5x768.safetensors": ("embedding", "kohya_emb_params", "sd1", 1),
    "cat_toy_learned_embeds.bin": ("embedding", "diffusers", "sd1", 1),
}
STORED = [name for name, row in FIXTURES.items() if row[0] in ("lora", "embedding")]


def load_shapes(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    document = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    shapes = document.get("shapes", document)
    return {key: tuple(shape) for key, shape in shapes.items()}, document.get("metadata", {})


def write_file(name: str, folder: Path) -> Path:
    """Return the fixture, or a file of its names and shapes with numbers that tell each tensor from every other."""
    if not name.endswith(".json"):
        return GOLDEN / name
    shapes, metadata = load_shapes(name)
    tensors = {
        key: RawTensor.from_numpy(np.full(shape, (number % 997 + 1) / 8, np.float16))
        for number, (key, shape) in enumerate(shapes.items())
    }
    write_tensors(folder / "file.safetensors", tensors, metadata)
    return folder / "file.safetensors"


def settings(**changes: Any) -> ImportSettings:
    return ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), **changes)


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_is_what_the_table_says(name: str) -> None:
    if name.endswith(".json"):
        shapes, metadata = load_shapes(name)
        tensors = {key: TensorInfo("F16", shape, 0, 0) for key, shape in shapes.items()}
        found = identify_header(Header(tensors, metadata, 0, 0))
    else:
        found = identify(GOLDEN / name)
    assert (found.kind, found.dialect, found.family, found.coverage.total) == FIXTURES[name]
    assert found.coverage.unexplained == ()


@pytest.mark.parametrize(
    "name",
    [
        # Hundreds of megabytes of factors: the header tests cover them in the quick run.
        pytest.param(name, marks=pytest.mark.slow) if FIXTURES[name][3] > 400 else name
        for name in STORED
    ],
)
def test_fixture_of_a_stored_kind_is_imported_with_every_number(name: str, tmp_path: Path) -> None:
    path = write_file(name, tmp_path)
    family = FIXTURES[name][2]
    manifest = import_file(
        path, tmp_path / "package", settings(placeholder=Placeholder("<imp>"), base=declare_base(family))
    )
    concept = open_concept(tmp_path / "package")
    assert concept.digest == manifest.digest
    kept = sum(
        math.prod(info.shape)
        for part in manifest.builds[0].parts
        for file in part.files
        for key, info in read_header(concept.locate(file)).tensors.items()
        if not key.endswith(".alpha")
    )
    if name.endswith(".json"):
        shapes, _ = load_shapes(name)
        assert kept == sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(".alpha"))


def test_positions_of_a_real_adapter_are_its_modules(tmp_path: Path) -> None:
    path = write_file("lora_disney.json", tmp_path)
    manifest = import_file(path, tmp_path / "package", settings(base=declare_base("sd1")))
    assert manifest.builds[0].kinds == ("lora", "embedding")
    assert [token.placeholder for token in manifest.tokens] == ["<s1>", "<s2>"]
    modules = read_lora(tmp_path / "package" / "lora.safetensors").modules
    assert len(modules) == 192
    assert {module.scale for module in modules.values()} == {1.0}
    # The fifth module that the program met reads 320 and writes 2560: it is the gate of the first block.
    gate = modules["unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"]
    assert (gate.down.shape, gate.up.shape) == ((1, 320), (2560, 1))
    reads_text = modules["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    assert reads_text.down.shape == (1, 768)
    rows = read_embedding(tmp_path / "package" / "embedding.safetensors").rows
    assert {word for _, word in rows} == {"<s1>", "<s2>"}
