"""Published pairs: enough of them, about methods that are measured, and judged by our own numbers."""

from __future__ import annotations

import pytest

from conceptry.evaluation.bench_methods import list_methods
from conceptry.evaluation.bench_page import make_markdown
from conceptry.evaluation.bench_results import ResultFile
from conceptry.evaluation.bench_summary import MethodSummary
from conceptry.evaluation.concordance import Pair, count_pairs, judge_pairs, load_pairs, write_concordance
from conceptry.evaluation.toybench import load_suite
from tests.evaluation.rows import gather, make_row

EVENLY = Pair(better="lora", worse="xti", measure="identity", source="", discussion="why")


def collect(*rows: tuple[str, float, float, int]) -> ResultFile:
    """Returns results of methods with these identities, agreements and sizes on one subject."""
    return gather(
        *(make_row(name, "s0", identity, prompt, size_bytes=size) for name, identity, prompt, size in rows)
    )


def pair_up(*leads: float) -> ResultFile:
    """Returns results in which LoRA's identity is ahead of XTI's by so much, subject after subject."""
    return gather(
        *(make_row("lora", f"s{number}", 0.5 + lead, 0.8) for number, lead in enumerate(leads)),
        *(make_row("xti", f"s{number}", 0.5, 0.8) for number in range(len(leads))),
    )


def test_there_are_at_least_twelve_pairs_of_methods_that_take_part() -> None:
    known = {method.id for method in list_methods(load_suite())}
    assert len(load_pairs()) >= 12
    for pair in load_pairs():
        assert {pair.better, pair.worse} <= known
        assert pair.measure in MethodSummary.__dataclass_fields__
        assert "arXiv" in pair.source or "tables" in pair.source
        assert len(pair.discussion) > 80


def test_a_pair_agrees_where_our_numbers_are_in_its_order() -> None:
    results = collect(("lora", 0.8, 0.9, 100), ("dreambooth", 0.9, 0.9, 10_000))
    ahead = Pair(better="dreambooth", worse="lora", measure="identity", source="")
    small = Pair(better="lora", worse="dreambooth", measure="size_bytes", source="")
    level = Pair(better="lora", worse="dreambooth", measure="prompt", source="")
    absent = Pair(better="lora", worse="xti", measure="prompt", source="")
    unknown = Pair(better="lora", worse="dreambooth", measure="preservation", source="")
    verdicts = judge_pairs(results, [ahead, small, level, absent, unknown])
    assert [one.agrees for one in verdicts] == [True, True, False]
    assert all(one.is_open for one in verdicts)


@pytest.mark.parametrize(
    ("leads", "agrees", "is_open"),
    [
        ((0.1, 0.12, 0.08, 0.1, 0.11, 0.09), True, False),
        ((-0.1, -0.12, -0.08, -0.1, -0.11, -0.09), False, False),
        ((0.3, -0.25, 0.3, -0.25, 0.3, -0.25), True, True),
        ((0.0,) * 6, False, True),
        ((0.1, 0.2), True, True),
        ((0.1,), True, True),
    ],
)
def test_a_difference_that_chance_could_explain_leaves_a_pair_open(
    leads: tuple[float, ...], agrees: bool, is_open: bool
) -> None:
    (verdict,) = judge_pairs(pair_up(*leads), [EVENLY])
    assert (verdict.agrees, verdict.is_open, verdict.subjects) == (agrees, is_open, len(leads))
    counts = count_pairs([verdict])
    assert counts == {
        "pairs": 1,
        "same": int(agrees),
        "decided": int(not is_open),
        "same_decided": int(agrees and not is_open),
    }


def test_only_subjects_of_both_are_compared() -> None:
    easy = make_row("xti", "easy", 1.0, 0.8)
    results = pair_up(0.1, 0.12, 0.08, 0.1, 0.11, 0.09)
    (verdict,) = judge_pairs(results.model_copy(update={"rows": (*results.rows, easy)}), [EVENLY])
    assert verdict.subjects == 6
    assert verdict.ours_worse == pytest.approx(0.5)


def test_the_page_says_both_shares_and_discusses_what_is_ordered_otherwise() -> None:
    rows = [
        row
        for number in range(6)
        for row in (
            make_row("textual_inversion", f"s{number}", 0.9, 0.2 + number / 10),
            make_row("dreambooth", f"s{number}", 0.8, 0.4),
        )
    ]
    page = make_markdown(gather(*rows))
    assert "0 of 2 published pairs are ordered the same way here (0%)" in page
    assert "Of the 1 that our numbers decide, 0 are (0%); the other 1 are open" in page
    assert (
        "| identity | dreambooth | textual_inversion | 0.8 and 0.9 | -0.1 to -0.1 (6 subjects) | **no** |"
        in page
    )
    (discussion,) = (one.discussion for one in load_pairs()[:1])
    assert f"- identity, dreambooth over textual_inversion (**no**): {discussion}" in page
    assert "- prompt, dreambooth over textual_inversion (**no**, open): " in page
    assert "No difference is decided" in "\n".join(write_concordance(pair_up(0.1)))
