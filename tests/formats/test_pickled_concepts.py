"""Pickles that training programs write, saved by torch itself: identified, and imported where their kind is stored."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from pathlib import Path
from typing import Any

import torch

from conceptry.digests import Digest
from conceptry.errors import MissingAnswerError
from conceptry.formats.embedding import EMBEDDING_NAME, read_embedding
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import LAYERED_NAME, import_file
from conceptry.formats.lora import read_lora
from conceptry.names import ConceptName, Placeholder, parse_version

IMP = Placeholder("<imp>")
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def settings(**changes: Any) -> ImportSettings:
    return ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), **changes)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def save_a1111(path: Path, rows: torch.Tensor) -> Path:
    """Write what the training tab of A1111 writes, with the checkpoint that it was trained on."""
    document = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows},
        "name": "blue-imp",
        "step": 1499,
        "sd_checkpoint": "cc6cb27103",
        "sd_checkpoint_name": "v1-5-pruned-emaonly",
    }
    torch.save(document, path)
    return path


def save_ed_lora(path: Path, rows: torch.Tensor) -> Path:
    """Write what Mix-of-Show writes: a row for each of sixteen layers, and two adapters."""
    document = {
        "params": {
            "new_concept_embedding": {"<imp1>": rows},
            "text_encoder": {
                "text_model.encoder.layers.0.self_attn.q_proj.lora_down.weight": noise(4, 768),
                "text_model.encoder.layers.0.self_attn.q_proj.lora_up.weight": noise(768, 4),
            },
            "unet": {f"{TO_K}.lora_down.weight": noise(4, 768), f"{TO_K}.lora_up.weight": noise(320, 4)},
        }
    }
    torch.save(document, path)
    return path


def test_an_embedding_of_a1111_says_its_name_as_a_hint_and_keeps_its_rows(tmp_path: Path) -> None:
    rows = noise(3, 768)
    path = save_a1111(tmp_path / "devil.pt", rows)
    found = identify(path)
    assert (found.kind, found.dialect, found.family) == ("embedding", "a1111", "sd1")
    assert found.coverage.complete
    assert found.triggers == ("blue-imp",)
    manifest = import_file(path, tmp_path / "package", settings(placeholder=IMP))
    [(_, kept)] = read_embedding(tmp_path / "package" / EMBEDDING_NAME).rows.items()
    assert bytes(kept.data) == rows.numpy().tobytes()
    assert manifest.builds[0].provenance.imported_from == Digest.of_file(path)


def test_the_name_in_a_pickle_is_offered_and_never_taken(tmp_path: Path) -> None:
    """A1111 listens to the file's name, whatever the name inside was."""
    path = save_a1111(tmp_path / "devil.pt", noise(3, 768))
    with pytest.raises(MissingAnswerError) as caught:
        import_file(path, tmp_path / "package", settings())
    assert "'blue-imp' is the name in the file" in (caught.value.hint or "")
    assert not (tmp_path / "package").exists()


def test_ed_lora_becomes_a_word_with_layers_and_an_adapter_for_both_networks(tmp_path: Path) -> None:
    rows = noise(16, 768)
    path = save_ed_lora(tmp_path / "edlora.pth", rows)
    found = identify(path)
    assert (found.kind, found.dialect, found.family) == ("lora", "ed_lora", "sd1")
    assert found.coverage.complete
    assert found.triggers == ("<imp1>",)
    manifest = import_file(path, tmp_path / "package", settings(base=declare_base("sd1")))
    assert [token.placeholder for token in manifest.tokens] == ["<imp1>"]
    [kept] = read_embedding(tmp_path / "package" / LAYERED_NAME).rows.values()
    assert bytes(kept.data) == rows.numpy().tobytes()
    modules = read_lora(tmp_path / "package" / "lora.safetensors").modules
    assert modules.keys() == {
        f"unet.{TO_K}",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    }
    assert bytes(modules[f"unet.{TO_K}"].down.data) == noise(4, 768).numpy().tobytes()
