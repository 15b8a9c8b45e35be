"""``concepts benchmark-methods`` as a user meets it: parts, shards, others' results, and how a run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.evaluation.bench_results import read_results, write_results
from tests.cli.conftest import Run
from tests.evaluation.rows import gather, make_row

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' remarks
GUEST = """
from conceptry.evaluation.bench_methods import BenchMethod


def teach(lesson):
    raise KeyError("x")


METHOD = BenchMethod(id="guest", title="guest", teach=teach)
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "site"
    info = place / "guest-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "bench_guest.py").write_text(GUEST, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[conceptry.benchmark_methods]\nguest = bench_guest:METHOD\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(place)


def test_results_of_others_that_are_not_there_are_named(run: Run, tmp_path: Path) -> None:
    write_results(tmp_path / "own" / "lora.json", gather(make_row("lora", "s1", 0.5, 0.5)))
    words = ("benchmark-methods", "--summary", "--out", str(tmp_path / "own"), "--merge")
    assert "no results in" in run(*words, str(tmp_path / "nonexist"), code=3).err
    (tmp_path / "empty").mkdir()
    assert "no results in" in run(*words, str(tmp_path / "empty"), code=3).err
    assert not (tmp_path / "toybench.json").exists()


def test_parts_of_the_benchmark_are_named_before_they_are_run(run: Run) -> None:
    listed = [
        {row["method"] for row in run("benchmark-methods", *words, "--list", "--json").document["methods"]}
        for words in (("--shard", "1/2"), ("--shard", "2/2"), (), ("--own-defaults",), ("--together",))
    ]
    assert not listed[0] & listed[1]
    assert listed[0] | listed[1] == listed[2]
    assert listed[3] == {"textual_inversion", "perfusion", "lora", "dreambooth"}
    assert listed[4] == {"textual_inversion", "perfusion", "lora", "pivotal"}
    assert "names no part" in run("benchmark-methods", "--shard", "3/2", code=2).err
    assert "takes the suite's own" in run("benchmark-methods", "--everything", "--method", "lora", code=2).err


@pytest.mark.slow
def test_a_tiny_piece_on_the_bundled_base_is_measured_and_a_method_that_failed_ends_it_with_1(
    run: Run, guest: None
) -> None:
    words = ("benchmark-methods", "--subject", "cup-20", "--passes", "16", "--prompts", "1", "--steps", "1")
    methods = ("--method", "guest", "--method", "textual_inversion", "--out", "results/toybench")
    document = run(*words, *methods, "--json", code=1).document
    ((failed,), (row,)) = (document["failed"], document["rows"])
    assert "entry point 'guest = bench_guest:METHOD' failed: KeyError: 'x'" in failed
    assert (row["method"], row["subject"], row["sample_passes"]) == ("textual_inversion", "cup-20", 16)
    (kept,) = read_results(Path("results/toybench/textual_inversion.json")).rows
    assert (kept.prompts, kept.drawing_steps) == (1, 1)
    assert kept.identity.floor < kept.identity.ceiling <= 1.0
    assert set(kept.others) == {"identity_second"}
    run("benchmark-methods", "--summary", "--out", "results/toybench")
    assert Path("results/toybench.md").is_file()
