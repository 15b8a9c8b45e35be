"""Published pairs: enough of them, about methods that are measured, and judged by our own numbers."""

from __future__ import annotations

from conceptry.evaluation.bench_methods import list_methods
from conceptry.evaluation.bench_page import make_markdown
from conceptry.evaluation.bench_summary import MethodSummary, summarise
from conceptry.evaluation.concordance import Pair, judge_pairs, load_pairs
from conceptry.evaluation.toybench import load_suite
from tests.evaluation.rows import gather, make_row


def rank(*rows: tuple[str, float, float, int]) -> tuple[MethodSummary, ...]:
    """Returns the table of methods with these identities, agreements and sizes."""
    return summarise(
        gather(
            *(
                make_row(name, "s0", identity, prompt, size_bytes=size)
                for name, identity, prompt, size in rows
            )
        ),
        "instance",
    )


def test_there_are_at_least_twelve_pairs_of_methods_that_take_part() -> None:
    known = {method.id for method in list_methods(load_suite())}
    assert len(load_pairs()) >= 12
    for pair in load_pairs():
        assert {pair.better, pair.worse} <= known
        assert pair.measure in MethodSummary.__dataclass_fields__
        assert "arXiv" in pair.source or "tables" in pair.source


def test_a_pair_agrees_where_our_numbers_are_in_its_order() -> None:
    rows = rank(("lora", 0.8, 0.9, 100), ("dreambooth", 0.9, 0.9, 10_000))
    ahead = Pair(better="dreambooth", worse="lora", measure="identity", source="")
    small = Pair(better="lora", worse="dreambooth", measure="size_bytes", source="")
    level = Pair(better="lora", worse="dreambooth", measure="prompt", source="")
    absent = Pair(better="lora", worse="xti", measure="prompt", source="")
    unknown = Pair(better="lora", worse="dreambooth", measure="preservation", source="")
    verdicts = judge_pairs(rows, [ahead, small, level, absent, unknown])
    assert [one.agrees for one in verdicts] == [True, True, False]


def test_the_page_says_how_many_agree_and_which_do_not() -> None:
    rows = [make_row("textual_inversion", "s0", 0.9, 0.2), make_row("dreambooth", "s0", 0.8, 0.9)]
    page = make_markdown(gather(*rows))
    assert "1 of 2 published pairs are ordered the same way here (50%)" in page
    assert "| identity | dreambooth | textual_inversion | 0.8 and 0.9 | **no** |" in page
