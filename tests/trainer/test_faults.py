"""What goes wrong in one run: it is explained, its neighbours end as if nothing had been, nothing dead comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conceptry.errors import TrainingError, UsageError
from conceptry.trainer import staging
from conceptry.trainer.jobs import make_job
from conceptry.trainer.training import train
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import write_job


def run(folder: Path, method: str = "textual_inversion", **changes: Any) -> staging.TrainResult:
    job = write_job(method, folder, **changes)
    return train(job, base=make_pipeline(), workdir=folder / "work", cache_folder=folder / "cache")


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_run_that_ends_far_above_its_start_is_refused_and_can_be_looked_at(
    keep: str, tmp_path: Path
) -> None:
    settings = {
        "learning_rates": {"weights": 0.1},
        "prior": "none",
        "clip_norm": None,
        "evaluate_every_steps": 2,
        "checkpoint_every_steps": 2,
        "keep": keep,
    }
    with pytest.raises(TrainingError, match="worse than the base") as caught:
        run(tmp_path, "dreambooth", steps=5, settings=settings)
    assert "learning rate" in str(caught.value.hint)
    assert not (tmp_path / "work" / "concept").exists()
    assert (tmp_path / "work" / "checkpoints" / "step-00000004").is_dir()


def test_pictures_too_small_for_the_denoiser_are_refused_with_the_least_side(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resolution_pixels") as caught:
        run(tmp_path, settings={"resolution_pixels": 1})
    assert caught.value.where == "settings.resolution_pixels"


# --- folders -------------------------------------------------------------------------------------------------------


def test_no_two_jobs_share_a_folder(tmp_path: Path) -> None:
    told = {"method": "lora", "images": tmp_path, "placeholder": "<imp>", "superclass": "creature"}
    rows = [
        ("a-b/c", "1.0.0"),
        ("a/b-c", "1.0.0"),
        ("a/b", "1.0.0-c"),
        ("a/b", "1.0.0-C"),
        ("a/b", "1.0.0+c"),
        ("a/b-1.0.0", "1.0.0"),
    ]
    jobs = [make_job({**told, "name": name, "version": version}) for name, version in rows]
    folders = [staging.choose_folder(job, tmp_path) for job in jobs]
    assert len({str(folder).casefold() for folder in folders}) == len(rows)
    assert all(folder.is_relative_to(tmp_path / "training") for folder in folders)
