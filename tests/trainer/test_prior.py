from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conceptry.trainer import prior
from conceptry.trainer.preparation import prepared
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import stage_job, write_job


def test_class_pictures_of_another_resolution_are_not_those_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []

    def generate(context: Any, prompt: str, count: int) -> torch.Tensor:
        shape = (count, *context.latents.mean.shape[1:])
        made.append(shape)
        return torch.zeros(shape)

    monkeypatch.setattr(prior, "_generate", generate)
    base = make_pipeline()
    with prepared(base):
        for side in (16, 32, 16, 32):
            settings = {"prior": "pictures", "prior_pictures": 2, "resolution_pixels": side}
            ready = stage_job(write_job("dreambooth_lora", tmp_path, settings=settings), tmp_path, base)
            assert ready.learner.preservation is not None
            (found,) = ready.learner.preservation.class_latents
            assert found.latents.shape[1:] == ready.context.latents.mean.shape[1:]
    assert len(made) == len(set(made)) == 2


def test_class_pictures_have_the_height_and_the_width_of_the_pictures() -> None:
    asked: list[dict[str, Any]] = []

    def draw(**options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(images=options["latents"])

    draw.vae_scale_factor = 8  # type: ignore[attr-defined]
    context: Any = SimpleNamespace(
        pipeline=draw,
        latents=SimpleNamespace(mean=torch.zeros(1, 4, 6, 10)),
        job=SimpleNamespace(job=SimpleNamespace(seed=0)),
        device=torch.device("cpu"),
    )
    found = prior._generate(context, "a photo of a cat", 3)
    assert found.shape == (3, 4, 6, 10)
    assert [(one["height"], one["width"]) for one in asked] == [(48, 80)]
