"""Rendered training pictures kept on disk, so that rendering stays outside the training loops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from conceptry.toybox.render import render
from conceptry.toybox.sampling import draw_scenes
from conceptry.toybox.scene import Scene

_CHUNK: Final = 256
_MOST_WORKERS: Final = 16
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    """The results in order, from worker processes where the machine has cores to spare and there is enough to do."""
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    if workers <= 2 or len(items) < 4 * workers:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=4)


def cached_pictures(path: Path, scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    """Pictures (n, 64, 64, 3) of the scenes, rendered when ``path`` is not there yet, else read from it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(scenes), 64, 64, 3))
        start = 0
        for batch in in_parallel(render, [scenes[at : at + _CHUNK] for at in range(0, len(scenes), _CHUNK)]):
            images[start : start + len(batch)] = batch
            start += len(batch)
        images.flush()
        os.replace(part, path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def training_pictures(folder: Path, *, seed: int, count: int) -> tuple[list[Scene], NDArray[np.uint8]]:
    """The scenes of ``draw_scenes(seed, count)`` and their pictures, rendered once a folder."""
    scenes = draw_scenes(seed, count)
    return scenes, cached_pictures(folder / f"pictures-{seed}-{count}.npy", scenes)
