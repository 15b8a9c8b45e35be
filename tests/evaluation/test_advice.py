"""Advice: what the numbers favour for a need, and silence where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conceptry.errors import InvalidFileError, NotFoundError
from conceptry.evaluation.advice import Need, advise, read_figures, trains_all_weights, weigh


def make_figures(**scores: tuple[float, float, float]) -> tuple[str, dict[str, Any]]:
    """Returns figures with identity, prompt and preservation of each method."""
    rows = [
        {
            "method": method.replace("__", "-"),
            "instances": 24,
            "identity": identity,
            "interval": [identity - 0.05, identity + 0.05],
            "prompt": prompt,
            "preservation": preservation,
            "size_bytes": 1000,
        }
        for method, (identity, prompt, preservation) in scores.items()
    ]
    return "made up", {"rows": rows, "sample_passes": 1600, "base": {"family": "toybox"}}


FIGURES = make_figures(
    lora=(0.8, 0.8, 0.5),
    perfusion=(0.6, 0.95, 1.0),
    dreambooth=(0.95, 0.9, 0.4),
    lora__rank__1=(0.5, 0.5, 0.5),
)


@pytest.mark.parametrize(
    ("need", "method"),
    [
        (Need(), "lora"),
        (Need(fineness="editable"), "perfusion"),
        (Need(concepts=3), "perfusion"),
        (Need(device="large", fineness="exact"), "dreambooth"),
    ],
)
def test_the_choice_follows_the_need_and_carries_its_numbers(need: Need, method: str) -> None:
    first = advise(need, FIGURES).choices[0]
    assert first.method == method
    assert f"identity {first.identity:.2f}" in first.reasons[0]
    assert first.interval is not None
    assert first.interval[0] < first.identity < first.interval[1]
    assert first.subjects == 24


def compose(figures: tuple[str, dict[str, Any]], **joint: float) -> tuple[str, dict[str, Any]]:
    """Returns the figures with the joint success of each method in two compositions of two things, and others."""
    source, document = figures
    rows = [
        {"method": method, "way": "attached", "members": members, "joint": value}
        for method, value in joint.items()
        for members in (["ball-20", "fish-20"], ["cup-21", "car-21"])
    ]
    # What is drawn in another way, with a style beside it or of other sizes says nothing of two things.
    rows += [{"method": "perfusion", "way": "focus", "members": ["ball-20", "fish-20"], "joint": 1.0}]
    rows += [{"method": "perfusion", "way": "attached", "members": ["ball-20", "style-41"], "joint": 1.0}]
    return source, {**document, "compositions": [*rows, {**rows[0], "joint": None, "impossible": "no"}]}


def test_what_was_composed_is_judged_by_what_was_seen_and_not_by_preservation() -> None:
    two = advise(Need(concepts=2), compose(FIGURES, perfusion=0.0, lora=0.5))
    assert [one.method for one in two.choices] == ["lora", "lora-rank-1", "perfusion"]
    assert [one.together for one in two.choices] == [0.5, None, 0.0]
    assert "all members are in 50% of the pictures of 2 compositions" in two.choices[0].reasons
    assert any("not composed" in remark and "lora-rank-1" in remark for remark in two.remarks)
    assert advise(Need(concepts=3), compose(FIGURES, perfusion=0.0, lora=0.5)).choices[0].method == "lora"
    one = advise(Need(), compose(FIGURES, perfusion=0.0, lora=0.5))
    assert {choice.together for choice in one.choices} == {None}
    none = advise(Need(concepts=2), compose(FIGURES, perfusion=0.0, lora=0.0))
    assert any("no method that was composed has put 2 concepts" in remark for remark in none.remarks)


def test_nothing_is_firm_of_a_few_subjects_and_no_interval_is_said_of_them() -> None:
    source, document = FIGURES
    rows = [
        {**row, "instances": 2, "identity": 0.99} if row["method"] == "perfusion" else row
        for row in document["rows"]
    ]
    mixed = advise(Need(), (source, {**document, "rows": rows}))
    assert mixed.is_firm
    assert [one.method for one in mixed.choices] == ["lora", "lora-rank-1", "perfusion"]
    assert mixed.choices[-1].interval is None
    assert "over only 2 of 24 subjects" in mixed.choices[-1].reasons[0]
    few = advise(Need(), (source, {**document, "rows": [{**row, "instances": 3} for row in rows]}))
    assert not few.is_firm
    assert "nothing is firm yet: perfusion was measured on only 3 of 24 subjects" in few.remarks
    assert advise(Need(), FIGURES).is_firm


def test_a_variant_is_a_method_with_its_settings() -> None:
    (variant,) = [one for one in advise(Need(), FIGURES).choices if one.method == "lora-rank-1"]
    assert (variant.trainer, variant.settings) == ("lora", ("rank=1",))


def test_methods_that_train_all_weights_want_a_large_device() -> None:
    assert trains_all_weights("dreambooth")
    assert not trains_all_weights("lora")
    assert not trains_all_weights("custom_diffusion")
    small = advise(Need(device="small"), FIGURES)
    assert "dreambooth" not in {choice.method for choice in small.choices}
    assert any("large device" in remark for remark in small.remarks)


def test_where_nothing_was_measured_nothing_is_recommended() -> None:
    assert advise(Need(), None).choices == ()
    assert "nothing was measured yet" in advise(Need(), None).remarks[0]
    styles = advise(Need(subject="style"), FIGURES)
    assert styles.choices == ()
    assert "no method was measured on a style" in styles.remarks


def test_what_was_not_measured_is_named() -> None:
    remarks = " ".join(advise(Need(), FIGURES).remarks)
    assert "not measured:" in remarks
    assert "textual_inversion" in remarks


def test_figures_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no figures at"):
        read_figures(tmp_path / "x.json")
    for text in ("{", "[]", '{"rows": [{"method": "lora"}]}', json.dumps({"rows": 3})):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        with pytest.raises(InvalidFileError, match="no summary of the benchmark"):
            read_figures(tmp_path / "x.json")


def test_weights_lean_to_what_counts_more() -> None:
    assert weigh(0.9, 0.5, 1.0) == pytest.approx(weigh(0.5, 0.9, 1.0))
    assert weigh(0.9, 0.5, 2.0) > weigh(0.5, 0.9, 2.0)
    assert weigh(0.0, 1.0, 1.0) == 0.0
    assert weigh(float("nan"), 1.0, 1.0) == 0.0
