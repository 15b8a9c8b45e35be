"""Perfusion files of both public programs, whole key sets of SD1.5: kept as one edit, or refused as more than one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from pathlib import Path
from typing import Any

import numpy as np
import torch

from conceptry.errors import IncompatibleError, InvalidFileError, MissingAnswerError
from conceptry.formats.embedding_rows import list_layers
from conceptry.formats.identify import identify
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import import_file
from conceptry.formats.rank_one import RANK_ONE_NAME, read_rank_one
from conceptry.methods import RankOneMethod
from conceptry.names import ConceptName, Placeholder, parse_version

IMP = Placeholder("<imp>")
# The cross-attention layers of SD1.5 as the authors' code calls them, and how wide each writes.
LDM_LAYERS = {
    **{
        f"input_blocks.{n}.1": width
        for n, width in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))
    },
    "middle_block.1": 1280,
    **{f"output_blocks.{n}.1": (1280, 640, 320)[n // 3 - 1] for n in range(3, 12)},
}


def settings(**changes: Any) -> ImportSettings:
    said = {"placeholder": IMP, "superclass": "creature", "base": declare_base("sd1"), **changes}
    return ImportSettings(name=ConceptName("me", "imp"), version=parse_version("1.0.0"), **said)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_inverse() -> torch.Tensor:
    factor = noise(1, 768, 32) / 8
    return torch.eye(768) + factor @ factor.T


def save_chendaryen(path: Path, *, positions_agree: bool = True) -> dict[str, torch.Tensor]:
    """Writes all 32 targets as that program does, and returns those of the values by layer."""
    outputs, values = {}, {}
    for number, (block, width) in enumerate(LDM_LAYERS.items()):
        for side in ("k", "v"):
            row = noise(10 + number, width) * (1 if side == "v" else 2)
            target = row.repeat(77, 1) if positions_agree else row + noise(5, 77, width)
            outputs[f"{block}.transformer_blocks.0.attn2.to_{side}.target_output"] = target
            if side == "v":
                values[list_layers()[number]] = row
    document = {
        "global_step": 400,
        "C_inv": make_inverse(),
        "target_input": noise(2, 768),
        "embedding": {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": {"*": noise(3, 1, 768)},
        },
        "target_output": outputs,
    }
    torch.save(document, path)
    return values


def save_lucidrains(
    path: Path, *, declared: bool = False, concepts: int = 1, left_out: int | None = None
) -> dict[str, torch.Tensor]:
    """Writes a pair for each module, in the order of a picture's way or of diffusers' declaration."""
    layers = list(zip(list_layers(), LDM_LAYERS.values(), strict=True))
    if declared:
        layers.append(layers.pop(6))
    values, pairs, encoding = {}, [], noise(2, concepts, 768)
    for number, (layer, width) in enumerate(layers):
        values[layer] = noise(50 + number, concepts, width)
        pairs += [[encoding, noise(90 + number, concepts, width)], [encoding, values[layer]]]
    if left_out is not None:
        del pairs[left_out]
    document = {"embed_params": noise(3, concepts, 768), "key_value_params": pairs, "C_inv": make_inverse()}
    torch.save(document, path)
    return values


@pytest.mark.parametrize("declared", [False, True])
def test_lucidrains_layers_are_told_by_the_order_of_their_widths(tmp_path: Path, declared: bool) -> None:
    values = save_lucidrains(tmp_path / "imp.pt", declared=declared)
    found = identify(tmp_path / "imp.pt")
    assert (found.kind, found.dialect, found.family, found.stored) == ("rank_one", "lucidrains", "sd1", True)
    assert (found.coverage.explained, found.coverage.total) == (66, 66)
    manifest = import_file(tmp_path / "imp.pt", tmp_path / "package", settings())
    contents = read_rank_one(tmp_path / "package" / RANK_ONE_NAME)
    assert contents.o_v.keys() == set(list_layers())
    for layer, tensor in contents.o_v.items():
        assert bytes(tensor.data) == values[layer][0].numpy().tobytes()
    assert bytes(contents.i_star.data) == noise(2, 1, 768)[0].numpy().tobytes()
    assert bytes(contents.rows["text_encoder", IMP].data) == noise(3, 1, 768).numpy().tobytes()  # type: ignore[index]
    method = manifest.builds[0].parts[0].method
    assert isinstance(method, RankOneMethod)
    assert (method.superclass, method.key_lock) == ("creature", "local")


def test_chendaryen_targets_that_agree_at_all_positions_are_one_edit(tmp_path: Path) -> None:
    values = save_chendaryen(tmp_path / "imp.ckpt")
    found = identify(tmp_path / "imp.ckpt")
    assert (found.kind, found.dialect, found.family) == ("rank_one", "chendaryen", "sd1")
    assert (found.coverage.explained, found.coverage.total) == (36, 36)
    import_file(tmp_path / "imp.ckpt", tmp_path / "package", settings())
    contents = read_rank_one(tmp_path / "package" / RANK_ONE_NAME)
    assert contents.o_v.keys() == values.keys()
    for layer, tensor in contents.o_v.items():
        assert bytes(tensor.data) == values[layer].numpy().tobytes()
    expected = make_inverse().double() @ noise(2, 768).double()
    np.testing.assert_allclose(contents.c_inv_i_star.to_numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_targets_of_one_covariance_say_so_whoever_wrote_them(tmp_path: Path) -> None:
    save_chendaryen(tmp_path / "one.ckpt")
    save_lucidrains(tmp_path / "other.pt")
    ids = []
    for number, path in enumerate((tmp_path / "one.ckpt", tmp_path / "other.pt")):
        method = import_file(path, tmp_path / str(number), settings()).builds[0].parts[0].method
        assert isinstance(method, RankOneMethod)
        ids.append(method.covariance)
    assert ids[0] == ids[1]


def test_targets_that_differ_by_position_are_no_rank_one_edit(tmp_path: Path) -> None:
    save_chendaryen(tmp_path / "imp.ckpt", positions_agree=False)
    with pytest.raises(IncompatibleError, match="between token positions"):
        import_file(tmp_path / "imp.ckpt", tmp_path / "package", settings())
    assert not (tmp_path / "package").exists()


def test_several_concepts_in_one_file_are_no_rank_one_edit(tmp_path: Path) -> None:
    save_lucidrains(tmp_path / "imps.pt", concepts=2)
    with pytest.raises(IncompatibleError, match="one value for all"):
        import_file(tmp_path / "imps.pt", tmp_path / "package", settings())


@pytest.mark.parametrize("option", ["placeholder", "superclass"])
def test_what_no_perfusion_file_says_is_asked_for(tmp_path: Path, option: str) -> None:
    save_lucidrains(tmp_path / "imp.pt")
    with pytest.raises(MissingAnswerError) as caught:
        import_file(tmp_path / "imp.pt", tmp_path / "package", settings(**{option: None}))
    assert caught.value.option == option


def test_layers_whose_order_cannot_be_told_are_named(tmp_path: Path) -> None:
    save_lucidrains(tmp_path / "imp.pt", left_out=3)
    found = identify(tmp_path / "imp.pt")
    assert found.coverage.complete
    assert "31 of 31 targets are of no layer that is known" in found.reasons
    with pytest.raises(InvalidFileError, match="would be lost"):
        import_file(tmp_path / "imp.pt", tmp_path / "package", settings())
