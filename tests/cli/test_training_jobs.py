"""Many jobs of one file, plans, and recipes of other trainers, through the command line alone."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from conceptry.cli.output import Output
from conceptry.cli.progress import follow_training
from conceptry.trainer.events import TrainEvent
from tests.cli.conftest import Run
from tests.trainer.runs import paint_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet


@pytest.fixture
def jobs(base: Path, tmp_path: Path) -> Path:
    """Give a file of three jobs, of which the second has no pictures."""
    for name in ("one", "three"):
        paint_pictures(tmp_path / name, count=2)
    tables = "\n".join(
        f'[[jobs]]\nname = "me/{name}"\nimages = "{name}"\nseed = {seed}'
        for seed, name in enumerate(("one", "two", "three"))
    )
    text = f"""
    [defaults]
    method = "textual_inversion"
    placeholder = "<imp>"
    superclass = "creature"
    base = "{base}"
    steps = 2
    precision = "float32"
    settings = {{batch_size = 2, vectors = 1, warmup_steps = 0}}
    {tables}
    """
    path = tmp_path / "jobs.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_bad_job_is_named_the_others_are_published_and_again_nothing_is_done_twice(
    run: Run, jobs: Path
) -> None:
    planned = run("train", "--jobs", str(jobs), "--dry-run", "--json", code=1).document
    assert (planned["waiting"], planned["trained"], planned["failed"]) == (2, 0, 1)
    assert "is no folder of pictures" in planned["jobs"][1]["message"]
    for row in (planned["jobs"][0], planned["jobs"][2]):
        assert (row["pictures"], row["steps"], row["image_steps"], row["fits"]) == (2, 2, 4, True)
        assert row["seconds"] is not None
        assert row["peak_bytes"] > row["base_bytes"] > 0
    assert run("list", "-q").out == ""

    first = run("train", "--jobs", str(jobs), "--json", code=1).document
    assert [row["state"] for row in first["jobs"]] == ["trained", "failed", "trained"]
    assert first["jobs"][1]["name"] == "me/two"
    assert "is no folder of pictures" in first["jobs"][1]["message"]
    assert sorted(run("list", "-q").out.split()) == ["me/one@0.1.0", "me/three@0.1.0"]

    paint_pictures(jobs.parent / "two")
    again = run("train", "--jobs", str(jobs), "--json").document
    assert [row["state"] for row in again["jobs"]] == ["skipped", "trained", "skipped"]


def test_a_share_of_the_jobs_is_trained_by_one_machine(run: Run, jobs: Path) -> None:
    done = run("train", "--jobs", str(jobs), "--shard", "1/2", "--dry-run", "--json").document
    assert [row["name"] for row in done["jobs"]] == ["me/one", "me/three"]
    assert "no share of the jobs" in run("train", "--jobs", str(jobs), "--shard", "3/2", code=2).err
    assert "give them with --jobs FILE" in run("train", "lora", "--shard", "1/2", code=2).err
    assert "belongs into the file" in run("train", "--jobs", str(jobs), "--seed", "3", code=2).err


def test_progress_says_steps_a_second_and_the_share_of_the_limit() -> None:
    class Kept:
        said: ClassVar[list[str]] = []

        def phase(self, text: str) -> None:
            self.said.append(text)

        def update(self, done: float, total: float, detail: str = "") -> None:
            self.said.append(detail)

    show = follow_training(Kept(), Output(mode="human", verbose=False))
    for step, seconds, share in ((1, 5.0, None), (11, 9.0, 0.314)):
        show(TrainEvent(kind="step", step=step, total=20, loss=0.125, seconds=seconds, share=share))
    assert Kept.said == [
        "step 1 of 20, loss 0.1250",
        "step 11 of 20, loss 0.1250, 2.5 steps/s, 31% of the device's limit",
    ]


@pytest.mark.slow
def test_a_run_is_watched_and_made_again_from_the_store(run: Run, base: Path, tmp_path: Path) -> None:
    words = ["train", "textual_inversion", "--images", str(paint_pictures(tmp_path / "imp"))]
    words += ["--base", str(base), "--placeholder", "<imp>", "--superclass", "creature", "--steps", "4"]
    words += ["--precision", "float32", "--set", "batch_size=2", "--title", "Imp"]
    words += ["--workdir", str(tmp_path / "work")]
    done = run(*words, "--name", "me/imp", "--previews", "--curves", "--verbose")
    assert (tmp_path / "work" / "previews.png").is_file()
    assert (tmp_path / "work" / "curves.png").is_file()
    assert "previews.png" in done.err
    again = run("train", "--like", "me/imp@0.1.0", "--name", "me/again", "--title", "Imp", "--json")
    assert again.document["reference"] == "me/again@0.1.0"
    one, two = (run("show", f"me/{name}", "--json").document for name in ("imp", "again"))
    assert [file["sha256"] for file in two["manifest"]["builds"][0]["parts"][0]["files"]] == [
        file["sha256"] for file in one["manifest"]["builds"][0]["parts"][0]["files"]
    ]
    assert "are of one job" in run("train", "--jobs", "jobs.toml", "--previews", code=2).err
    assert "--like takes" in run("train", "--like", "nowhere.safetensors", "--name", "me/x", code=2).err


def test_a_plan_says_what_a_job_needs_and_trains_nothing(run: Run, base: Path, tmp_path: Path) -> None:
    pictures = paint_pictures(tmp_path / "data" / "10_imp creature")
    recipe = tmp_path / "kohya.toml"
    recipe.write_text(
        'network_module = "networks.lora"\nnetwork_dim = 2\ntrain_data_dir = "data"\nmax_train_steps = 5\n'
        "train_batch_size = 3\nnoise_offset = 0.1\n",
        encoding="utf-8",
    )
    words = ("train", "--from", str(recipe), "--name", "me/imp", "--base", str(base), "--dry-run")
    done = run(*words, "--json")
    assert (done.document["pictures"], done.document["steps"], done.document["image_steps"]) == (3, 5, 15)
    assert done.document["fits"] is True
    assert done.document["peak_bytes"] > done.document["base_bytes"] > 0
    assert "noise_offset = 0.1: not used, there is no such key here" in done.err
    assert f"{pictures}" not in run("list", "-q").out
    assert run("list", "-q").out == ""
