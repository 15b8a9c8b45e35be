from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.errors import UsageError
from conceptry.trainer.jobfiles import read_jobs, take_shard

JOBS = """
[defaults]
method = "lora"
superclass = "creature"
placeholder = "<imp>"
settings = {rank = 4, batch_size = 2}

[[jobs]]
name = "me/one"
images = "one"

[[jobs]]
name = "me/two"
images = "two"
mehtod = "perfusion"

[[jobs]]
name = "me/three"
images = "three"
method = "textual_inversion"
settings = {rank = 8}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "jobs.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_paths_beside_the_file_make_whole_jobs(tmp_path: Path) -> None:
    first, _, third = (entry.job for entry in read_jobs(write(tmp_path, JOBS)))
    assert first is not None
    assert third is not None
    assert (first.method, first.images, first.settings) == (
        "lora",
        tmp_path / "one",
        {"rank": 4, "batch_size": 2},
    )
    assert (third.method, third.settings) == ("textual_inversion", {"rank": 8, "batch_size": 2})


def test_a_bad_table_is_an_entry_with_its_error_beside_the_good_ones(tmp_path: Path) -> None:
    entries = read_jobs(write(tmp_path, JOBS))
    assert [entry.label for entry in entries] == ["me/one", "me/two", "me/three"]
    error = entries[1].error
    assert error is not None
    assert "no key 'mehtod'" in error.message
    assert error.hint == "did you mean 'method'?"
    assert error.where == "jobs[1].mehtod"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[job]]\nname = 'a/b'", "no table 'job'"),
        ("[defaults]\nmethod = 'lora'", "no [[jobs]] table"),
        ("[[jobs]", "cannot read"),
        ("jobs = 3", "no [[jobs]] table"),
    ],
)
def test_a_file_without_jobs_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_jobs(write(tmp_path, text))
    assert message in caught.value.message
    assert caught.value.hint


def test_shards_hold_every_job_once() -> None:
    jobs = list(range(10))
    shards = [take_shard(jobs, f"{number}/4") for number in range(1, 5)]
    assert sorted(job for shard in shards for job in shard) == jobs
    assert [len(shard) for shard in shards] == [3, 3, 2, 2]


@pytest.mark.parametrize("shard", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/5"])
def test_a_shard_that_is_none_is_refused(shard: str) -> None:
    with pytest.raises(UsageError, match="is no share of the jobs"):
        take_shard([1], shard)


def test_a_second_job_of_one_name_and_version_is_refused_where_the_file_is_read(tmp_path: Path) -> None:
    text = JOBS.replace("me/three", "me/one")
    first, _, second = read_jobs(write(tmp_path, text))
    assert first.job is not None
    assert second.job is None
    assert "two jobs make me/one@0.1.0" in str(second.error)
    assert second.error is not None
    assert second.error.where == "jobs[2].name"
    _, _, later = read_jobs(write(tmp_path, text + 'version = "0.2.0"\n'))
    assert later.job is not None
