"""Checking and writing compositions: from manifests and headers, before a tensor is read."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.packages import TO_Q, write_package


@pytest.fixture
def look(run: Run, tmp_path: Path) -> str:
    """Give a second concept for the same base, which changes the same module."""
    token = {"placeholder": "<look>"}
    run("publish", str(write_package(tmp_path / "look", "me/look", "2.0.0", tokens=[token])))
    return "me/look@2.0.0"


def test_check_shows_fit_words_licences_and_overlaps(run: Run, imp: str, look: str) -> None:
    document = run("check", "me/imp", "me/look*0.7", "--json").document
    assert document["base"] == {"family": "sd1", "prediction_type": "epsilon"}
    assert [(row["reference"], row["strength"], row["fit"]) for row in document["concepts"]] == [
        (imp, 1.0, "architecture"),
        (look, 0.7, "architecture"),
    ]
    assert document["concepts"][1]["words"] == {"<look>": "<look>"}
    assert document["overlaps"] == [{"first": imp, "second": look, "modules": [TO_Q]}]
    assert document["permissions"]["commercial"] == "yes"


def test_check_compares_each_pair_and_says_whom_the_permissions_depend_on(
    run: Run, imp: str, look: str, tmp_path: Path
) -> None:
    token, deed = {"placeholder": "<far>"}, {"spdx": "CC-BY-NC-4.0"}
    far = write_package(
        tmp_path / "far",
        "me/far",
        modules=("unet.mid_block.x",),
        tokens=[token],
        license=deed,
        authors=["ann"],
    )
    run("publish", str(far))
    document = run("check", "me/imp", "me/look*0.5", "me/far", "--json").document
    conflict, *others = document["conflicts"]
    assert (conflict["first"], conflict["second"]) == (imp, look)
    assert [(one["second"], one["layers"], one["not_compared"]) for one in others] == 2 * [
        ("me/far@1.0.0", [], [])
    ]
    # Both packages hold one and the same delta of rank 1, on a layer of 8 inputs.
    assert conflict["overlap"] == pytest.approx(8.0, rel=1e-5)
    assert conflict["severity"] in ("noticeable", "strong")
    assert conflict["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert conflict["layers"][0]["module"] == TO_Q
    assert conflict["advice"][0].startswith("they reinforce one another: try me/imp*0.75 me/look*0.37")
    commercial = next(row for row in document["licenses"] if row["permission"] == "commercial")
    assert (commercial["answer"], commercial["because"]) == ("no", ["me/far@1.0.0"])
    assert [(row["reference"], row["authors"]) for row in document["credits"]] == [("me/far@1.0.0", ["ann"])]
    said = run("check", "me/imp", "me/look", "me/far").out
    assert "commercial: no, because of me/far@1.0.0" in said
    assert "advice: they reinforce one another" in said
    assert f"{imp} with me/far@1.0.0: no layer in common" in said


def test_a_file_that_names_other_bytes_is_refused_and_one_without_digests_is_read(
    run: Run, imp: str, look: str
) -> None:
    run("compose", "me/imp", "me/look*0.7", "--out", "two.toml")
    written = Path("two.toml").read_text(encoding="utf-8")
    named = tomllib.loads(written)["concepts"][1]["digest"]
    Path("two.toml").write_text(written.replace(named, f"sha256:{'0' * 64}"), encoding="utf-8")
    for command in (("check",), ("compose",), ("generate", "--prompt", "a", "--out", "pictures")):
        option = "--composition" if command[0] == "generate" else "--file"
        refused = run(*command, option, "two.toml", code=4)
        assert f"{look} is {named[7:19]} here, and the composition names 000000000000" in refused.err
        assert f"concepts compose {look} --out FILE" in refused.err
    assert not Path("pictures").exists()
    plain = "".join(line for line in written.splitlines(True) if not line.startswith("digest = "))
    Path("two.toml").write_text(plain, encoding="utf-8")
    read = run("check", "--file", "two.toml", "--json").document["concepts"]
    assert [row["reference"] for row in read] == [imp, look]


def test_check_draws_its_conflicts(run: Run, imp: str, look: str) -> None:
    run("check", "me/imp", "me/look", "--picture", "conflicts.png")
    assert Path("conflicts.png").read_bytes().startswith(b"\x89PNG")
    assert "no two of these concepts meet" in run("check", "me/imp", "--picture", "one.png", code=2).err
    assert not Path("one.png").exists()


def test_drift_asks_for_a_model_with_weights(run: Run, imp: str) -> None:
    assert "sdxl is declared without weights" in run("check", "me/imp", "--on", "sdxl", code=2).err


def test_a_composition_file_with_steps_and_regions_is_checked_as_it_stands(
    run: Run, imp: str, look: str
) -> None:
    text = """schema = 1
