"""From pictures to a published concept to pictures, on a small random base, through the command line alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conceptry.cli.train import make_job, train
from tests.cli.conftest import Run
from tests.trainer.runs import paint_pictures

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet


@pytest.fixture
def words(base: Path, tmp_path: Path) -> tuple[str, ...]:
    """Give the words that train a LoRA on three painted pictures."""
    pictures = paint_pictures(tmp_path / "pictures")
    return (
        *("train", "lora", "--images", str(pictures), "--name", "me/imp", "--version", "1.0.0"),
        *("--placeholder", "<imp>", "--superclass", "creature", "--base", str(base), "--seed", "1"),
        *("--steps", "3", "--set", "rank=2", "--set", "learning_rates.lora=0.01", "--precision", "float32"),
    )


def drawn_again(run: Run, base: Path) -> str:
    """Returns what is said when the prompt lacks the concept's word."""
    words = (
        "generate",
        "--with",
        "me/imp",
        "--prompt",
        "a cat",
        "--steps",
        "1",
        "--base",
        str(base),
        "--out",
        "cats",
    )
    return run(*words).err


def test_training_publishes_and_generating_writes_the_composition_into_each_picture(
    run: Run, words: tuple[str, ...], base: Path
) -> None:
    trained = run(*words, "--json").document
    assert (trained["reference"], trained["steps"], trained["created"]) == ("me/imp@1.0.0", 3, True)
    assert trained["seconds"] > 0
    assert run("show", "me/imp", "--json").document["digest"] == trained["digest"]

    drawn = run(
        *(
            "generate",
            "--with",
            "me/imp*0.5",
            "--prompt",
            "a photo of <imp> creature",
            "--seed",
            "7",
            "-n",
            "2",
        ),
        *("--steps", "1", "--base", str(base), "--out", "pictures", "--json"),
    ).document
    assert [Path(row["path"]).name for row in drawn["pictures"]] == ["000.png", "001.png"]
    assert [row["seed"] for row in drawn["pictures"]] == [7, 8]
    with Image.open(drawn["pictures"][1]["path"]) as picture:
        facts = json.loads(picture.info["conceptry"])
    assert (facts["prompt"], facts["seed"], facts["steps"]) == ("a photo of <imp> creature", 8, 1)
    assert drawn_again(run, base).startswith(
        "warning: no prompt says <imp>, the word that calls me/imp@1.0.0\n"
    )
    (concept,) = facts["composition"]["concepts"]
    assert (concept["reference"], concept["digest"], concept["strength"]) == (
        "me/imp@1.0.0",
        trained["digest"],
        0.5,
    )


def test_generating_again_overwrites_nothing_and_gives_the_same_picture(run: Run, base: Path) -> None:
    for _ in range(2):
        run("generate", "--prompt", "a cat", "--steps", "1", "--base", str(base), "--out", "pictures")
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["000.png", "001.png"]
    assert Path("pictures/000.png").read_bytes() == Path("pictures/001.png").read_bytes()


def test_an_empty_folder_of_pictures_trains_nothing(run: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    finished = run(*(str(empty) if "pictures" in word else word for word in words), code=2)
    assert finished.err == (
        f"error: {str(empty)!r} is empty\n"
        "hint: put PNG, JPEG or WebP pictures into it; captions go into captions.jsonl or NAME.txt\n"
    )
    assert run("list", "-q").out == ""


def test_a_job_file_says_what_options_say_and_options_win(
    words: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    (tmp_path / "imp.toml").write_text(
        f"""
        method = "lora"
        images = "pictures"
        name = "me/imp"
        version = "0.9.0"
        placeholder = "<imp>"
        superclass = "creature"
        base = "{base}"
        seed = 1
        precision = "float32"
        steps = 3
        [settings]
        rank = 4
        learning_rates = {{ lora = 0.01 }}
        """,
        encoding="utf-8",
    )
    given = parse(["--job", str(tmp_path / "imp.toml"), "--version", "1.0.0", "--set", "rank=2"])
    assert make_job(given) == make_job(parse(list(words[1:])))


def parse(words: list[str]) -> dict[str, Any]:
    """Returns what ``concepts train`` makes of its words, without how the run is looked at."""
    given = train.make_context("train", words).params
    return {name: one for name, one in given.items() if name not in ("previews", "curves", "tensorboard")}


def test_two_subjects_are_taught_in_one_run_and_called_by_their_words(
    run: Run, words: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    rex = paint_pictures(tmp_path / "rex", count=2)
    trained = run(*words, "--also", "<rex>", "dog", str(rex), "--json").document
    tokens = run("show", trained["reference"], "--json").document["manifest"]["tokens"]
    assert [token["placeholder"] for token in tokens] == ["<imp>", "<rex>"]
    both = "a <imp> creature and a <rex> dog"
    drawn = ("generate", "--with", "me/imp", "--prompt", both, "--steps", "1", "--base", str(base))
    assert "warning" not in run(*drawn, "--out", "both").err
    again = run(*words, "--version", "1.1.0", "--also", "<imp>", "dog", str(rex), code=2).err
    assert "'<imp>' has the placeholder of '<imp>'" in again
