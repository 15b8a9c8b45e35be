"""A piece of the whole benchmark: which process measures what, every part in one budget, and what goes on where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conceptry.errors import TrainingError, UsageError
from conceptry.evaluation import bench_pieces
from conceptry.evaluation.bench_methods import (
    choose_methods,
    list_methods,
    list_studies,
    list_table,
    load_studies,
)
from conceptry.evaluation.bench_pieces import FigureStudy, run_everything, write_figures
from conceptry.evaluation.bench_running import Bench, BenchOptions
from conceptry.evaluation.bench_shards import Shard, parse_shard
from conceptry.evaluation.claims import FIGURES_NAME
from conceptry.evaluation.own_defaults import compare_defaults, write_defaults
from conceptry.evaluation.toybench import BenchSubject, load_suite
from tests.evaluation.rows import gather, make_row
from tests.fakes.pipelines import make_pipeline

SUITE = load_suite()


def name(methods: Sequence[Any]) -> list[str]:
    return [method.id for method in methods]


def open_bench(folder: Path, **changes: Any) -> Bench:
    options = BenchOptions(out=folder / "out", workdir=folder / "work", sample_passes=8, steps=1)
    return Bench(SUITE, make_pipeline("sd1"), replace(options, **changes))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_share_all_methods_and_those_of_one_training_stay_together(count: int) -> None:
    methods = list_methods(SUITE)
    parts = [name(Shard(number, count).choose(methods)) for number in range(1, count + 1)]
    assert sorted(id for part in parts for id in part) == sorted(name(methods))
    gates = {id for id in name(methods) if id.startswith("perfusion")}
    assert len(gates) == 4
    assert sum(bool(gates & set(part)) for part in parts) == 1
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    guest = replace(methods[0], id="guest", origin="guest = package:METHOD")
    more = [name(Shard(number, count).choose((*methods, guest))) for number in range(1, count + 1)]
    assert [[id for id in part if id != "guest"] for part in more] == parts


def test_a_part_that_is_none_is_named() -> None:
    assert parse_shard(None) == Shard(1, 1)
    assert parse_shard("2/3") == Shard(2, 3)
    for text in ("3/2", "0/2", "a", "1/2/3"):
        with pytest.raises(UsageError, match="names no part"):
            parse_shard(text)


def test_a_piece_measures_every_part_in_its_folder_within_one_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, int, int]] = []
    bench = open_bench(tmp_path)

    def note_run(self: Bench, methods: Any, subjects: Any, on_step: Any) -> Any:
        place = str(self.options.out.relative_to(tmp_path / "out"))
        asked.extend((place, method.id, len(subjects), self.sample_passes) for method in methods)
        return iter(())

    def note_groups(bench: Bench, methods: Any, on_step: Any) -> Any:
        asked.extend(("together", method.id, 0, bench.sample_passes) for method in methods)
        return iter(())

    monkeypatch.setattr(Bench, "run", note_run)
    monkeypatch.setattr(bench_pieces, "measure_groups", note_groups)
    monkeypatch.setattr(bench_pieces, "FIGURE_STUDIES", ())
    for number in (1, 2):
        list(run_everything(bench, Shard(number, 2), str))
    sample = load_studies()["own_defaults"]
    assert {(id, count) for place, id, count, _ in asked if place == "."} == {
        (id, len(SUITE.subjects)) for id in name(list_table(SUITE))
    }
    assert SUITE.apart < set(name(list_methods(SUITE)))
    assert name(choose_methods(SUITE, ())) == name(list_table(SUITE))
    assert name(choose_methods(SUITE, sorted(SUITE.apart))) == sorted(SUITE.apart)
    assert not SUITE.apart & {id for _, id, *_ in asked}
    assert {id for place, id, *_ in asked if place == "studies"} == set(name(list_studies()))
    assert {(id, passes) for place, id, _, passes in asked if place == "own-defaults"} == {
        (id, 0) for id in sample["methods"]
    }
    assert {id for place, id, *_ in asked if place == "together"} == {
        "pivotal", "perfusion", "lora", "textual_inversion",
    }  # fmt: skip
    assert len(asked) == len(set(asked))
    assert bench.options.out == tmp_path / "out"


def test_figures_are_written_subject_by_subject_and_go_on(tmp_path: Path) -> None:
    asked: list[str] = []

    def study(bench: Bench, subjects: Sequence[BenchSubject], on_step: Any) -> dict[str, dict[str, float]]:
        (subject,) = subjects
        asked.append(subject.id)
        if subject.id == "cup-20":
            raise TrainingError("not finite")
        return {"moved": {subject.id: 0.5}}

    row = FigureStudy(id="moved", method="dreambooth", subjects=None, study=study)
    subjects = [SUITE.find_subject(id) for id in ("creature-20", "cup-20", "ball-20")]
    bench = open_bench(tmp_path)
    write_figures(bench, row, subjects[:1], str)
    write_figures(bench, row, subjects, str)
    assert asked == ["creature-20", "cup-20", "ball-20"]
    assert [str(failure) for failure in bench.failures] == ["moved on cup-20: not finite"]
    document = json.loads((tmp_path / "out" / FIGURES_NAME / "moved.json").read_text(encoding="utf-8"))
    assert document["figures"] == {"moved": {"creature-20": 0.5, "ball-20": 0.5}}
    late = open_bench(tmp_path / "late", seconds=0.0)
    write_figures(late, row, subjects, str)
    assert len(asked) == 3


def test_own_defaults_stand_beside_the_rows_of_the_table() -> None:
    own = gather(
        make_row("lora", "creature-20", 0.9, 1.0, sample_passes=4800), make_row("xti", "s1", 0.5, 0.5)
    )
    rows = compare_defaults(own, gather(make_row("lora", "creature-20", 0.7, 0.8)))
    assert rows[0]["in_table"] == {"sample_passes": 8, "identity": 0.7, "prompt": 0.8}
    page = "\n".join(write_defaults(rows))
    assert "| lora | creature-20 | 4800 | 0.90 | 0.70 | 1.00 | 0.80 | \u2013 |" in page
    assert "| xti | s1 | 8 | 0.50 | \u2013 | 0.50 | \u2013 | \u2013 |" in page
    assert write_defaults([]) == []
