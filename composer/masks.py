"""Masks of regions: grayscale PNG files that are known by the digest of their bytes, and lie beside what names them."""

from __future__ import annotations

import io
import os
import secrets
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from conceptry.digests import Digest
from conceptry.errors import IntegrityError, InvalidFileError, NotFoundError, StoreError, UsageError

MASKS_NAME: Final = "masks"
"""The folder beside a composition file, and beside the pictures that were drawn with it."""

_MAX_BYTES: Final = 1 << 26
_MAX_PIXELS: Final = 1 << 26
_GRAY_16_BITS: Final = ("I;16", "I;16B", "I")


@dataclass(frozen=True, slots=True)
class Mask:
    """Where a region is, as a picture: 1 inside, 0 outside."""

    digest: Digest
    data: bytes = field(compare=False, repr=False)
    """The file as it was given."""

    values: np.ndarray[Any, np.dtype[np.float32]] = field(compare=False, repr=False)
    """Rows and columns from 0 to 1."""

    def shrink(self, height: int, width: int) -> Float[Tensor, "height width"]:
        """Returns the mask stretched over so many rows and columns, each the mean of what it covers."""
        return _shrink(self, height, width)


@lru_cache(maxsize=32)
def _shrink(mask: Mask, height: int, width: int) -> Tensor:
    resized = Image.fromarray(mask.values).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(resized, np.float32).copy()).clamp(0, 1)


def read_mask(path: Path) -> Mask:
    """Returns the mask in a PNG file: colours count by their brightness, what is transparent is outside.

    Raises:
        NotFoundError: if there is no file.
        InvalidFileError: if it is no PNG, or too large.
        UsageError: if it is black everywhere.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidFileError(f"the mask {str(path)!r} has more than {_MAX_BYTES} bytes")
        return parse_mask(path.read_bytes(), str(path))
    except OSError as error:
        raise NotFoundError(f"there is no mask at {str(path)!r} that can be read") from error


def parse_mask(data: bytes, name: str) -> Mask:
    """Returns the mask that the bytes of a PNG file are; ``name`` is what errors call it. Raises as ``read_mask``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise InvalidFileError(f"the mask {name!r} has {picture.width} x {picture.height} pixels")
                values = _read_values(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidFileError(
            f"the mask {name!r} cannot be read as a PNG", hint="save it as a grayscale PNG, white inside"
        ) from error
    if not values.any():
        raise UsageError(f"the mask {name!r} is black everywhere, and white is where the concept goes")
    return Mask(Digest.of_bytes(data), data, values)


def _read_values(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    if picture.mode in _GRAY_16_BITS:
        return np.asarray(picture).astype(np.float32) / np.float32(65535)
    if "A" in picture.getbands() or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)
    return np.asarray(picture.convert("L"), np.float32) / np.float32(255)


# --- beside what names them ----------------------------------------------------------------------------------------


def find_masks(digests: Iterable[Digest], places: Sequence[Path]) -> tuple[Mask, ...]:
    """Returns the masks of these digests, from files that are named and from the ``masks`` beside folders.

    Args:
        digests: what a composition names.
        places: files of masks, and folders in whose ``masks`` they lie under their digests.

    Raises:
        NotFoundError: for the first that is nowhere.
        IntegrityError: if the bytes of one are not what its name says.
        InvalidFileError, UsageError: as ``read_mask``.
    """
    wanted = tuple(digests)
    if not wanted:
        return ()
    named = {}
    for path in (place for place in places if place.is_file()):
        found = Digest.of_file(path)
        if found in wanted:
            named[found] = path
    return tuple(_find(digest, named.get(digest), places) for digest in wanted)


def _find(digest: Digest, named: Path | None, places: Sequence[Path]) -> Mask:
    beside = [_locate(place, digest) for place in places if place.is_dir()]
    path = named or next((path for path in beside if path.is_file()), None)
    if path is None:
        raise NotFoundError(
            f"the mask {digest} is not there",
            hint=f"put it beside what names it, as {MASKS_NAME}/{digest.hex}.png",
        )
    mask = read_mask(path)
    if mask.digest != digest:
        raise IntegrityError(
            f"the mask {str(path)!r} was changed: it has the digest {mask.digest}",
            hint="get the folder of masks again from whoever made it, or compose anew with this mask",
        )
    return mask


def keep_masks(masks: Iterable[Mask], folder: Path) -> None:
    """Puts masks into the ``masks`` beside a document in ``folder``; those that are there already stay.

    Raises:
        StoreError: if they cannot be written.
    """
    for mask in masks:
        path = _locate(folder, mask.digest)
        if path.is_file() and Digest.of_file(path) == mask.digest:
            continue
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(mask.data)
            os.replace(partial, path)
        except OSError as error:
            raise StoreError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)


def _locate(folder: Path, digest: Digest) -> Path:
    return folder / MASKS_NAME / f"{digest.hex}.png"
