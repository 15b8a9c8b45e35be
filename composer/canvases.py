"""Pictures and masks to draw over, read from files that somebody gave: bounded, turned upright, in the base's size."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from conceptry.composer.generate import Canvas
from conceptry.composer.pipelines import Pipeline
from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, NotFoundError, UsageError
from conceptry.formats.picture_records import MAX_SIDE_PIXELS, SourceRecord

SIDE_STEP_PIXELS: Final = 8
_PATCH_LATENTS: Final = 2
_NATIVE_LATENTS: Final = 128
_MAX_PIXELS: Final = 1 << 28
_HALF: Final = 128


def make_canvas(
    pipeline: Pipeline,
    image: Path | None,
    mask: Path | None,
    *,
    strength: float = 1.0,
    size: tuple[int, int] | None = None,
) -> Canvas:
    """Returns what is drawn on, scaled to ``size`` in pixels; without it, to as many pixels as the base draws.

    Raises:
        UsageError: for a mask without a picture, a strength outside 0 to 1, a side that the base cannot draw.
        NotFoundError, InvalidFileError: if a file is not there, or is no picture.
    """
    if image is None:
        if mask is not None:
            raise UsageError("a mask is named without a picture", hint="add --image")
        width, height = check_size(size or find_native_size(pipeline), find_side_step(pipeline))
        return Canvas(width=width, height=height)
    if not 0 < strength <= 1:
        raise UsageError(f"the strength {strength:g} is not above 0 and at most 1", hint="--strength 0.6")
    picture = _open(image)
    fitted = fit_size(picture.size, find_native_size(pipeline))
    width, height = check_size(size or fitted, find_side_step(pipeline))
    return Canvas(
        width=width,
        height=height,
        image=_resize_picture(picture, (width, height)),
        mask=None if mask is None else _resize_mask(_open(mask), (width, height)),
        strength=strength,
    )


def describe_source(image: Path | None, mask: Path | None, strength: float) -> SourceRecord | None:
    """Returns the digests of the files that are drawn over, None where nothing is. Raises NotFoundError."""
    if image is None:
        return None
    return SourceRecord(image=_hash(image), mask=None if mask is None else _hash(mask), strength=strength)


def find_native_size(pipeline: Pipeline) -> tuple[int, int]:
    """Returns width and height in pixels of what the base draws when nothing is asked."""
    unet = getattr(pipeline, "unet", None)
    # Transformers draw in any size; their pipelines say in latents what they were taught, or nothing.
    said = getattr(pipeline, "default_sample_size", _NATIVE_LATENTS)
    side: Any = said if unet is None else unet.config.sample_size
    rows, columns = side if isinstance(side, list | tuple) else (side, side)
    return columns * pipeline.vae_scale_factor, rows * pipeline.vae_scale_factor


def find_side_step(pipeline: Pipeline) -> int:
    """Returns what sides in pixels are multiples of: transformers read latents in patches of two."""
    if getattr(pipeline, "unet", None) is not None:
        return SIDE_STEP_PIXELS
    return max(SIDE_STEP_PIXELS, _PATCH_LATENTS * int(pipeline.vae_scale_factor))


def fit_size(picture: tuple[int, int], native: tuple[int, int]) -> tuple[int, int]:
    """Returns the size nearest to the picture's shape that has about as many pixels as ``native``."""
    scale = math.sqrt(native[0] * native[1] / (picture[0] * picture[1]))
    width, height = (max(1, round(side * scale / SIDE_STEP_PIXELS)) * SIDE_STEP_PIXELS for side in picture)
    return width, height


def check_size(size: tuple[int, int], step: int = SIDE_STEP_PIXELS) -> tuple[int, int]:
    """Returns the size if latents can have it. Raises UsageError."""
    for side in size:
        if side % step or not 0 < side <= MAX_SIDE_PIXELS:
            raise UsageError(
                f"{size[0]}x{size[1]} pixels cannot be drawn: sides are multiples of {step}, "
                f"at most {MAX_SIDE_PIXELS}",
                hint="--size 512x768",
            )
    return size


def _hash(path: Path) -> Digest:
    try:
        return Digest.of_file(path)
    except OSError as error:
        raise NotFoundError(f"there is no picture at {str(path)!r} that can be read") from error


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise InvalidFileError(f"{str(path)!r} has {picture.width} x {picture.height} pixels")
                return ImageOps.exif_transpose(picture)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no picture at {str(path)!r}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidFileError(f"{str(path)!r} cannot be read as a picture") from error


def _resize_picture(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if "A" in picture.getbands() or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _resize_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    shrunk = mask.convert("L").resize(size, Image.Resampling.NEAREST)
    return shrunk.point([0] * _HALF + [255] * (256 - _HALF))
