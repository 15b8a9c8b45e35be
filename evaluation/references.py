"""The true thing that a concept was taught: held-out pictures to compare with, never the training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from conceptry.errors import InvalidManifestError, UsageError
from conceptry.evaluation.protocols import Subject
from conceptry.manifest import Manifest

EXTENSION: Final = "conceptry.toybox"
REFERENCE_PICTURES: Final = 32
CEILING_PICTURES: Final = 32
MIN_PICTURES: Final = 2
_TRAINING_PART: Final = 0
_REFERENCE_PART: Final = 1
_CEILING_PART: Final = 2
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})
Pictures = NDArray[np.uint8] | Sequence[Image.Image]


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Pictures of the true thing: one set to compare with, another to measure the ceiling on.

    Renders are bytes (n, 64, 64, 3), pictures of a folder keep their size.
    """

    subject: Subject
    reference: Pictures
    ceiling: Pictures
    training: Pictures | None = None
    """What the concept was taught from, where that is known: whose backgrounds could leak."""


def find_references(
    manifest: Manifest, folder: Path | None, *, subject: Subject = "instance", training: Path | None = None
) -> References:
    """Returns the references of a concept: rendered from what ``instance.json`` said, or read from ``folder``.

    Args:
        manifest: the concept's.
        folder: held-out pictures; None renders what the manifest names.
        subject: what the pictures of ``folder`` share.
        training: the folder that the concept was taught from; renders need none.

    Raises:
        UsageError: if the concept was not taught a toybox instance and no folder is given, or it holds too little.
        InvalidManifestError: if the manifest's extension describes no instance and no style.
    """
    if folder is not None:
        return read_references(folder, subject=subject, training=training)
    truth = manifest.extensions.get(EXTENSION)
    if truth is None:
        raise UsageError(
            f"{manifest.name} does not say which toybox instance it was taught",
            hint="give held-out pictures of it with --references DIR",
        )
    return render_references(truth)


def render_references(truth: Any) -> References:
    """Returns held-out renders of the instance or style that ``instance.json`` names. Raises InvalidManifestError."""
    from conceptry.toybox.examples import held_out_instance, held_out_style, instance_scenes, style_scenes
    from conceptry.toybox.render import render

    kind = truth.get("kind") if isinstance(truth, dict) else None
    seed = truth.get("seed") if isinstance(truth, dict) else None
    if kind not in ("instance", "style") or not isinstance(seed, int):
        raise InvalidManifestError(
            "not the description of a toybox instance", where=f"extensions.{EXTENSION}"
        )
    taught = truth.get("pictures")
    counts = {_REFERENCE_PART: REFERENCE_PICTURES, _CEILING_PART: CEILING_PICTURES}
    if isinstance(taught, int) and 1 <= taught <= 1000:
        counts[_TRAINING_PART] = taught
    if kind == "instance":
        instance = held_out_instance(str(truth.get("class")), seed)
        parts = {part: render(instance_scenes(instance, n, part=part)) for part, n in counts.items()}
    else:
        style = held_out_style(seed)
        parts = {part: render(style_scenes(style, n, part=part)) for part, n in counts.items()}
    return References(
        subject=cast("Subject", kind),
        reference=parts[_REFERENCE_PART],
        ceiling=parts[_CEILING_PART],
        training=parts.get(_TRAINING_PART),
    )


def read_references(
    folder: Path, *, subject: Subject = "instance", training: Path | None = None
) -> References:
    """Returns the pictures of a folder, halved into reference and ceiling. Raises UsageError for fewer than two."""
    pictures = read_pictures(folder)
    if len(pictures) < MIN_PICTURES:
        raise UsageError(
            f"{len(pictures)} reference pictures in {str(folder)!r}, at least {MIN_PICTURES} are needed",
            hint="add pictures of the same thing that it was not taught from (.png, .jpg or .webp)",
        )
    return References(
        subject=subject,
        reference=pictures[0::2],
        ceiling=pictures[1::2],
        training=None if training is None else read_pictures(training) or None,
    )


def list_pictures(folder: Path) -> list[Path]:
    """Returns the picture files of a folder in order of name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)


def read_pictures(folder: Path) -> list[Image.Image]:
    """Returns the pictures of a folder in order of name. Raises UsageError if one cannot be read."""
    return [read_picture(path) for path in list_pictures(folder)]


def read_picture(path: Path) -> Image.Image:
    """Returns a picture in RGB, turned upright. Raises UsageError if it cannot be read."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"the picture {str(path)!r} cannot be read: {error}") from error


def as_images(pictures: Pictures) -> list[Image.Image]:
    """Returns pictures of either form as images."""
    return [
        picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
        for picture in pictures
    ]
