"""``concepts merge`` over real packages in a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conceptry.cli.merge import METHODS
from conceptry.composer.merge_methods import METHOD_BY_ID
from tests.cli.conftest import Run
from tests.cli.packages import TO_Q, write_package
from tests.composer.test_fusing import make_algorithm
from tests.fakes.concepts import make_lora
from tests.fakes.pipelines import make_pipeline


@pytest.fixture
def look(run: Run, tmp_path: Path) -> str:
    """Give a second concept for the same base, which changes the same module."""
    token = {"placeholder": "<look>"}
    fields: Any = {"authors": ["bob"], "license": {"spdx": "CC-BY-4.0"}}
    run("publish", str(write_package(tmp_path / "look", "me/look", "2.0.0", tokens=[token], **fields)))
    return "me/look@2.0.0"


def test_merge_publishes_a_concept_that_says_what_it_was_made_of(run: Run, imp: str, look: str) -> None:
    document = run("merge", "me/imp", "me/look*0.5", "--name", "me/both", "--json").document
    assert (document["reference"], document["created"], document["retained"]) == ("me/both@0.1.0", True, 1.0)
    assert document["layers"] == [{"module": TO_Q, "concepts": 2, "rank": 4, "retained": 1.0}]
    shown = run("show", "me/both", "--json").document["manifest"]
    assert shown["authors"] == ["bob"]
    assert shown["license"]["name"] == f"several: CC0-1.0 ({imp}), CC-BY-4.0 ({look})"
    assert shown["license"]["permissions"]["credit_required"] == "yes"
    made_from = shown["extensions"]["conceptry.merge"]["made_from"]
    assert [(row["reference"], row["strength"]) for row in made_from] == [(imp, 1.0), (look, 0.5)]
    digests = [run("show", one, "--json").document["digest"] for one in (imp, look)]
    assert shown["builds"][0]["provenance"]["derived_from"] == digests


def test_merge_again_publishes_nothing_new_and_says_what_a_rank_cut_off(
    run: Run, imp: str, look: str
) -> None:
    words = ("merge", "me/imp", "me/look", "--name", "me/both", "--method", "ties", "--rank", "1")
    first = run(*words, "--json").document
    again = run(*words, "--json").document
    assert first["digest"] == again["digest"]
    assert (first["created"], again["created"]) == (True, False)
    assert 0 < first["retained"] <= 1


def test_merge_asks_for_two_concepts_and_for_what_its_method_knows(run: Run, imp: str, look: str) -> None:
    assert "two concepts or more" in run("merge", "me/imp", "--name", "me/both", code=2).err
    refused = run("merge", "me/imp", "me/look", "--name", "me/both", "--density", "0.3", code=2)
    assert "sum drops no entries" in refused.err


def test_the_command_names_every_way_of_merging() -> None:
    assert tuple(METHOD_BY_ID) == METHODS


def test_a_way_that_reads_the_base_opens_no_base_of_another_family(run: Run, imp: str, look: str) -> None:
    refused = run("merge", "me/imp", "me/look", "--name", "me/both", "--method", "ridge", code=2)
    assert "me/imp@1.0.0 was made for sd1, and no base is named" in refused.err


def test_nothing_is_published_when_a_licence_forbids_it(run: Run, imp: str, tmp_path: Path) -> None:
    tied = write_package(tmp_path / "tied", "me/tied", license={"spdx": "CC-BY-ND-4.0"})
    run("publish", str(tied))
    refused = run("merge", "me/imp", "me/tied", "--name", "me/both", code=6)
    assert "me/tied@1.0.0 allows no derivatives" in refused.err
    run("show", "me/both", code=3)


def test_what_depends_on_the_base_is_merged_where_it_is_named(run: Run, base: Path, tmp_path: Path) -> None:
    pipeline = make_pipeline("sd1")
    make_algorithm(tmp_path / "one", pipeline, "dora", name="me/one", placeholder="uno")
    make_lora(tmp_path / "two", pipeline, name="me/two")
    for name in ("one", "two"):
        run("publish", str(tmp_path / name))
    words = ("merge", "me/one", "me/two*0.5", "--name", "me/both")
    refused = run(*words, code=6)
    assert "is a dora, whose delta depends on the base's weight" in refused.err
    assert "hint: add --base with that base" in refused.err
    document = run(*words, "--base", str(base), "--json").document
    assert document["recipe"]["method"] == "sum"
    assert run("check", "me/both", "me/two", "--base", str(base), "--json").document["conflicts"][0]["layers"]
