"""``concepts augment`` and ``concepts uses`` on a small real base, and the page of what they kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from conceptry.base_locations import resolve_base
from conceptry.composer.loading import load_pipeline
from tests.cli.conftest import Run
from tests.evaluation.models import save_models
from tests.evaluation.strict_html import parse_strictly
from tests.evaluation.test_augmentation import save
from tests.fakes.concepts import make_lora
from tests.trainer.runs import paint_pictures

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' remarks
QUICK = ("--real", "2", "-n", "2", "--steps", "1", "--seeds", "2", "--classifier-steps", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Give a concept for the small base, two models, held-out pictures, and pictures of classes."""
    folder = tmp_path_factory.mktemp("uses")
    make_lora(folder / "imp", load_pipeline(resolve_base(str(base), {})), name="me/imp")
    save_models(folder / "models")
    paint_pictures(folder / "held-out", 4)
    save(folder / "classes", lying=8, standing=6)
    return folder


def test_a_classifier_of_own_pictures_is_compared_with_and_without_generated_ones(
    run: Run, folder: Path, base: Path
) -> None:
    run("publish", str(folder / "imp"))
    words = ["augment", "me/imp", "--images", str(folder / "classes"), "--base", str(base), *QUICK]
    document = run(*words, "--out", "results", "--json").document
    assert document["facts"]["rare_class"] == "standing"
    assert len(document["rows"]) == 4
    assert all(0 <= row["balanced_accuracy"] <= 1 for row in document["rows"])
    said = run(*words).out
    assert "BALANCED ACCURACY" in said
    assert all(f"{row['balanced_accuracy']:.3f}" in said for row in document["rows"])
    run("report", "--uses", "results", "--out", "page.html")
    parsed = parse_strictly(Path("page.html").read_text(encoding="utf-8"))
    assert parsed.pictures == 3
    assert any("A classifier with 2 real pictures of standing" in text for text in parsed.text)


def test_without_a_concept_one_is_taught_from_the_rare_pictures(run: Run, folder: Path, base: Path) -> None:
    taught = ("--method", "textual_inversion", "--passes", "2", "--superclass", "cat")
    words = ["augment", "--images", str(folder / "classes"), "--base", str(base), *QUICK, *taught]
    document = run(*words, "--json").document
    assert document["rows"][3]["rare_pictures"] == 4


def test_variation_and_style_transfer_are_measured_on_any_base(run: Run, folder: Path, base: Path) -> None:
    run("publish", str(folder / "imp"))
    given = [
        "me/imp",
        "--base",
        str(base),
        "--references",
        str(folder / "held-out"),
        "-n",
        "2",
        "--steps",
        "2",
    ]
    models = [f"--{name}={folder / 'models' / name}" for name in ("clip", "dino")]
    for use in ("variation", "style-transfer"):
        images = ["--images", str(folder / "held-out")] if use == "style-transfer" else []
        document = run(
            "uses", use, *given, "--protocol", "clip-dino", *models, *images, "--out", "results", "--json"
        ).document
        assert [row["drawn_by"] for row in document["rows"]].count("concept") == 3
        assert Path(document["path"]).is_file()
    run("report", "--uses", "results", "--out", "page.html")
    assert parse_strictly(Path("page.html").read_text(encoding="utf-8")).pictures == 14


def test_what_cannot_be_measured_is_named_with_what_to_do(run: Run, folder: Path, base: Path) -> None:
    rows = {row["id"] for row in run("uses", "--json").document["uses"]}
    assert rows == {"augment", "variation", "style-transfer", "bias"}
    assert "did you mean 'bias'?" in run("uses", "biass", code=2).err
    assert "concepts augment --help" in run("uses", "augment", code=2).err
    assert "concepts uses variation me/imp" in run("uses", "variation", code=2).err
    run("publish", str(folder / "imp"))
    said = run("augment", "me/imp", "--base", str(base), code=2).err
    assert "add --images DIR" in said
    assert "no folder" in run("augment", "--images", "nothing", code=3).err
    assert "did you mean 'fish'?" in run("augment", "--rare", "fishes", code=2).err
    assert "no results at" in run("report", "--uses", ".", code=3).err
