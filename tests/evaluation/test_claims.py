"""Claims of surveys held against numbers: confirmed, refuted, not measured, and how sure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from conceptry.composer.attach import attach as attach_concept
from conceptry.composer.compositions import Composition
from conceptry.errors import InvalidFileError
from conceptry.evaluation.bench_methods import find_method, list_methods, list_studies, load_studies
from conceptry.evaluation.bench_results import ResultRow, write_json
from conceptry.evaluation.claims import (
    RELATIONS,
    Check,
    Claim,
    ClaimVerdict,
    Numbers,
    judge_claims,
    load_claims,
    read_figures_beside,
)
from conceptry.evaluation.moved_weights import measure_moves
from conceptry.evaluation.toybench import load_suite
from tests.evaluation.rows import gather, make_row
from tests.fakes.concepts import make_full
from tests.fakes.pipelines import make_pipeline

NOISE = (0.02, -0.03, 0.01, 0.0, -0.01, 0.03)


def spread(method: str, identity: float, prompt: float = 0.8, **fields: object) -> list[ResultRow]:
    """Returns a row for each of six subjects."""
    return [
        make_row(method, f"s{number}", identity + shift, prompt - shift, **fields)
        for number, shift in enumerate(NOISE)
    ]


def judge(claim: str, *rows: ResultRow, **more: object) -> ClaimVerdict:
    """Returns what rows say to one of the shipped claims."""
    (chosen,) = [one for one in load_claims() if one.id == claim]
    (verdict,) = judge_claims(Numbers.gather(gather(*rows), **more), [chosen])  # type: ignore[arg-type]
    return verdict


def test_every_claim_names_its_source_and_numbers_that_the_benchmark_can_measure() -> None:
    claims = load_claims()
    assert len(claims) == len({one.id for one in claims}) >= 15
    known = {method.id for method in (*list_methods(load_suite()), *list_studies())}
    for claim in claims:
        assert claim.source
        assert claim.checks or claim.best_in
        for check in claim.checks:
            assert check.relation in RELATIONS
            for side in (check.left, check.right):
                method, _, measure = side.partition(" ")
                assert method in {"figure", "number"} or method.partition("/")[0] in known, side
                assert measure, side


def test_a_claim_is_confirmed_refuted_or_not_measured_with_its_numbers() -> None:
    right = judge(
        "lora-between", *spread("textual_inversion", 0.4), *spread("lora", 0.6), *spread("dreambooth", 0.8)
    )
    assert (right.answer, right.is_sure) == ("confirmed", True)
    assert "lora identity 0.603 above textual_inversion identity 0.403: yes" in right.findings[0].text
    wrong = judge(
        "lora-between", *spread("textual_inversion", 0.4), *spread("lora", 0.9), *spread("dreambooth", 0.8)
    )
    assert (wrong.answer, wrong.is_sure) == ("refuted", True)
    lacking = judge("lora-between", *spread("textual_inversion", 0.4), *spread("lora", 0.9))
    assert (lacking.answer, lacking.is_sure) == ("not measured", False)
    assert lacking.findings[1].text == "no dreambooth identity"


def test_a_difference_that_may_be_chance_is_not_sure() -> None:
    one = [make_row("xti", f"s{n}", 0.5 + 0.2 * (-1) ** n + 0.01, 0.8) for n in range(6)]
    other = [make_row("textual_inversion", f"s{n}", 0.5, 0.8) for n in range(6)]
    verdict = judge("per-layer-learns-faster", *one, *other)
    assert (verdict.answer, verdict.is_sure) == ("confirmed", False)
    single = judge("per-layer-learns-faster", one[0], other[0])
    assert not single.is_sure


def test_what_is_near_is_sure_where_the_whole_interval_is_near() -> None:
    check = Check(left="lora identity", relation="near", right="dreambooth identity", margin=0.1)
    claim = Claim(id="near", claim="They are near.", source="nobody", checks=(check,))
    other = spread("dreambooth", 0.6)
    answers = []
    for rows in (spread("lora", 0.62), spread("lora", 0.9)):
        (verdict,) = judge_claims(Numbers.gather(gather(*rows, *other)), [claim])
        answers.append((verdict.answer, verdict.is_sure))
    assert answers == [("confirmed", True), ("refuted", True)]
    scattered = [make_row("lora", f"s{n}", 0.6 + 0.4 * (-1) ** n, 0.8) for n in range(len(other))]
    (verdict,) = judge_claims(Numbers.gather(gather(*scattered, *other)), [claim])
    assert not verdict.is_sure


def test_only_subjects_that_both_sides_have_are_compared() -> None:
    easy = [make_row("xti", "s0", 0.9, 0.8), make_row("xti", "s1", 0.3, 0.8)]
    hard = [make_row("textual_inversion", "s1", 0.4, 0.8), make_row("textual_inversion", "s2", 0.1, 0.8)]
    assert judge("per-layer-learns-faster", *easy, *hard).answer == "refuted"


def test_groups_and_single_figures_are_sides_too() -> None:
    def group(count: int, recall: float) -> dict[str, object]:
        members = [f"thing-{number}" for number in range(count)]
        shares = {"joint": recall / 2, "recall": [recall] * count, "swaps": 0.0, "leaks": None, "region": 1.0}
        return {"method": "lora", "way": "attached", "members": members, **shares}

    assert judge("summing-loses", groups=[group(2, 0.9), group(3, 0.4)]).answer == "confirmed"
    assert judge("summing-loses", groups=[group(2, 0.4), group(3, 0.9)]).answer == "refuted"
    assert judge("summing-loses", groups=[group(2, 0.4)]).answer == "not measured"
    figures = {"raw_loss_follows_identity": 0.1, "fixed_loss_follows_identity": 0.8}
    assert judge("fixed-batch", figures=figures).answer == "confirmed"
    assert judge("fixed-batch").answer == "not measured"


def test_a_style_beside_two_things_is_no_third_thing() -> None:
    def group(*members: str, joint: float) -> dict[str, object]:
        shares = {"joint": joint, "recall": [joint], "swaps": 0.0, "leaks": None, "region": 1.0}
        return {"method": "lora", "way": "attached", "members": list(members), **shares}

    with_styles = [
        group("creature-21", "style-41", joint=1.0),
        group("creature-21", "cup-21", "style-41", joint=0.0),
    ]
    assert judge("summing-loses", groups=with_styles).answer == "not measured"
    things = [
        group("ball-20", "fish-20", joint=0.1),
        group("ball-20", "fish-20", "car-20", joint=0.1),
    ]
    assert judge("summing-loses", groups=[*with_styles, *things]).answer == "refuted"


def test_figures_by_subject_are_paired_and_can_be_sure() -> None:
    raw = {f"s{n}": 0.1 + shift for n, shift in enumerate(NOISE)}
    fixed = {subject: value + 0.7 for subject, value in raw.items()}
    figures = {"raw_loss_follows_identity": raw, "fixed_loss_follows_identity": fixed}
    verdict = judge("fixed-batch", figures=figures)
    assert (verdict.answer, verdict.is_sure) == ("confirmed", True)
    close = {"raw_loss_follows_identity": 0.8, "fixed_loss_follows_identity": 0.9}
    assert judge("fixed-batch", figures=close).answer == "refuted"


def test_seconds_are_those_of_the_processor() -> None:
    def take(method: str, wall: float, processor: float | None) -> list[ResultRow]:
        seconds: dict[str, Any] = {"training_seconds": wall, "training_processor_seconds": processor}
        return spread(method, 0.9 if method == "pivotal" else 0.5, **seconds)

    waited = judge("adding-textual-inversion", *take("pivotal", 200.0, 28.0), *take("lora", 30.0, 28.0))
    assert waited.answer == "refuted"
    worked = judge("adding-textual-inversion", *take("pivotal", 30.0, 40.0), *take("lora", 200.0, 28.0))
    assert worked.answer == "confirmed"
    unknown = judge("adding-textual-inversion", *take("pivotal", 200.0, None), *take("lora", 30.0, None))
    assert unknown.answer == "not measured"


def test_a_prior_that_keeps_a_sixth_of_the_class_does_not_confirm_that_it_keeps_it() -> None:
    def keep(method: str, share: float) -> list[ResultRow]:
        scores = {"floor": 0.0, "ceiling": 1.0, "interval": [0.0, 1.0], "score": share, "normalised": share}
        return spread(method, 0.8, preservation=scores)

    forgets = keep("dreambooth-no-prior", 0.03)
    assert judge("dreambooth-forgets-without-prior", *keep("dreambooth", 0.16), *forgets).answer == "refuted"
    assert judge("dreambooth-forgets-without-prior", *keep("dreambooth", 0.8), *forgets).answer == "confirmed"


def test_what_is_as_editable_as_the_best_counts_as_editable() -> None:
    level = [make_row("textual_inversion", f"s{n}", 0.4, 1.0) for n in range(6)]
    others = [make_row(name, f"s{n}", 0.9, 1.0) for name in ("dreambooth", "lora") for n in range(6)]
    best = [make_row("dreambooth-no-prior", f"s{n}", 0.9, 1.0) for n in range(6)]
    assert judge("textual-inversion-loses-detail", *level, *others, *best).answer == "confirmed"


def test_methods_without_a_common_subject_are_not_compared() -> None:
    apart = [make_row("xti", "s0", 0.9, 0.8), make_row("textual_inversion", "s1", 0.4, 0.8)]
    verdict = judge("per-layer-learns-faster", *apart)
    assert verdict.answer == "not measured"
    assert "no subject has both" in verdict.findings[0].text


def test_studies_win_nothing_and_a_guest_on_an_easy_subject_wins_nothing() -> None:
    scores = {"floor": 0.0, "ceiling": 1.0, "interval": [0.0, 1.0], "score": 0.9, "normalised": 0.9}
    exact = spread("exact", 0.9, 0.8, preservation=scores, size_bytes=9)
    small = spread("small", 0.6, 0.9, preservation=scores, size_bytes=5)
    study = spread("lora-strong-word", 0.99, 0.99, preservation=scores, size_bytes=1)
    guest = make_row("guest", "s0", 1.0, 1.0, preservation=scores, size_bytes=1)
    verdict = judge("no-method-wins-everywhere", *exact, *small, *study, guest)
    assert (verdict.answer, verdict.is_sure) == ("confirmed", True)
    assert "best in identity: exact; best in prompt: small" in verdict.findings[0].text


def test_no_method_wins_everywhere_unless_one_does() -> None:
    good = {"floor": 0.0, "ceiling": 1.0, "interval": [0.0, 1.0]}
    keeps, forgets = ({**good, "score": value, "normalised": value} for value in (0.9, 0.5))
    best = spread("best", 0.9, 0.9, size_bytes=1, preservation=keeps)
    large = spread("best", 0.9, 0.9, size_bytes=99, preservation=keeps)
    worst = spread("worst", 0.1, 0.1, size_bytes=5, preservation=forgets)
    assert judge("no-method-wins-everywhere", *best, *worst).answer == "refuted"
    assert judge("no-method-wins-everywhere", *large, *worst).answer == "confirmed"
    assert judge("no-method-wins-everywhere", *best).answer == "not measured"


def test_the_right_side_may_be_scaled() -> None:
    claim = Claim(
        id="x",
        claim="x",
        source="x",
        checks=(Check(left="a bytes", relation="below", right="b bytes", times=0.01),),
    )
    for size, answer in ((5, "confirmed"), (50, "refuted")):
        rows = gather(*spread("a", 0.5, size_bytes=size), *spread("b", 0.5, size_bytes=1000))
        assert judge_claims(Numbers.gather(rows), [claim])[0].answer == answer


def test_files_of_figures_are_read_or_named(tmp_path: Path) -> None:
    write_json(tmp_path / "figures" / "a.json", {"figures": {"x": 0.5}})
    assert read_figures_beside(tmp_path) == {"x": 0.5}
    write_json(tmp_path / "figures" / "b.json", {"figures": {"y": {"cup-20": 0.5, "car-20": 1}}})
    assert read_figures_beside(tmp_path) == {"x": 0.5, "y": {"cup-20": 0.5, "car-20": 1.0}}
    for text in (
        "{",
        "[]",
        '{"figures": {"x": "much"}}',
        '{"figures": {"x": NaN}}',
        '{"figures": {"x": {}}}',
    ):
        (tmp_path / "figures" / "a.json").write_text(text, encoding="utf-8")
        with pytest.raises(InvalidFileError, match="no file of figures"):
            read_figures_beside(tmp_path)


def test_studies_are_run_by_name_with_other_words_and_stay_out_of_the_table() -> None:
    suite = load_suite()
    ranked = {method.id for method in list_methods(suite)}
    for study in list_studies():
        assert study.id not in ranked
        assert find_method(study.id, suite).digest == study.digest
        assert study.digest != find_method(study.settings["method"], suite).digest
    for subject in load_studies()["subjects"]:
        assert suite.find_subject(subject).superclass not in {"flower", "picture", "road", "blue"}


def test_moved_weights_are_told_by_what_they_do_and_the_base_stays(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    unet = pipeline.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}

    @contextmanager
    def attach() -> Iterator[None]:
        with torch.no_grad():
            for name, value in unet.named_parameters():
                value.mul_(1.5 if ".attn2.to_q." in name else 1.25 if ".attn2.to_k." in name else 1.0)
        yield
        unet.load_state_dict(before)

    moves = measure_moves(unet, attach)
    assert moves["moved_cross_query"] == pytest.approx(0.5, rel=1e-4)
    assert moves["moved_cross_key"] == pytest.approx(0.25, rel=1e-4)
    assert (moves["moved_cross_value"], moves["moved_other"]) == (0.0, 0.0)
    concept = make_full(tmp_path / "full", pipeline)
    tuned = measure_moves(unet, lambda: attach_concept(Composition(concept), pipeline))
    assert max(tuned.values()) > 0
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
