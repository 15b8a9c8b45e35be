"""Small runs on small pipelines: what several tests of the trainer begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conceptry.trainer.events import ignore
from conceptry.trainer.jobs import TrainJob, make_job
from conceptry.trainer.staging import OpenBase, Stage, prepare_run, read_pictures

CAPTIONS = [
    f"a {medium} of the {color} {thing} {place}"
    for medium in ("photo", "picture", "drawing", "painting")
    for color in ("red", "blue")
    for thing in ("cat", "dog", "creature", "house")
    for place in ("on the beach", "in the grass", "with a dog", "in style")
]

# Small random networks learn nothing of use; these are rates at which a few steps already show in the loss.
FAST: dict[str, dict[str, Any]] = {
    "textual_inversion": {"learning_rates": {"embedding": 5e-3}, "vectors": 2},
    "xti": {"learning_rates": {"embedding": 5e-3}},
    "perfusion": {"learning_rates": {"embedding": 5e-3, "value": 3e-3}},
    "lora": {"learning_rates": {"lora": 1e-2}, "rank": 2},
    "dreambooth_lora": {"learning_rates": {"lora": 1e-2}, "rank": 2},
    "dreambooth": {"learning_rates": {"weights": 1e-3}},
    "pivotal": {"learning_rates": {"embedding": 5e-3, "lora": 1e-2}, "rank": 2, "vectors": 2},
    "textual_inversion_dreambooth_lora": {"learning_rates": {"embedding": 5e-3, "lora": 1e-2}, "rank": 2},
    "lidb": {"learning_rates": {"lora": 1e-1}},
    "custom_diffusion": {"learning_rates": {"embedding": 5e-3, "weights": 1e-3}, "prior_pictures": 3},
    "textual_inversion_dreambooth": {"learning_rates": {"embedding": 5e-3, "weights": 1e-3}},
}
METHODS = ("textual_inversion", "perfusion", "lora", "dreambooth")


def some_slowly(*slow: str) -> list[Any]:
    """Return the methods; those named are tried by ``make slow`` only."""
    return [pytest.param(method, marks=pytest.mark.slow) if method in slow else method for method in METHODS]


"""One for each way to change a base; test_methods.py has what is made of them."""


def paint_pictures(folder: Path, count: int = 3) -> Path:
    """Returns ``folder`` with ``count`` pictures of 16 pixels, each a gradient of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    for index in range(count):
        planes = [
            np.tile(ramp, (16, 1)),
            np.tile(ramp[:, None], (1, 16)),
            np.full((16, 16), 60 * index, np.uint8),
        ]
        Image.fromarray(np.stack(planes, axis=-1)).save(folder / f"{index}.png")
    return folder


def write_job(method: str, folder: Path, **changes: Any) -> TrainJob:
    """Returns a job of a few steps on pictures in ``folder``, which are painted if there are none."""
    images = folder / "pictures"
    if not images.exists():
        paint_pictures(images)
    captions = folder / "captions.list"
    captions.write_text("\n".join(CAPTIONS), encoding="utf-8")
    settings = {
        "batch_size": 4,
        "checkpoint_every_steps": 4,
        "warmup_steps": 0,
        **FAST[method],
        **changes.pop("settings", {}),
    }
    values = {
        "method": method,
        "images": images,
        "name": "tests/imp",
        "placeholder": "<imp>",
        "superclass": "creature",
        "captions": captions,
        "precision": "float32",
        "steps": 6,
        "settings": settings,
    }
    return make_job({**values, **changes})


def stage_job(job: TrainJob, folder: Path, base: Any) -> Stage:
    """Returns the job ready to train, its pictures read and encoded."""
    return prepare_run(
        job,
        read_pictures(job, ignore),
        OpenBase(pipeline=base),
        folder=folder / "work",
        cache_folder=folder / "cache",
        on_event=ignore,
    )
