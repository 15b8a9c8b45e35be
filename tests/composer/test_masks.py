"""Masks of regions: what a picture says of where, and bytes that are what their digest says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptry.composer import Composition, attach
from conceptry.composer.masks import find_masks, keep_masks, read_mask
from conceptry.composer.regions import make_mask, weigh_regions
from conceptry.composer.ways import Pass
from conceptry.composition import Region, Use
from conceptry.digests import Digest
from conceptry.errors import IntegrityError, InvalidFileError, NotFoundError, UsageError
from tests.composer.test_steering import near, predict
from tests.fakes.concepts import make_lora


def paint(path: Path, values: np.ndarray[Any, Any]) -> Path:
    """Returns ``path`` with a picture of ``values``."""
    Image.fromarray(values).save(path)
    return path


def paint_left(path: Path, *, size: int = 64, level: int = 255) -> Path:
    """Returns ``path`` with a mask of the left half."""
    values = np.zeros((size, size), np.uint8)
    values[:, : size // 2] = level
    return paint(path, values)


def test_a_mask_of_a_box_is_the_box_whatever_its_size(tmp_path: Path) -> None:
    box = make_mask(Region(box=(0.0, 0.0, 0.5, 1.0)), 8, 8)
    for size in (4, 64, 200):
        mask = read_mask(paint_left(tmp_path / f"{size}.png", size=size))
        found = make_mask(Region(mask=mask.digest), 8, 8, masks={mask.digest: mask})
        torch.testing.assert_close(found, box)


def test_gray_is_in_between_and_a_place_counts_as_the_mean_of_what_it_covers(tmp_path: Path) -> None:
    checks = np.indices((16, 16)).sum(axis=0).astype(np.uint8) % 2 * 255
    mask = read_mask(paint(tmp_path / "checks.png", checks))
    torch.testing.assert_close(mask.shrink(4, 2), torch.full((4, 2), 0.5))
    wide = read_mask(paint(tmp_path / "wide.png", np.full((4, 12), 51, np.uint8)))
    torch.testing.assert_close(wide.shrink(3, 5), torch.full((3, 5), 0.2))


def test_colours_sixteen_bits_and_transparency_are_read_as_they_look(tmp_path: Path) -> None:
    deep = paint(tmp_path / "deep.png", np.full((4, 4), 32768, np.uint16))
    assert float(read_mask(deep).shrink(1, 1)) == pytest.approx(0.5, abs=1e-4)
    painted = np.full((4, 4, 4), 255, np.uint8)
    painted[:, 2:, 3] = 0
    clear = read_mask(paint(tmp_path / "clear.png", painted))
    assert clear.shrink(1, 2).tolist() == [[1.0, 0.0]]


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    black = paint(tmp_path / "black.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UsageError, match="black everywhere"):
        read_mask(black)
    (tmp_path / "text.png").write_text("white")
    with pytest.raises(InvalidFileError, match="cannot be read as a PNG"):
        read_mask(tmp_path / "text.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(paint_left(tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(InvalidFileError, match="cannot be read as a PNG"):
        read_mask(cut)
    with pytest.raises(NotFoundError, match="there is no mask"):
        read_mask(tmp_path / "nothing.png")


def test_masks_are_found_by_their_digest_beside_what_names_them(tmp_path: Path) -> None:
    mask = read_mask(paint_left(tmp_path / "left.png"))
    folder = tmp_path / "beside"
    keep_masks([mask], folder)
    keep_masks([mask], folder)
    (kept,) = (folder / "masks").iterdir()
    assert (kept.name, kept.read_bytes()) == (f"{mask.digest.hex}.png", mask.data)
    assert find_masks([mask.digest], [folder]) == (mask,)
    assert find_masks([mask.digest], [tmp_path / "left.png"]) == (mask,)
    with pytest.raises(NotFoundError, match=str(mask.digest)):
        find_masks([mask.digest], [tmp_path])
    paint_left(kept, level=200)
    with pytest.raises(IntegrityError, match="was changed"):
        find_masks([mask.digest], [folder])


def test_weights_of_masks_add_up_to_one_everywhere(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    masks = [
        read_mask(paint(tmp_path / f"{name}.png", generator.integers(0, 256, (24, 24), np.uint8)))
        for name in ("a", "b")
    ]
    regions = {place: Region(mask=mask.digest) for place, mask in enumerate(masks)}
    known = {mask.digest: mask for mask in masks}
    passes = weigh_regions(Pass((1.0, 1.0)), regions, sample=torch.zeros(1, 4, 8, 8), masks=known)
    total = torch.stack([torch.as_tensor(one.weight) for one in passes]).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(8, 8))


def test_a_concept_is_in_effect_as_far_as_its_mask_is_white(sd1: Any, tmp_path: Path) -> None:
    concept = make_lora(tmp_path / "a", sd1, name="test/a", placeholder="a")
    quiet = {"text_encoder": 0.0}
    plain = predict(sd1)
    with attach(Composition(concept, use={"test/a": Use(parts=quiet)}), sd1):
        whole = predict(sd1)
    mask = read_mask(paint_left(tmp_path / "left.png", level=51))
    use = {"test/a": Use(parts=quiet, region=Region(mask=mask.digest))}
    with attach(Composition(concept, use=use, masks=[mask]), sd1):
        found = predict(sd1)
    near(found[..., :4], 0.2 * whole[..., :4] + 0.8 * plain[..., :4])
    near(found[..., 4:], plain[..., 4:])
    with pytest.raises(UsageError, match="is not given"):
        Composition(concept, use=use)


def test_a_region_is_a_box_or_a_mask() -> None:
    digest = Digest.of_bytes(b"a mask")
    for given in ({}, {"box": (0, 0, 1, 1), "mask": digest}, {"mask": digest, "feather": 0.1}):
        with pytest.raises(ValueError, match="mask"):
            Region.model_validate(given)
