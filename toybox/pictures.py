"""Rendered training pictures kept on disk, so that rendering stays outside the training loops."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.render import render_batches
from conceptry.toybox.sampling import (
    draw_scenes,
)
from conceptry.toybox.scene import Scene


def cached_pictures(path: Path, scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    """Pictures (n, 64, 64, 3) of the scenes, rendered when ``path`` is not there yet, else read from it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(scenes), 64, 64, 3))
        start = 0
        for batch in render_batches(scenes):
            images[start : start + len(batch)] = batch
            start += len(batch)
        images.flush()
        os.replace(part, path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def training_pictures(folder: Path, *, seed: int, count: int) -> tuple[list[Scene], NDArray[np.uint8]]:
    """The scenes of ``draw_scenes(seed, count)`` and their pictures, rendered once a folder."""
    scenes = draw_scenes(seed, count)
    return scenes, cached_pictures(folder / f"pictures-{seed}-{count}.npy", scenes)
