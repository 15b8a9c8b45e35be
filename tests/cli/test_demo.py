"""The demonstration: nothing of somebody else is touched, and one command ends with a sheet and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from conceptry.cli.demo import MARKER, prepare_folder
from conceptry.errors import UsageError
from tests.cli.conftest import Run


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="no earlier demonstration"):
        prepare_folder(tmp_path)
    assert (tmp_path / "store" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / MARKER).exists()


def test_an_earlier_demonstration_is_made_anew_and_what_was_added_stays(tmp_path: Path) -> None:
    out = prepare_folder(tmp_path / "out")
    (out / "store").mkdir()
    (out / "notes.txt").write_text("mine")
    prepare_folder(out)
    assert sorted(path.name for path in out.iterdir()) == [MARKER, "notes.txt"]


@pytest.mark.slow
def test_one_command_teaches_shares_composes_and_draws(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("demo", "--out", str(out), "--steps", "2")
    report = json.loads((out / "report.json").read_text())
    assert {entry["kind"] for entry in report["concepts"]} == {"embedding", "rank_one", "lora", "full"}
    for entry in report["concepts"]:
        assert entry["identity"]["floor"] < entry["identity"]["ceiling"]
        assert 0 <= entry["prompt"]["score"] <= 1
        assert entry["bytes"] > 0
    assert len(report["compositions"]) == 3
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 600
        assert sheet.height > 1000
