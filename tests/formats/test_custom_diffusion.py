"""The files of the authors' own program of Custom Diffusion, as their pickles hold them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from pathlib import Path
from typing import Any

import numpy as np
import torch

from conceptry.bases import ComponentName
from conceptry.errors import MissingAnswerError, UsageError
from conceptry.formats.deltas import dense_delta
from conceptry.formats.embedding import read_embedding
from conceptry.formats.full import read_full
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import import_file
from conceptry.formats.lora import read_lora
from conceptry.names import ConceptName, Placeholder, parse_version

TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
ORIGINAL_TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
TEXT = ComponentName("text_encoder")
NEW, CAT = Placeholder("<new1>"), Placeholder("<cat>")


def settings(**changes: Any) -> ImportSettings:
    return ImportSettings(
        name=ConceptName("me", "cat"), version=parse_version("1.0.0"), base=declare_base("sd1"), **changes
    )


def save(tmp_path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, tmp_path / "delta.bin")
    return tmp_path / "delta.bin"


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("stem", "outer", "words", "given"),
    [
        (TO_K, "unet", {"modifier_token": {"<new1>": draw(768)}}, {}),
        (ORIGINAL_TO_K, "state_dict", {}, {"placeholder": NEW}),
    ],
)
def test_compressed_difference_is_a_low_rank_adapter_of_the_same_delta(
    tmp_path: Path, stem: str, outer: str, words: dict[str, Any], given: dict[str, Any]
) -> None:
    up, down = draw(320, 7), draw(7, 768)
    inner: dict[str, Any] = {f"{stem}.weight": {"u": up, "v": down}}
    if outer == "state_dict":
        inner["embed"] = draw(1, 768)
    file = save(tmp_path, {outer: inner, **words})
    found = identify(file)
    assert (found.kind, found.dialect, found.family) == ("lora", "custom_diffusion_compressed", "sd1")
    assert found.coverage.complete
    manifest = import_file(file, tmp_path / "package", settings(**given))
    assert manifest.builds[0].kinds == ("lora", "embedding")
    (module,) = read_lora(tmp_path / "package" / "lora.safetensors").modules.items()
    assert module[0] == f"unet.{TO_K}"
    exact = (up.double() @ down.double()).numpy()
    assert np.abs(dense_delta(module[1], (320, 768)) - exact).max() <= 1e-6 * np.abs(exact).max()
    assert [word for _, word in read_embedding(tmp_path / "package" / "embedding.safetensors").rows] == [NEW]


def test_delta_for_the_original_network_is_kept_under_published_names(tmp_path: Path) -> None:
    weight, rows = draw(320, 768), draw(2, 768)
    file = save(tmp_path, {"state_dict": {f"{ORIGINAL_TO_K}.weight": weight, "embed": rows}})
    found = identify(file)
    assert (found.kind, found.dialect, found.stored) == ("full", "custom_diffusion", True)
    import_file(file, tmp_path / "package", settings(row_placeholders=(NEW, CAT)))
    (kept,) = read_full(tmp_path / "package" / "unet.safetensors").tensors.items()
    assert kept[0] == f"{TO_K}.weight"
    assert np.array_equal(kept[1].to_numpy(), weight.numpy())
    words = read_embedding(tmp_path / "package" / "embedding.safetensors").rows
    assert np.array_equal(words[TEXT, CAT].to_numpy(), rows[1:].numpy())


def test_words_without_names_are_asked_for(tmp_path: Path) -> None:
    file = save(tmp_path, {"state_dict": {f"{ORIGINAL_TO_K}.weight": draw(320, 768), "embed": draw(2, 768)}})
    with pytest.raises(MissingAnswerError) as caught:
        import_file(file, tmp_path / "package", settings())
    assert caught.value.option == "placeholder"
    with pytest.raises(UsageError, match="3 words are given"):
        import_file(file, tmp_path / "package", settings(row_placeholders=(NEW, CAT, Placeholder("<dog>"))))
    assert not (tmp_path / "package").exists()
