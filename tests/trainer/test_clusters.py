"""Many jobs on Ray: real Ray on this machine where it is installed, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conceptry.errors import MissingExtraError
from conceptry.formats.tensors import read_tensors
from conceptry.trainer import clusters
from conceptry.trainer.clusters import train_on_ray
from conceptry.trainer.jobs import make_job
from conceptry.trainer.many import JobOutcome, ManyOptions, train_many
from tests.trainer.runs import write_job


def test_a_machine_without_ray_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(clusters, "import_module", refuse)
    with pytest.raises(MissingExtraError, match="needs the package ray") as caught:
        train_on_ray([write_job("lora", tmp_path)], ManyOptions())
    assert "conceptry[ray]" in str(caught.value.hint)


def test_a_job_that_travels_says_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    also = [{"placeholder": "<rex>", "superclass": "dog", "images": "rex"}]
    job = write_job("lora", tmp_path, images="pictures", also=also)
    told = clusters._write_job(job)
    monkeypatch.chdir("/")
    read = make_job(told)
    assert read.images == tmp_path / "pictures"
    assert read.also[0].images == tmp_path / "rex"
    assert read.model_copy(update={"images": job.images, "also": job.also}) == job


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_concepts_trained_on_ray_are_those_trained_here_and_a_bad_job_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="of the extra ray")
    jobs = [
        write_job("textual_inversion", tmp_path, name=f"tests/imp-{seed}", seed=seed, steps=2)
        for seed in (0, 1)
    ]
    bad = write_job("lora", tmp_path, name="tests/bad").model_copy(update={"images": tmp_path / "nowhere"})
    heard: list[JobOutcome] = []
    options = ManyOptions(
        workdir=tmp_path / "ray", cache_folder=tmp_path / "cache", together=2, on_outcome=heard.append
    )
    there = train_on_ray([jobs[0], bad, jobs[1]], options)
    assert [one.error is None for one in there] == [True, False, True]
    assert "no folder" in str(there[1].error)
    assert sorted(str(one.job.name) for one in heard) == ["tests/bad", "tests/imp-0", "tests/imp-1"]
    here = train_many(
        jobs, ManyOptions(workdir=tmp_path / "here", cache_folder=tmp_path / "cache", together=1)
    )
    for mine, other in zip((there[0], there[2]), here, strict=True):
        assert mine.result is not None
        assert other.result is not None
        tensors, others = (
            read_tensors(one.folder / "embedding.safetensors") for one in (mine.result, other.result)
        )
        for name, value in others.items():
            assert np.allclose(value.to_numpy(), tensors[name].to_numpy(), rtol=0, atol=1e-5)
