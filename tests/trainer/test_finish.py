from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.errors import TrainingError
from conceptry.formats.lora import LoraModule
from conceptry.trainer import loop
from conceptry.trainer.adapters import Adapter
from conceptry.trainer.training import train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import write_job


def run(folder: Path, method: str, rate: float, **changes: Any) -> None:
    group = {"textual_inversion": "embedding", "lora": "lora"}[method]
    settings = {"learning_rates": {group: rate}, "schedule": "constant", "keep": "last", **changes}
    job = write_job(method, folder, steps=2, settings=settings)
    train(job, base=make_pipeline(), workdir=folder / "work", cache_folder=folder / "cache")


def test_a_run_that_moves_nothing_leaves_no_concept(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="moved no parameter") as caught:
        run(tmp_path, "textual_inversion", 1e-12)
    assert caught.value.hint == "raise the learning rate or the number of steps"
    assert not (tmp_path / "work").exists()


def test_a_concept_that_changes_no_picture_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="changes no picture"):
        run(tmp_path, "lora", 1e-12)
    assert not (tmp_path / "work" / "concept").exists()


def test_values_that_are_not_finite_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop._update

    def spoil(run: loop.Run) -> None:
        real(run)
        with torch.no_grad():
            next(iter(run.learner.parameters.values()))[0] = float("inf")

    monkeypatch.setattr(loop, "_update", spoil)
    with pytest.raises(TrainingError, match="not finite"):
        run(tmp_path, "lora", 1e-3)
    assert not (tmp_path / "work" / "concept").exists()


def test_a_file_that_answers_otherwise_than_what_was_trained_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Adapter.to_module

    def store_more(self: Adapter) -> LoraModule:
        return replace(real(self), numbers={"alpha": 1.02 * self.alpha})

    monkeypatch.setattr(Adapter, "to_module", store_more)
    with pytest.raises(TrainingError, match="answers otherwise than what was trained"):
        run(tmp_path, "lora", 1e-2)
    assert not (tmp_path / "work" / "concept").exists()
