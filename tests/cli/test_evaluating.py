"""``concepts eval`` on small real architectures: what is printed, what is kept, and what is said when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conceptry.base_locations import resolve_base
from conceptry.composer.loading import load_pipeline
from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.evaluation.models import save_models
from tests.fakes.concepts import make_lora
from tests.fakes.pipelines import make_pipeline
from tests.trainer.runs import paint_pictures

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' remarks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a small random base, a concept for it, two models and held-out pictures."""
    folder = tmp_path_factory.mktemp("eval")
    make_pipeline("sd1").save_pretrained(folder / "base")
    pipeline = load_pipeline(resolve_base(str(folder / "base"), {}))
    make_lora(folder / "imp", pipeline, name="me/imp")
    save_models(folder / "models")
    paint_pictures(folder / "held-out", 4)
    return folder


def ask(folder: Path, *more: str) -> list[str]:
    """Returns the words that measure the concept with models from the folder."""
    models = folder / "models"
    return [
        *(
            "eval",
            "me/imp",
            "--base",
            str(folder / "base"),
            "--protocol",
            "clip-dino",
            "-n",
            "1",
            "--steps",
            "1",
            "--json",
        ),
        *("--clip", str(models / "clip"), "--dino", str(models / "dino")),
        *("--references", str(folder / "held-out"), *more),
    ]


def test_scores_are_kept_as_a_patch_version_with_the_same_files_and_outdated_says_so(
    run: Run, folder: Path
) -> None:
    run("publish", str(folder / "imp"))
    run("init")
    run("add", "me/imp@^1.0")
    document = run(*ask(folder, "--publish")).document
    assert document["published"] == "me/imp@1.0.1"
    assert document["concepts"] == [{key: document[key] for key in document["concepts"][0]}]
    for name in ("identity", "prompt", "preservation", "diversity", "clip_i"):
        low, high = document[name]["interval"]
        assert low <= document[name]["score"] <= high
        assert {"floor", "ceiling", "normalised"} <= set(document[name])
    assert document["leakage"] is None
    before, after = (run("show", f"me/imp@{v}", "--json").document["manifest"] for v in ("1.0.0", "1.0.1"))
    assert before["builds"][0]["parts"] == after["builds"][0]["parts"]
    named = {row["name"]: row for row in after["builds"][0]["metrics"]}
    assert named["identity"]["protocol"] == "clip-dino"
    assert named["identity"]["value"] == pytest.approx(document["identity"]["score"], abs=1e-4)
    (row,) = run("outdated", "--json").document["concepts"]
    assert (row["newest"], row["only_metrics"]) == ("1.0.1", True)
    again = run(*ask(folder, "--publish")).document
    assert (again["reference"], again["published"]) == ("me/imp@1.0.1", "me/imp@1.0.1")
    assert again["identity"] == document["identity"]


def fail(run: Run, code: int, *words: str) -> tuple[str, str]:
    error = json.loads(run(*words, code=code).err.splitlines()[-1])["error"]
    return error["message"], error["hint"]


def test_bad_input_is_named_with_what_to_do(run: Run, folder: Path, tmp_path: Path) -> None:
    run("publish", str(folder / "imp"))
    base = str(folder / "base")
    assert fail(run, 2, "eval", "me/imp", "--protocol", "toybox-2", "--json") == (
        "no protocol is called 'toybox-2'",
        "did you mean 'toybox-1'?",
    )
    message, hint = fail(run, 2, "eval", "me/imp", "--base", base, "--json")
    assert "does not say which toybox instance" in message
    assert "--references DIR" in hint
    message, hint = fail(
        run, 2, "eval", "me/imp", "--base", base, "--references", str(folder / "held-out"), "--json"
    )
    assert "toybox-1 reads pictures of" in message
    assert "clip-dino" in hint
    (tmp_path / "one").mkdir()
    message, _ = fail(run, 2, *ask(folder, "--references", str(tmp_path / "one")))
    assert "0 reference pictures" in message
    message, hint = fail(run, 3, *ask(folder, "--dino", str(tmp_path / "no-model")))
    assert "no model for --dino" in message
    assert "save_pretrained" in hint


def test_a_concept_for_another_base_is_named(run: Run, folder: Path, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "xl", "me/xl", family="sdxl")))
    message, hint = fail(run, 2, "eval", "me/xl", "--json")
    assert "me/xl@1.0.0 was made for sdxl" in message
    assert "--base" in hint
    words = [word if word != "me/imp" else "me/xl" for word in ask(folder)]
    message, _ = fail(run, 6, *words)
    assert "me/xl" in message
