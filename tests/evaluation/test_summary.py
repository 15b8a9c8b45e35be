"""The table: ranks with what they are worth, fronts, and the documents that are made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conceptry.evaluation.bench_page import make_benchmark_page, make_markdown, open_picture
from conceptry.evaluation.bench_results import ResultRow
from conceptry.evaluation.bench_summary import FEWEST_SUBJECTS, balance, find_common, summarise, to_json
from tests.evaluation.rows import gather, make_row
from tests.evaluation.strict_html import parse_strictly


def spread(
    method: str, identity: float, prompt: float, *, noise: float = 0.02, count: int = 12
) -> list[ResultRow]:
    """Returns rows on so many subjects around these scores."""
    rng = np.random.default_rng(len(method))
    return [
        make_row(method, f"s{number}", identity + rng.normal(0, noise), prompt + rng.normal(0, noise))
        for number in range(count)
    ]


def test_a_method_that_only_copies_and_one_that_ignores_its_word_both_end_low() -> None:
    rows = [*spread("copies", 0.99, 0.1), *spread("ignores", 0.05, 1.0), *spread("fair", 0.7, 0.8)]
    assert summarise(gather(*rows), "instance")[0].method == "fair"
    assert balance(np.asarray([1.0, 0.0, 2.0]), np.asarray([1.0, 1.0, 1.0])) == pytest.approx([1.0, 0.0, 1.0])


def test_ranks_are_sure_where_methods_differ_and_open_where_they_do_not() -> None:
    twins = [
        make_row(name, f"s{number}", 0.6 + sign * (0.1 if number % 2 else -0.1), 0.6)
        for name, sign in (("twin", 1), ("other twin", -1))
        for number in range(12)
    ]
    rows = summarise(gather(*spread("best", 0.9, 0.9), *twins), "instance")
    by_name = {row.method: row for row in rows}
    assert by_name["best"].rank_interval == (1, 1)
    assert by_name["twin"].rank_interval == by_name["other twin"].rank_interval == (2, 3)
    assert rows == summarise(gather(*twins, *spread("best", 0.9, 0.9)), "instance")


def test_one_subject_gives_an_order_without_confidence() -> None:
    rows = summarise(gather(make_row("good", "s0", 0.9, 0.9), make_row("bad", "s0", 0.3, 0.9)), "instance")
    assert [(row.method, row.interval, row.rank_interval) for row in rows] == [
        ("good", None, (1, 2)),
        ("bad", None, (1, 2)),
    ]


def test_the_front_is_what_no_other_beats_in_both() -> None:
    rows = summarise(
        gather(*spread("exact", 0.9, 0.5), *spread("free", 0.5, 0.9), *spread("worse", 0.4, 0.4)), "instance"
    )
    assert {row.method for row in rows if row.is_front} == {"exact", "free"}


def test_a_second_scorer_says_whether_it_orders_the_methods_alike() -> None:
    def look(second: dict[str, float]) -> float:
        rows = [
            make_row(
                name,
                "s0",
                identity,
                0.5,
                others={
                    "identity_second": {
                        "score": second[name],
                        "floor": 0.0,
                        "ceiling": 1.0,
                        "interval": [0.0, 1.0],
                        "normalised": second[name],
                    }
                },
            )
            for name, identity in (("a", 0.2), ("b", 0.5), ("c", 0.8))
        ]
        agreement: float = to_json(gather(*rows))["scorer_agreement"]["identity_second"]
        return agreement

    assert look({"a": 0.1, "b": 0.2, "c": 0.3}) == pytest.approx(1.0)
    assert look({"a": 0.3, "b": 0.2, "c": 0.1}) == pytest.approx(-1.0)


def test_a_guest_on_one_subject_takes_no_rank_from_those_that_have_all() -> None:
    own = [
        make_row(method, f"s{number}", identity + 0.02 * np.sin(number), 0.9)
        for method, identity in (("a", 0.9), ("b", 0.6), ("c", 0.3))
        for number in range(24)
    ]
    ranks = {row.method: (row.rank, row.rank_interval) for row in summarise(gather(*own), "instance")}
    assert ranks == {"a": (1, (1, 1)), "b": (2, (2, 2)), "c": (3, (3, 3))}
    for guest in ("s0", "elsewhere"):
        table = summarise(gather(make_row("guest", guest, 1.0, 1.0), *own), "instance")
        assert {row.method: (row.rank, row.rank_interval) for row in table[:3]} == ranks
        assert (table[3].method, table[3].subjects, table[3].rank) == ("guest", 1, None)
        assert {row.method for row in table if row.is_front} == {"a"}
        page = make_markdown(gather(make_row("guest", guest, 1.0, 1.0), *own))
        assert "| \u2013 | guest | 1 |" in page
        assert "not ranked: lacks some of the 24" in page


def test_a_row_that_failed_costs_everybody_one_subject_and_nobody_his_rank() -> None:
    rows = [
        make_row(method, f"s{number}", identity, 0.9)
        for method, identity in (("a", 0.9), ("b", 0.6), ("c", 0.3))
        for number in range(12)
        if (method, number) not in {("a", 3), ("b", 7)}
    ]
    table = summarise(gather(*rows), "instance")
    assert [(row.method, row.rank, row.subjects) for row in table] == [
        ("a", 1, 11),
        ("b", 2, 11),
        ("c", 3, 12),
    ]
    assert {row.ranked_on for row in table} == {10}


def test_while_a_table_grows_what_all_have_is_compared_until_more_can_be() -> None:
    counts = {"a": 3, "b": 3, "c": 3, "first": 5}
    assert find_common({name: {f"s{n}" for n in range(count)} for name, count in counts.items()}) == (
        "s0",
        "s1",
        "s2",
    )
    counts["first"] = 24
    assert len(find_common({name: {f"s{n}" for n in range(count)} for name, count in counts.items()})) == 24
    assert find_common({}) == find_common({"a": ()}) == ()


def test_the_front_stands_on_subjects_that_all_ranked_methods_have() -> None:
    easy = [make_row("easy only", "s0", 0.95, 0.95)]
    full = [make_row("full", "s0", 0.97, 0.97), *(make_row("full", f"s{n}", 0.2, 0.2) for n in range(1, 9))]
    rows = {row.method: row for row in summarise(gather(*easy, *full), "instance")}
    assert (rows["full"].rank, rows["full"].is_front) == (1, True)
    assert (rows["easy only"].rank, rows["easy only"].is_front) == (None, False)
    assert rows["full"].subjects == 9
    assert rows["full"].identity < 0.3


def test_intervals_are_as_wide_as_the_subjects_differ_and_absent_for_a_few() -> None:
    rng = np.random.default_rng(3)
    for noise in (0.02, 0.2):
        values = 0.5 + rng.normal(0, noise, 24)
        rows = [
            make_row("lora", f"s{n}", float(value), 0.9 - float(value) / 10) for n, value in enumerate(values)
        ]
        (one,) = summarise(gather(*rows), "instance")
        assert one.interval is not None
        assert one.prompt_interval is not None
        wide = 2 * 1.96 * float(values.std()) / np.sqrt(len(values))
        assert one.interval[1] - one.interval[0] == pytest.approx(wide, rel=0.15)
        assert one.prompt_interval[1] - one.prompt_interval[0] == pytest.approx(wide / 10, rel=0.15)
        assert one.interval[0] < one.identity < one.interval[1]
        (few,) = summarise(gather(*rows[: FEWEST_SUBJECTS - 1]), "instance")
        assert few.interval is few.prompt_interval is None


def test_the_summary_has_what_others_read() -> None:
    document = to_json(gather(*spread("lora", 0.8, 0.9)))
    assert {"commit", "machine", "rows"} <= set(document)
    (row,) = document["rows"]
    assert {"method", "instances", "identity", "prompt", "interval"} <= set(row)
    assert row["instances"] == 12
    assert row["interval"][0] < row["identity"] < row["interval"][1]
    json.dumps(document, allow_nan=False)


def test_the_page_has_the_pictures_of_each_row_and_escapes_every_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    rows = spread("lora", 0.8, 0.9, count=3)
    shown = tmp_path / "pictures" / "lora" / "s0.webp"
    shown.parent.mkdir(parents=True)
    Image.new("RGB", (40, 20), (255, 0, 0)).save(shown)
    rows[0] = rows[0].model_copy(update={"pictures": "pictures/lora/s0.webp"})
    rows[1] = rows[1].model_copy(update={"subject": evil, "pictures": "../../etc/passwd"})
    bad = make_row(evil, "s0", 0.1, 0.2, title=evil)
    page = make_benchmark_page(gather(*rows, bad), tmp_path)
    parsed = parse_strictly(page)
    assert parsed.pictures == 1
    assert "<script" not in page
    assert any(evil in text for text in parsed.text)
    assert "<svg" in page


def test_a_name_that_leads_out_of_the_folder_is_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "out.png")
    (tmp_path / "in").mkdir()
    assert open_picture(tmp_path / "in", "../out.png") is None
    assert open_picture(tmp_path, "out.png") is not None
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert open_picture(tmp_path, "broken.png") is None


def test_the_markdown_page_has_a_row_for_each_method() -> None:
    text = make_markdown(gather(*spread("lora", 0.8, 0.9), *spread("perfusion", 0.7, 0.5)))
    assert "| 1 | **lora** | 12 |" in text
    assert "| 2 | perfusion | 12 |" in text
