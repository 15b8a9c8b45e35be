"""A full fine-tune is packed, compared, and made plain again from the command line; what does not go is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conceptry.registry import Registry
from tests.cli.conftest import Run
from tests.cli.test_json_page import documented, flatten
from tests.formats.tunes import BASE_FILE, write_base, write_tune


@pytest.fixture
def tuned(run: Run, tmp_path: Path) -> Path:
    """Give the base of a fine-tune in the store, me/imp@1.2.3."""
    base = write_base(tmp_path / "base")
    write_tune(tmp_path / "plain", base)
    run("publish", str(tmp_path / "plain"))
    return base


def test_packing_publishes_the_next_patch_release_and_leaves_the_other(run: Run, tuned: Path) -> None:
    finished = run("pack", "me/imp", "--base", str(tuned), "--json")
    assert flatten(finished.document) == documented("pack")
    (file,) = finished.document["files"]
    assert (finished.document["reference"], finished.document["derived_from"]) == (
        "me/imp@1.2.4",
        "me/imp@1.2.3",
    )
    assert file["after_bytes"] < file["before_bytes"]
    assert file["packing"]["lossless"] is True
    shown = run("show", "me/imp", "--json").document
    assert shown["manifest"]["builds"][0]["parts"][0]["method"]["packing"] == [file["packing"]]
    assert [str(row.version) for row in Registry().list()] == ["1.2.4"]
    assert Registry().get("me/imp@1.2.3").label == "me/imp@1.2.3"
    run("verify", "me/imp@1.2.4")
    said = run("pack", "me/imp@1.2.3", "--base", str(tuned)).out
    assert said.startswith("was here already: me/imp@1.2.4")
    assert "every bit is kept" in said


def test_a_packed_version_differs_in_no_tensor_and_needs_no_base_to_say_so(run: Run, tuned: Path) -> None:
    run("pack", "me/imp", "--base", str(tuned))
    found = run("diff", "me/imp@1.2.3", "me/imp@1.2.4", "--json").document
    assert found["tensors"] == {"added": [], "removed": [], "changed": [], "equal": 3}
    assert "builds.sd1-full.parts[0].method.packing[0].lossless" in {row["place"] for row in found["fields"]}


def test_packed_and_plain_versions_are_known_to_have_the_same_tensors(
    run: Run, tuned: Path, tmp_path: Path
) -> None:
    packed = run("pack", "me/imp", "--base", str(tuned), "--json")
    assert packed.document["same_tensors"] == ["me/imp@1.2.3"]
    assert "has the same tensors" not in packed.err
    Registry().remove("me/imp@1.2.3")
    (Registry().root / "index.sqlite").unlink()
    document = json.loads((tmp_path / "plain" / "concept.json").read_text())
    (tmp_path / "plain" / "concept.json").write_text(json.dumps({**document, "name": "you/devil"}))
    plain = run("publish", str(tmp_path / "plain"), "--json")
    assert plain.document["same_tensors"] == ["me/imp@1.2.4"]
    rounded = run("pack", "you/devil", "--base", str(tuned), "--lossy", "--json")
    assert rounded.document["same_tensors"] == []


def test_a_rounded_version_is_compared_with_its_base_at_hand(run: Run, tuned: Path) -> None:
    said = run("pack", "me/imp", "--base", str(tuned), "--lossy").out
    assert "the change is off by " in said
    refused = run("diff", "me/imp@1.2.3", "me/imp@1.2.4", code=2)
    assert "hint: add --base" in refused.err
    found = run("diff", "me/imp@1.2.3", "me/imp@1.2.4", "--base", str(tuned), "--json").document
    assert {row["tensor"] for row in found["tensors"]["changed"]} == {"mid.weight", "mid.bias", "out.weight"}
    assert all(0 < row["relative_change"] < 0.01 for row in found["tensors"]["changed"])
    assert [row["after"] for row in found["metrics"]] == [None]


def test_unpacking_brings_the_very_file_back(run: Run, tuned: Path) -> None:
    run("pack", "me/imp", "--base", str(tuned))
    run("unpack", "me/imp", "--base", str(tuned))
    registry = Registry()
    first, last = (list(registry.get(f"me/imp@1.2.{patch}").manifest.iter_files()) for patch in (3, 5))
    assert first == last


def test_a_folder_of_another_program_gets_no_packed_file(run: Run, tuned: Path, tmp_path: Path) -> None:
    run("pack", "me/imp", "--base", str(tuned))
    refused = run("view", "me/imp", "--for", "comfyui", "--to", str(tmp_path / "models"), code=2)
    assert "hint: concepts unpack me/imp@1.2.4" in refused.err
    assert not (tmp_path / "models").exists()


def test_what_does_not_go_is_said_and_publishes_nothing(
    run: Run, imp: str, tuned: Path, tmp_path: Path
) -> None:
    run("publish", str(tmp_path / "imp"))
    for words, code, said in (
        (
            ("pack", imp, "--base", str(tuned)),
            2,
            "only a full fine-tune is stored as a difference to its base",
        ),
        (("pack", "me/imp@1.2.3"), 2, "was made for sd1, and no base is named"),
        (("pack", "me/imp@1.2.3", "--base", "sd1"), 2, "is declared without weights"),
        (("pack", "me/imp@1.2.3", "--base", str(tuned), "--step", "2"), 2, "hint: add --lossy"),
        (("unpack", "me/imp@1.2.3", "--base", str(tuned)), 2, "me/imp@1.2.3 is plain"),
        (("pack", "me/imp@1.2.3", "--base", str(tmp_path / "nowhere")), 3, "no base is called or lies at"),
    ):
        assert said in run(*words, code=code).err
    assert len(Registry().list()) == 1
    (tuned / BASE_FILE).unlink()
    assert "holds no unet as safetensors" in run("pack", "me/imp@1.2.3", "--base", str(tuned), code=3).err
