"""The true thing that a concept was taught: held-out pictures to compare with, never the training pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conceptry.errors import InvalidManifestError, UsageError
from conceptry.evaluation.protocols import Subject
from conceptry.manifest import Manifest

EXTENSION: Final = "conceptry.toybox"
REFERENCE_PICTURES: Final = 32
CEILING_PICTURES: Final = 32
_REFERENCE_PART: Final = 1
_CEILING_PART: Final = 2
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Pictures (n, 64, 64, 3) of the true thing: one set to compare with, another to measure the ceiling on."""

    subject: Subject
    reference: NDArray[np.uint8]
    ceiling: NDArray[np.uint8]


def find_references(manifest: Manifest, folder: Path | None) -> References:
    """Returns the references of a concept: rendered from what ``instance.json`` said, or read from ``folder``.

    Raises:
        UsageError: if the concept was not taught a toybox instance and no folder is given, or it holds too little.
        InvalidManifestError: if the manifest's extension describes no instance and no style.
    """
    if folder is not None:
        return read_references(folder)
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
    if kind == "instance":
        instance = held_out_instance(str(truth.get("class")), seed)
        first = instance_scenes(instance, REFERENCE_PICTURES, part=_REFERENCE_PART)
        second = instance_scenes(instance, CEILING_PICTURES, part=_CEILING_PART)
    else:
        style = held_out_style(seed)
        first = style_scenes(style, REFERENCE_PICTURES, part=_REFERENCE_PART)
        second = style_scenes(style, CEILING_PICTURES, part=_CEILING_PART)
    return References(subject=cast("Subject", kind), reference=render(first), ceiling=render(second))


def read_references(folder: Path) -> References:
    """Returns the pictures of a folder, halved into reference and ceiling. Raises UsageError for fewer than two."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} reference pictures in {str(folder)!r}, at least 2 are needed")
    try:
        pictures = np.stack([_read_picture(path) for path in paths])
    except OSError as error:
        raise UsageError(f"a reference picture in {str(folder)!r} cannot be read: {error}") from error
    return References(subject="instance", reference=pictures[0::2], ceiling=pictures[1::2])


def _read_picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS), np.uint8)
