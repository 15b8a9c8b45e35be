"""What makes a row old: other numbers of its method, another scorer, or less drawn; and what may stand in one table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from conceptry.bases import FamilyId
from conceptry.evaluation.bench_conditions import (
    Conditions,
    choose_rows,
    digest_scorer,
    is_as_good,
    list_done,
    put_row,
    state_conditions,
)
from conceptry.evaluation.bench_methods import find_method, list_table
from conceptry.evaluation.bench_page import make_markdown
from conceptry.evaluation.bench_results import BaseModelId, merge_results, read_results, write_results
from conceptry.evaluation.bench_running import Bench, BenchOptions, digest_base
from conceptry.evaluation.bench_summary import is_complete, summarise, to_json
from conceptry.evaluation.toybench import load_suite
from conceptry.trainer import settings
from tests.evaluation.rows import gather, make_row
from tests.fakes.pipelines import make_pipeline

TOYBOX = FamilyId("toybox")
SUITE = load_suite()
DOCS = Path(__file__).parents[2] / "docs"
TODAY = Conditions(recipe="sha256:now", scorer="sha256:s", prompts=20, more_pictures=10, drawing_steps=20)


@pytest.mark.parametrize(
    ("stated", "as_good"),
    [
        ({}, True),
        ({"recipe": "sha256:now", "prompts": 20}, True),
        ({"prompts": 24, "drawing_steps": 50}, True),
        ({"recipe": "sha256:before"}, False),
        ({"scorer": "sha256:other"}, False),
        ({"score_version": 0}, False),
        ({"prompts": 1}, False),
        ({"more_pictures": 4}, False),
        ({"drawing_steps": 1}, False),
    ],
)
def test_a_row_is_measured_again_where_what_it_states_is_no_longer_so(
    stated: dict[str, Any], as_good: bool
) -> None:
    assert is_as_good(make_row("lora", "s0", 0.5, 0.9, **stated), TODAY) is as_good


def test_a_full_row_takes_the_place_of_a_sample_and_no_sample_that_of_a_full_row() -> None:
    sample, full = (make_row("lora", "s0", 0.5, 0.9, prompts=count) for count in (1, 20))
    other = make_row("lora", "s1", 0.5, 0.9)
    assert put_row((sample, other), full) == (other, full)
    assert put_row((full, other), sample) == (full, other)
    before = make_row("lora", "s0", 0.4, 0.9, settings="sha256:before")
    assert put_row((before, other), full) == (other, full)


def test_a_changed_default_is_another_recipe_and_the_budget_is_not_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = find_method("lora", SUITE)
    assert method.recipe is not None
    before = method.recipe(TOYBOX, 640)
    assert before == method.recipe(TOYBOX, 640) != method.recipe(TOYBOX, 320)
    presets = {**settings.load_presets()}
    presets["lora"] = {**presets["lora"], "families": {}, "steps": 77}
    monkeypatch.setattr(settings, "load_presets", lambda: presets)
    changed = method.recipe(TOYBOX, 640)
    assert changed != before
    presets["lora"] = {**presets["lora"], "steps": 78}
    assert method.recipe(TOYBOX, 640) == changed
    presets["lora"] = {**presets["lora"], "clip_norm": 0.125}
    assert method.recipe(TOYBOX, 640) != changed


def test_a_run_measures_again_what_is_old_and_nothing_else(tmp_path: Path) -> None:
    options = BenchOptions(out=tmp_path / "out", workdir=tmp_path / "work")
    bench, method = Bench(SUITE, make_pipeline("sd1"), options), find_method("lora", SUITE)
    today = state_conditions(
        method.recipe, family=bench.family, sample_passes=SUITE.sample_passes, protocol="toybox-1", prompts=20
    )
    subjects = [one for one in SUITE.subjects if one.subject == "instance"][:4]
    stated: tuple[dict[str, Any], ...] = (
        {},
        asdict(today),
        {**asdict(today), "prompts": 1},
        {**asdict(today), "recipe": "sha256:before"},
    )
    common = {"seed": SUITE.seed, "settings": str(method.digest)}
    kept = gather(
        *(
            make_row("lora", subject.id, 0.5, 0.9, **common, **more)
            for subject, more in zip(subjects, stated, strict=True)
        )
    ).model_copy(
        update={
            "suite_digest": str(SUITE.digest),
            "base": BaseModelId(family="sd1", digest=digest_base(bench.pipeline)),
            "sample_passes": SUITE.sample_passes,
        }
    )
    write_results(tmp_path / "out" / "lora.json", kept)
    assert list(bench.run([method], subjects, str)) == []
    # Each try ends at once: the scorer of the toy world reads no pictures of another base.
    tried = [str(failure).partition(":")[0] for failure in bench.failures]
    assert tried == [f"lora on {subject.id}" for subject in subjects[2:]]
    assert read_results(tmp_path / "out" / "lora.json") == kept


def test_a_method_at_two_settings_counts_no_subject_twice() -> None:
    old = [make_row("lora", f"s{n}", 0.2, 0.9, settings="sha256:old") for n in range(3)]
    new = [make_row("lora", f"s{n}", 0.8, 0.9, settings="sha256:new") for n in range(4)]
    (one,) = summarise(gather(*new, *old), "instance")
    assert one.subjects == 4
    assert one.identity == pytest.approx(0.8)
    kept, remarks = choose_rows((*new[:3], *old))
    assert kept == tuple(old)
    assert remarks == (
        "3 rows of lora are left out: a sample, or measured with other settings or another scorer",
    )


def test_rows_that_state_nothing_stand_beside_those_that_do_and_samples_do_not() -> None:
    stated = {"recipe": "sha256:now", "scorer": "sha256:s", "score_version": 1, "prompts": 20}
    rows = (
        make_row("lora", "s0", 0.5, 0.9),
        make_row("lora", "s1", 0.5, 0.9, **stated),
        make_row("lora", "s2", 0.5, 0.9, **stated),
        make_row("lora", "s3", 0.9, 0.9, **{**stated, "prompts": 1}),
        make_row("lora", "s4", 0.9, 0.9, **{**stated, "recipe": "sha256:before"}),
        make_row("xti", "s0", 0.9, 0.9, **{**stated, "scorer": "sha256:other"}),
    )
    kept, remarks = choose_rows(rows)
    assert [row.subject for row in kept] == ["s0", "s1", "s2"]
    assert [remark[:12] for remark in remarks] == ["2 rows of lo", "1 rows of xt"]
    samples = tuple(make_row("lora", f"s{n}", 0.5, 0.9, prompts=1) for n in range(2))
    assert choose_rows((*samples, make_row("xti", "s0", 0.5, 0.9)))[0][0].method == "xti"
    assert choose_rows(samples) == (samples, ())


def test_commit_and_machine_are_those_of_each_row() -> None:
    ours = gather(make_row("lora", "s0", 0.5, 0.9), make_row("lora", "s1", 0.5, 0.9, commit="later"))
    theirs = gather(make_row("lora", "s2", 0.5, 0.9)).model_copy(
        update={"commit": "theirs", "machine": {"cores": 64}}
    )
    merged, _ = merge_results([(Path("a.json"), ours), (Path("b.json"), theirs)])
    assert {row.subject: row.commit for row in merged.rows} == {"s0": "abc", "s1": "later", "s2": "theirs"}
    document = to_json(merged)
    assert document["commit"] == "abc, later, theirs"
    assert document["machines"] == [{"cores": 2}, {"cores": 64}]


def test_a_table_is_complete_where_each_method_has_a_full_row_of_each_subject() -> None:
    methods = [method.id for method in list_table(SUITE) if method.origin is None]
    rows = [
        make_row(method, subject.id, 0.5, 0.9, kind=subject.subject)
        for method in methods
        for subject in SUITE.subjects
    ]
    assert is_complete(gather(*rows))
    assert not is_complete(gather(*rows[1:]))
    assert not is_complete(gather(rows[0].model_copy(update={"prompts": 1}), *rows[1:]))
    assert "Left out" not in make_markdown(gather(*rows[:2]))
    sample = rows[0].model_copy(update={"prompts": 1})
    page = make_markdown(gather(sample, *rows[1:2]))
    assert "1 rows of textual_inversion are left out: a sample" in page


def test_what_is_listed_as_done_is_what_a_run_leaves_alone() -> None:
    method = find_method("lora", SUITE)
    assert method.recipe is not None
    common = {"settings": str(method.digest)}
    today = {**common, "recipe": str(method.recipe(TOYBOX, 640)), "prompts": 20}
    rows = [
        make_row("lora", "plain", 0.5, 0.9, **common),
        make_row("lora", "today", 0.5, 0.9, **today),
        make_row("lora", "sample", 0.5, 0.9, **{**today, "prompts": 1}),
        make_row("lora", "before", 0.5, 0.9, **{**today, "recipe": "sha256:before"}),
        make_row("lora", "other settings", 0.5, 0.9),
    ]
    assert list_done(method, rows, family=TOYBOX, sample_passes=640) == {"plain", "today"}
    assert list_done(method, rows, family=None, sample_passes=640) == {"plain", "today", "before"}
    assert list_done(method, rows, family=TOYBOX, sample_passes=640, prompts=1) == {
        "plain",
        "today",
        "sample",
    }


def test_the_scorer_of_each_protocol_has_its_own_digest() -> None:
    assert digest_scorer("toybox-1") == digest_scorer("toybox-1") != digest_scorer("clip-dino")


def test_the_rows_that_are_kept_need_not_be_measured_again() -> None:
    rows = [row for path in sorted((DOCS / "toybench").glob("*.json")) for row in read_results(path).rows]
    assert len(rows) >= 63
    assert all(is_as_good(row, TODAY) for row in rows if row.recipe is None)
    assert len(choose_rows(rows)[0]) == len(rows)
