"""``concepts eval`` and ``report`` on the bundled base: the whole way, from rendered pictures to a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.evaluation.strict_html import parse_strictly

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_a_rendered_instance_is_taught_measured_kept_and_shown(run: Run) -> None:
    run("toybox", "render", "--class", "cup", "--instance", "20", "-n", "4", "--out", "cup")
    run(
        *("train", "textual_inversion", "--images", "cup", "--name", "me/cup", "--version", "1.0.0"),
        *("--placeholder", "<mug>", "--superclass", "cup", "--steps", "2"),
    )
    document = run("eval", "me/cup", "-n", "1", "--steps", "2", "--publish", "--json").document
    assert document["published"] == "me/cup@1.0.1"
    for name in ("identity", "prompt", "preservation", "diversity", "leakage", "identity_second"):
        assert document[name]["interval"][0] <= document[name]["score"] <= document[name]["interval"][1]
    assert document["preservation"]["normalised"] == pytest.approx(1.0)  # only its own word was learned
    run("report", "me/cup", "-n", "1", "--steps", "2", "--out", "cup.html")
    page = parse_strictly(Path("cup.html").read_text(encoding="utf-8"))
    assert page.pictures > 20
    assert any("a photo of <mug> on the beach" in text for text in page.text)


def test_a_tiny_piece_of_the_benchmark_is_measured_on_the_bundled_base(run: Run) -> None:
    words = ("benchmark-methods", "--out", "results/toybench", "--subject", "cup-20", "--passes", "16")
    (row,) = run(*words, "--prompts", "2", "--method", "textual_inversion", "--json").document["rows"]
    assert (row["subject"], row["sample_passes"]) == ("cup-20", 16)
    run("benchmark-methods", "--summary", "--out", "results/toybench")
    assert Path("results/toybench.md").is_file()


def test_uses_are_measured_on_the_bundled_base_and_shown(run: Run) -> None:
    little = ("--steps", "4", "--passes", "16", "--out", "uses")
    few = ("-n", "2", "--seeds", "2", "--classifier-steps", "2")
    document = run("augment", *few, *little, "--json").document
    assert (document["facts"]["rare_class"], document["facts"]["classes"]) == ("fish", 8)
    assert len(run("uses", "bias", "-n", "4", *little, "--json").document["rows"]) == 4
    run("toybox", "render", "--style", "40", "-n", "4", "--out", "look")
    run(
        *("train", "textual_inversion", "--images", "look", "--name", "me/look", "--version", "1.0.0"),
        *("--placeholder", "<look>", "--superclass", "flat", "--steps", "1"),
    )
    assert "wants a thing" in run("uses", "variation", "me/look", code=2).err
    document = run(
        "uses", "style-transfer", "me/look", "-n", "2", "--steps", "4", "--out", "uses", "--json"
    ).document
    assert document["rows"][0]["content_kept"] == 1.0
    run("report", "--uses", "uses", "--out", "uses.html")
    assert parse_strictly(Path("uses.html").read_text(encoding="utf-8")).pictures == 14