way = "switch"
period = 3
[[concepts]]
reference = "me/imp"
parts = {"text_encoder" = 0.5}
schedule = {start = 0.2, stop = 0.8}
[[concepts]]
reference = "me/look"
region = {box = [0.0, 0.0, 0.5, 1.0], prompt = "an imp"}
"""
    Path("timed.toml").write_text(text, encoding="utf-8")
    assert len(run("check", "--file", "timed.toml", "--json").document["concepts"]) == 2
    Path("wrong.toml").write_text(text.replace("0.8}", "0.1}"), encoding="utf-8")
    assert "start 0.2 is not before stop 0.1" in run("check", "--file", "wrong.toml", code=2).err


def test_a_concept_of_strength_zero_overlaps_with_nothing(run: Run, imp: str, look: str) -> None:
    assert run("check", "me/imp", "me/look*0", "--json").document["overlaps"] == []


def test_a_concept_for_another_base_is_refused_by_name(run: Run, imp: str) -> None:
    finished = run("check", "me/imp", "--base", "sdxl", code=6)
    assert finished.out == ""
    assert "me/imp@1.0.0 does not fit this base (refused, " in finished.err
    assert "made for sd1, the base is sdxl" in finished.err
    assert finished.err.endswith("hint: it was made for sd1: use that base\n")


def test_a_concept_without_fingerprints_fits_its_family_with_a_warning(run: Run, imp: str) -> None:
    finished = run("check", "me/imp", "--base", "sd1")
    assert (
        "warning: me/imp@1.0.0: same family; the concept carries no fingerprint of its base\n" in finished.err
    )


def test_asking_for_a_closer_fit_than_there_is_is_refused(run: Run, imp: str) -> None:
    assert "exact is asked" in run("check", "me/imp", "--fit", "exact", code=6).err


def test_composition_file_pins_versions_and_can_be_checked(run: Run, imp: str, look: str) -> None:
    options = ("--base", "sd1", "--rename", "me/imp:<imp>=<devil>", "--out", "two.toml", "--json")
    written = run("compose", "me/imp", "me/look*0.7", *options).document
    digests = [row["digest"] for row in written["concepts"]]
    assert tomllib.loads(Path("two.toml").read_text(encoding="utf-8")) == {
        "schema": 1,
        "base": "sd1",
        "concepts": [
            {"reference": imp, "digest": digests[0], "strength": 1.0, "rename": {"<imp>": "<devil>"}},
            {"reference": look, "digest": digests[1], "strength": 0.7},
        ],
    }
    checked = run("compose", "--file", "two.toml", "--json").document
    assert checked["concepts"][0]["reference"] == imp
    assert [path.name for path in Path().iterdir()] == ["two.toml"]


def test_a_composition_file_is_not_overwritten_unasked(run: Run, imp: str) -> None:
    run("compose", "me/imp", "--out", "one.toml")
    before = Path("one.toml").read_bytes()
    assert run("compose", "me/imp*0.5", "--out", "one.toml", code=8).err == (
        "error: 'one.toml' exists already\nhint: add --force, or another --out\n"
    )
    assert Path("one.toml").read_bytes() == before
    run("compose", "me/imp*0.5", "--out", "one.toml", "--force")
    assert Path("one.toml").read_bytes() != before


def test_no_file_is_written_when_the_concepts_do_not_fit(run: Run, imp: str, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "xl", "me/xl", family="sdxl")))
    run("compose", "me/imp", "me/xl", "--out", "both.toml", code=6)
    assert list(Path().iterdir()) == []
