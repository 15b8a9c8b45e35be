"""Masks beside training pictures: where they are white the loss counts, where they are black it does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

MASKS_NAME: Final = "masks"
MASK_END: Final = "-masklabel"
"""What OneTrainer puts between the name of a picture and the suffix of its mask."""

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")


@runtime_checkable
class Named(Protocol):
    """Something that has the name of a file."""

    @property
    def name(self) -> str:
        """The name."""


def is_mask(path: Path) -> bool:
    """Returns whether ``path`` is a mask, or the folder of masks, by its name."""
    return path.stem.endswith(MASK_END) or (path.name == MASKS_NAME and path.is_dir())


def find_mask(picture: Path, size: tuple[int, int]) -> tuple[Image.Image | None, tuple[str, ...]]:
    """Returns the mask of ``picture`` in gray at ``size``, and what there is to say of it."""
    for path in _list_places(picture):
        if not path.is_file():
            continue
        try:
            with Image.open(path) as opened:
                mask = _flatten(ImageOps.exif_transpose(opened))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return None, (f"has a mask that cannot be read ({error}): the whole picture counts",)
        if not np.asarray(mask).any():
            return None, ("has a mask that is black all over: the whole picture counts",)
        if mask.size == size:
            return mask, ()
        note = f"has a mask of {mask.width} x {mask.height}, it is stretched to {size[0]} x {size[1]}"
        return mask.resize(size, Image.Resampling.BILINEAR), (note,)
    return None, ()


def _flatten(mask: Image.Image) -> Image.Image:
    """Returns the mask in gray; what is transparent hides as black does."""
    if "A" not in mask.getbands() and "transparency" not in mask.info:
        return mask.convert("L")
    opaque = Image.new("RGBA", mask.size, "black")
    opaque.alpha_composite(mask.convert("RGBA"))
    return opaque.convert("L")


def _list_places(picture: Path) -> list[Path]:
    folder = picture.parent
    inside = [folder / MASKS_NAME / f"{picture.stem}{suffix}" for suffix in _SUFFIXES]
    beside = [folder / f"{picture.stem}{MASK_END}{suffix}" for suffix in _SUFFIXES]
    return [folder / MASKS_NAME / picture.name, *inside, *beside]


def list_lone_masks(folder: Path, pictures: Iterable[Named]) -> list[str]:
    """Returns the names of the masks in ``folder`` that belong to no picture."""
    stems = {Path(picture.name).stem for picture in pictures}
    beside = [path for path in folder.iterdir() if path.is_file() and is_mask(path)]
    lone = [path.name for path in beside if path.stem.removesuffix(MASK_END) not in stems]
    if (folder / MASKS_NAME).is_dir():
        lone += [
            f"{MASKS_NAME}/{path.name}" for path in (folder / MASKS_NAME).iterdir() if path.stem not in stems
        ]
    return sorted(lone)
