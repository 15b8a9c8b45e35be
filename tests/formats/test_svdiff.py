"""SVDiff files: every shift explained, and made into the weights that its program would use beside the same base."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="of the extra torch")

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import conceptry.toybox
from conceptry.errors import IncompatibleError, UsageError
from conceptry.formats.embedding import EMBEDDING_NAME, read_embedding
from conceptry.formats.full import name_full_file, read_full
from conceptry.formats.header import Header, TensorInfo
from conceptry.formats.identify import identify_header
from conceptry.formats.import_plans import ImportSettings, declare_base
from conceptry.formats.importing import import_file
from conceptry.formats.svdiff import shift_spectrum
from conceptry.names import ConceptName, parse_version
from tests.formats.networks import list_weights

BASE = conceptry.toybox.path()


def settings(base_path: Path | None = BASE) -> ImportSettings:
    return ImportSettings(
        name=ConceptName("me", "imp"),
        version=parse_version("1.0.0"),
        base=declare_base("toybox"),
        base_path=base_path,
    )


def count_values(shape: tuple[int, ...]) -> int:
    return min(shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else 1


def read_weights() -> dict[str, torch.Tensor]:
    weights = load_file(BASE / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: weight for name, weight in weights.items() if name.endswith(".weight")}


def shift_as_svdiff_pytorch(weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """mkshing/svdiff-pytorch, in single precision: the weight of a norm is one row."""
    matrix = weight.float().reshape(weight.shape[0] if weight.dim() > 1 else 1, -1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    moved: torch.Tensor = left @ torch.diag(torch.relu(values + shift)) @ right
    return moved.reshape(weight.shape)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_shifts_of_every_weight_are_explained(family: str) -> None:
    weights = {name: shape for name, shape in list_weights(family).items() if name.startswith("unet.")}
    tensors = {
        f"{name.removeprefix('unet.')}.delta": TensorInfo("F32", (count_values(shape),), 0, 0)
        for name, shape in weights.items()
    }
    found = identify_header(Header(tensors, {}, 0, 0))
    assert (found.kind, found.dialect, found.stored) == ("full", "svdiff", True)
    assert (found.coverage.explained, found.coverage.total) == (len(tensors), len(tensors))


def test_shifts_become_the_weights_that_their_program_uses(tmp_path: Path) -> None:
    chosen = {
        name: weight
        for name, weight in read_weights().items()
        if "attn2.to_" in name or name in ("conv_in.weight", "conv_norm_out.weight")
    }
    generator = torch.Generator().manual_seed(0)
    shifts = {
        name.replace(".weight", ".delta"): torch.randn(count_values(tuple(weight.shape)), generator=generator)
        / 50
        for name, weight in chosen.items()
    }
    save_file({**shifts, "modifier_tokens.<imp>": torch.ones(128)}, tmp_path / "spectral_shifts.safetensors")
    manifest = import_file(tmp_path / "spectral_shifts.safetensors", tmp_path / "package", settings())
    assert [part.kind for part in manifest.builds[0].parts] == ["embedding", "full"]
    contents = read_full(tmp_path / "package" / name_full_file("unet"))  # type: ignore[arg-type]
    assert contents.tensors.keys() == chosen.keys()
    for name, weight in chosen.items():
        expected = shift_as_svdiff_pytorch(weight, shifts[name.replace(".weight", ".delta")]).numpy()
        np.testing.assert_allclose(contents.tensors[name].to_numpy(), expected, atol=2e-4)
    assert read_embedding(tmp_path / "package" / EMBEDDING_NAME).rows


def test_shift_below_zero_leaves_nothing_of_a_singular_value() -> None:
    moved, _ = shift_spectrum(np.diag([3.0, 1.0]), np.array([0.5, -2.0]))
    np.testing.assert_allclose(moved, np.diag([3.5, 0.0]), atol=1e-12)


def test_equal_singular_values_with_unequal_shifts_are_said_to_be_in_doubt() -> None:
    assert shift_spectrum(np.eye(2), np.array([0.5, -0.5]))[1] > 0.5
    assert shift_spectrum(np.diag([4.0, 1.0]), np.array([0.5, -0.5]))[1] < 1e-6


def test_shifts_without_their_base_are_not_kept(tmp_path: Path) -> None:
    name = "down_blocks.0.resnets.0.conv1.delta"
    save_file({name: torch.ones(7)}, tmp_path / "shifts.safetensors")
    with pytest.raises(UsageError, match="beside their base"):
        import_file(tmp_path / "shifts.safetensors", tmp_path / "package", settings(None))
    with pytest.raises(IncompatibleError, match="shifts 7 singular values"):
        import_file(tmp_path / "shifts.safetensors", tmp_path / "package", settings())
    assert not (tmp_path / "package").exists()
