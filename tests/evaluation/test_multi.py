"""Several concepts in one picture: who is there, who is missing or mixed up, and each way of putting them together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptry.composer.attach import attach
from conceptry.composer.compositions import Composition
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.layer_deltas import list_factors
from conceptry.composer.plan import make_plan
from conceptry.composer.ways import WAYS
from conceptry.errors import ConflictError, UsageError
from conceptry.evaluation.bench_methods import BenchMethod, Lesson, Taught
from conceptry.evaluation.bench_multi import (
    TAUGHT_WITH,
    MultiBench,
    describe,
    fill,
    keep_row,
    load_multi_suite,
    measure_groups,
    read_known,
)
from conceptry.evaluation.bench_results import locate_groups, read_groups, write_json
from conceptry.evaluation.bench_running import Bench, BenchOptions
from conceptry.evaluation.combining import COMBINATIONS, count_conflicts, even_out, find_combination
from conceptry.evaluation.identity_thresholds import RULE, Thresholds
from conceptry.evaluation.multi_page import compare, make_page, make_sheet
from conceptry.evaluation.presence import Identity, find_members, score_presences
from conceptry.evaluation.toybench import load_suite
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.sampling import place_two
from conceptry.toybox.scene import NAMED_STYLES, Instance, Scene
from conceptry.toybox.scorer import Scorer
from tests.fakes.concepts import make_embedding, make_lora
from tests.fakes.pipelines import make_pipeline

SUITE = load_suite()
CREATURE, CUP = held_out_instance("creature", 20), held_out_instance("cup", 20)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture(scope="module")
def members(scorer: Scorer) -> tuple[Identity, ...]:
    return tuple(
        Identity(
            prototype=scorer.prototype(render(instance_scenes(instance, 12, part=1))),
            threshold=0.6,
            kind=instance.kind,
            color=instance.color,
        )
        for instance in (CREATURE, CUP)
    )


def look(scorer: Scorer, first: Instance, second: Instance, relation: str = "left") -> Any:
    """Returns what the scorer reads where the first stands so from the second."""
    placed = place_two(first, second, relation, np.random.default_rng(3))
    scene = Scene(placed, "beach", 5, NAMED_STYLES["flat"], relation=relation)
    return scorer.read(render([scene]))[0]


def test_both_are_found_each_once_and_on_the_asked_side(
    scorer: Scorer, members: tuple[Identity, ...]
) -> None:
    there = find_members(look(scorer, CREATURE, CUP), members, "left")
    assert there.is_joint
    assert there.in_place is True
    assert find_members(look(scorer, CREATURE, CUP), members, "right").in_place is False
    assert find_members(look(scorer, CREATURE, CUP, "above"), members, "above").in_place is True


def test_one_who_is_missing_twice_there_or_in_the_others_colour_is_told(
    scorer: Scorer, members: tuple[Identity, ...]
) -> None:
    stranger = held_out_instance("house", 3)
    missing = find_members(look(scorer, CREATURE, stranger), members, "left")
    assert [found is not None for found in missing.found] == [True, False]
    assert (missing.is_joint, missing.in_place) == (False, None)
    twice = find_members(look(scorer, CREATURE, CREATURE), members)
    assert twice.extra == 1
    painted = replace(
        held_out_instance("cup", 21), color=CREATURE.color, shade=CREATURE.shade, pattern="plain"
    )
    assert painted.kind == CUP.kind
    swapped = find_members(look(scorer, CREATURE, painted), members)
    assert swapped.swaps == 1
    shares = score_presences([missing, twice, swapped], [missing])
    assert shares.joint == 0.0
    assert shares.recall[0] == 1.0
    assert (shares.swaps, shares.duplicates, shares.leaks) == pytest.approx((1 / 3, 1 / 3, 1.0))


def test_the_groups_are_subjects_of_the_suite_with_prompts_for_their_size() -> None:
    multi = load_multi_suite()
    sizes = set()
    for group in multi.groups:
        kinds = [SUITE.find_subject(id).subject for id in group]
        assert kinds.count("style") <= 1
        assert kinds[-1] == "style" or "style" not in kinds
        things = kinds.count("instance")
        sizes.add((things, "style" in kinds))
        for text, _ in multi.list_prompts(things):
            assert fill(text, ["x"] * len(group), has_style="style" in kinds).count("x") >= things
    assert {(2, False), (3, False), (1, True), (2, True)} <= sizes


def make_method(pipeline: Any, make: Any, folder: Path) -> BenchMethod:
    """Returns a method that gives ready concepts of a kind."""

    def teach(lesson: Lesson) -> Taught:
        seed = len(list(folder.glob("*"))) + 1
        name = f"test/{lesson.subject_id}"
        concept = make(folder / str(seed), pipeline, placeholder=f"zork{seed}", name=name, seed=seed)
        return Taught(
            word=f"zork{seed}",
            attach=lambda: attach(Composition(concept), pipeline),
            size_bytes=1,
            sample_passes=8,
            seconds=0.0,
            concept=concept,
        )

    return BenchMethod(id=make.__name__, title="", teach=teach)


def test_each_way_is_a_row_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    options = BenchOptions(out=tmp_path / "out", workdir=tmp_path / "work", sample_passes=8, steps=1)
    pipeline = make_pipeline("sd1")
    bench = MultiBench(Bench(SUITE, pipeline, options), thresholds=Thresholds(others=2))
    group, ways = ("creature-20", "cup-20"), ["attached", "merge-sum"]
    lora = make_method(pipeline, make_lora, tmp_path / "lora")
    rows = list(bench.run(lora, [group], ways))
    assert [row["way"] for row in rows] == ways
    for row in rows:
        assert 0.0 <= row["joint"] <= min(row["recall"])
        assert (tmp_path / "out" / row["pictures_file"]).is_file()
    assert list(bench.run(lora, [group], ways, rows)) == []
    (words,) = bench.run(make_method(pipeline, make_embedding, tmp_path / "words"), [group], ["merge-sum"])
    assert "impossible" in words


def open_multi(folder: Path, **changes: Any) -> Bench:
    options = BenchOptions(out=folder / "out", workdir=folder / "work", sample_passes=8, steps=1)
    return Bench(replace(SUITE, **changes), make_pipeline("sd1"), options)


def test_groups_go_on_whatever_variants_there_are_and_not_with_other_words(tmp_path: Path) -> None:
    bench, path = open_multi(tmp_path), locate_groups(tmp_path / "out")
    assert list(measure_groups(bench, [], str)) == []
    row = make_group("attached", ["creature-20", "cup-20"], 0.5)
    write_json(path, {**describe(bench), "rows": [row]})
    assert read_known(path, open_multi(tmp_path, digest="another", variants=())) == [row]
    for changes in ({"seed": 12}, {"plain_word": "zwx"}, {"training_pictures": 4}):
        with pytest.raises(ConflictError, match=next(iter(changes))):
            read_known(path, open_multi(tmp_path, **changes))


def test_the_groups_that_are_kept_were_taught_as_today(tmp_path: Path) -> None:
    path = locate_groups(Path(__file__).parents[2] / "docs" / "toybench")
    rows, document = read_groups(path)
    assert len(rows) >= 90
    bench = open_multi(tmp_path)
    said = describe(bench)
    kept = {**TAUGHT_WITH.get(document.get("suite_digest", ""), {}), **document}
    assert {name for name in said if kept[name] != said[name]} <= {
        "base",
        "sample_passes",
    }  # of another base here
    assert kept["sample_passes"] == SUITE.sample_passes
    for row in rows:
        assert (path.parents[1] / row["pictures_file"]).is_file()


def test_a_row_that_was_judged_by_an_earlier_rule_is_drawn_again_and_replaced(tmp_path: Path) -> None:
    bench, path = open_multi(tmp_path), locate_groups(tmp_path / "out")
    method = make_method(bench.pipeline, make_lora, tmp_path / "lora")
    multi, group = MultiBench(bench, thresholds=Thresholds(others=2)), ["creature-20", "cup-20"]
    old = {**make_group("attached", group, 0.5), "method": method.id}
    write_json(path, {**describe(bench), "rows": [old, {**old, "way": "focus"}]})
    (row,) = multi.run(method, [group], ["attached"], [old])
    assert [(one["way"], one.get("found_by")) for one in keep_row(path, row, bench)] == [
        ("focus", None),
        ("attached", RULE),
    ]
    assert list(multi.run(method, [group], ["attached"], [row])) == []
    page = make_page({"sample_passes": 8, "rows": [old, row]})
    assert "sample passes each, found by the threshold halfway-between-means" in page


def test_no_group_is_begun_that_would_end_too_late(tmp_path: Path) -> None:
    bench = open_multi(tmp_path)
    bench.options = replace(bench.options, seconds=0.0)
    method = make_method(bench.pipeline, make_lora, tmp_path / "lora")
    assert list(MultiBench(bench).run(method, [["creature-20", "cup-20"]])) == []


def test_every_way_of_composing_is_compared_and_an_unknown_one_is_named() -> None:
    compared = {row.id for row in COMBINATIONS}
    assert {"attached" if row.id == "sum" else row.id for row in WAYS} <= compared
    multi = load_multi_suite()
    assert {*multi.ways, *multi.merges, *multi.ways_of_three} <= compared
    assert set(multi.list_ways(2, has_style=False)) == {*multi.ways, *multi.merges}
    assert multi.list_ways(2, has_style=True) == multi.list_ways(1, has_style=True) == multi.ways
    assert len(multi.list_ways(3, has_style=False)) == 2
    with pytest.raises(UsageError, match="no way called 'blend'"):
        find_combination("blend")


def test_strengths_from_cosines_give_the_sum_the_energy_of_the_strongest(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    concepts = [
        make_lora(tmp_path / str(seed), pipeline, name=f"test/l{seed}", placeholder=f"zork{seed}", seed=seed)
        for seed in (1, 2, 3)
    ]
    plan = make_plan(Composition(*concepts), identify_pipeline(pipeline))
    tables = [list_factors(member) for member in plan.members]
    whole = np.asarray(
        [
            np.concatenate([table[name]().to_dense().double().ravel().numpy() for name in sorted(table)])
            for table in tables
        ]
    )
    expected = np.linalg.norm(whole, axis=1).max() / np.linalg.norm(whole.sum(axis=0))
    assert even_out(plan) == pytest.approx(min(1.0, expected), rel=1e-4)
    dense = torch.tensor([[[1.0, -2.0], [0.0, 3.0]], [[1.0, 2.0], [5.0, 0.0]]])
    assert count_conflicts(dense) == 0.5  # of the two entries that both change, one
    with find_combination("optimiser").combine(concepts, pipeline) as words:
        assert len(words) == 3


def make_group(way: str, members: list[str], joint: float, picture: str = "a.webp") -> dict[str, Any]:
    return {
        "method": "lora", "way": way, "members": members, "pictures": 6, "joint": joint, "recall": [joint, 1.0],
        "swaps": 0.0, "duplicates": 0.0, "leaks": None, "region": None, "processor_seconds": 1.0,
        "pictures_file": picture,
    }  # fmt: skip


def test_the_page_says_what_is_sure_and_what_is_not(tmp_path: Path) -> None:
    groups = [["creature-20", f"cup-{number}"] for number in range(6)]
    rows = [make_group("attached", group, 0.2) for group in groups]
    rows += [make_group("focus", group, 0.6) for group in groups]
    rows += [make_group("cosine", group, 0.0 if at % 2 else 1.0) for at, group in enumerate(groups)]
    better, unsure = (compare(rows, "joint", "focus", other) for other in ("attached", "cosine"))
    assert better is not None
    assert unsure is not None
    assert better.mean == pytest.approx(0.4)
    assert (better.is_sure, better.groups) == (True, 6)
    assert not unsure.is_sure
    few = compare([*rows[4:6], *rows[10:12]], "joint", "focus", "attached")
    assert few is not None
    assert (few.groups, few.is_sure) == (2, False)
    assert compare(rows, "joint", "focus", "switch") is None
    page = make_page({"sample_passes": 8, "rows": [{**row, "found_by": RULE} for row in rows]})
    assert "focus above attached: +0.40 (+0.40 to +0.40), 6 groups: sure" in page
    assert (
        "| attached: all deltas at once | 6 | 36 | 0.20 (0.20 to 0.20) | 0.60 | 0.00 | 0.00 | \u2013" in page
    )
    Image.new("RGB", (6 * 32, 32), "red").save(tmp_path / "a.webp")
    sheet = make_sheet(rows, tmp_path)
    assert sheet.size == (76 + 4 * 64, 14 + 3 * 64)
    assert sheet.getpixel((sheet.width - 5, sheet.height - 5)) == pytest.approx((254, 0, 0), abs=3)
    missing = make_sheet(
        [*rows[:1], *rows[7:8]], tmp_path
    )  # a way that did not draw the group has no pictures
    assert missing.getpixel((missing.width - 5, missing.height - 5)) == (255, 255, 255)
