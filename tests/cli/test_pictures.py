"""Pictures that carry what draws them again: drawn, pulled together elsewhere, and compared byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.fakes.concepts import make_embedding, make_hypernetwork
from tests.fakes.pipelines import make_pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet

ROOT = Path(__file__).parents[2]


@pytest.fixture
def imp(run: Run, tmp_path: Path) -> str:
    """Give the reference of a LoRA that fits the base, on a remote that the store knows."""
    run("publish", str(write_package(tmp_path / "imp")))
    run("remote", "add", "studio", (tmp_path / "studio").as_uri())
    run("push", "me/imp", "studio")
    return "me/imp@1.0.0"


def draw(run: Run, base: Path, *words: str, out: str = "pictures") -> list[Path]:
    """Returns the pictures that ``concepts generate`` wrote, two steps each."""
    settings = ("--steps", "2", "--guidance", "3", "--base", str(base), "--out", out, "--json")
    document = run("generate", "--prompt", "a photo of <imp> creature", *words, *settings).document
    return [Path(row["path"]) for row in document["pictures"]]


def read_facts(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        facts: dict[str, Any] = json.loads(picture.info["conceptry"])
    return facts


def read_pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), int)


def move_to_an_empty_store(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / "elsewhere"))
    run("remote", "add", "theirs", (tmp_path / "studio").as_uri())
    assert run("list", "-q").out == ""


def test_pictures_come_back_byte_for_byte_from_an_empty_store_and_a_remote(
    run: Run, imp: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = draw(run, base, "--with", "me/imp*0.5", "--seed", "7", "-n", "2")
    batch = draw(
        run, base, "--with", "me/imp", "--seed", "3", "-n", "3", "--batch", "2", "--sampler", "euler_a"
    )
    pictures = [*single, *batch]
    move_to_an_empty_store(run, tmp_path, monkeypatch)
    again = run("reproduce", *map(str, pictures), "--base", str(base), "--out", "again", "--json").document
    assert [row["outcome"] for row in again["pictures"]] == ["same_bytes"] * 5
    assert again["ok"] is True
    for path in pictures:
        assert (Path("again") / path.name).read_bytes() == path.read_bytes()
    assert run("list", "-q").out == f"{imp}\n"


def test_a_picture_is_the_same_bytes_alone_and_among_others(run: Run, imp: str, base: Path) -> None:
    among = draw(run, base, "--with", imp, "--seed", "7", "-n", "3", out="among")
    (alone,) = draw(run, base, "--with", imp, "--seed", "8", out="alone")
    assert among[1].read_bytes() == alone.read_bytes()


def test_a_picture_carries_what_draws_it_and_nothing_of_this_machines_files(
    run: Run, imp: str, base: Path, tmp_path: Path
) -> None:
    (path,) = draw(run, base, "--with", "me/imp*0.5", "--negative", "a dog", "--seed", "7")
    facts = read_facts(path)
    assert (facts["prompt"], facts["negative"], facts["seed"]) == ("a photo of <imp> creature", "a dog", 7)
    assert (facts["sampler"]["name"], facts["sampler"]["scheduler"]) == (None, "DDIMScheduler")
    assert facts["batch"] == {"size": 1, "index": 0}
    (member,) = facts["composition"]["concepts"]
    digest = run("show", imp, "--json").document["digest"]
    assert (member["reference"], member["digest"], member["strength"]) == (imp, digest, 0.5)
    assert member["words"] == {"<imp>": "<imp>"}
    assert {"torch", "diffusers", "transformers", "pillow"} <= set(facts["machine"]["libraries"])
    assert facts["machine"]["threads"] == 1
    assert set(facts["base"]["components"]) == {"unet", "text_encoder", "vae"}
    data = path.read_bytes()
    for place in (base, tmp_path, Path.home()):
        assert str(place).encode() not in data
    with Image.open(path) as picture:
        said = str(picture.info["parameters"]).splitlines()
    assert said[:2] == ["a photo of <imp> creature", "Negative prompt: a dog"]
    assert said[2].startswith("Steps: 2, Sampler: DDIM, CFG scale: 3, Seed: 7, Size: 16x16, Model: sd1, ")


def paint(path: Path, *, size: tuple[int, int] = (32, 32)) -> Path:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = (200, 40, 40)
    Image.fromarray(pixels).save(path)
    return path


def test_a_picture_is_drawn_over_and_inside_a_mask_and_comes_back_with_its_files(
    run: Run, imp: str, base: Path, tmp_path: Path
) -> None:
    image, mask = paint(tmp_path / "room.png"), tmp_path / "mask.png"
    Image.new("L", (32, 32), 0).save(mask)
    over = draw(run, base, "--with", imp, "--image", str(image), "--strength", "0.5", out="over")
    inside = draw(
        run, base, "--with", imp, "--image", str(image), "--mask", str(mask), "--size", "32x32", out="inside"
    )
    # Nothing of the mask is white, so the picture is what it was; without a mask it is not.
    assert np.array_equal(read_pixels(inside[0]), read_pixels(image))
    assert read_pixels(over[0]).shape == (16, 16, 3)
    assert read_facts(over[0])["source"]["strength"] == 0.5
    again = run("reproduce", str(over[0]), "--base", str(base), code=3)
    assert "drawn over a picture that is not named: sha256:" in again.err
    files = ("--image", str(mask), "--image", str(image))
    found = run("reproduce", str(over[0]), *files, "--base", str(base), "-q").out
    assert found == "same_bytes\n"
    assert run("reproduce", str(inside[0]), *files, "--base", str(base), "-q").out == "same_bytes\n"


def test_prompts_name_concepts_and_the_picture_keeps_which_ones(
    run: Run, imp: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--steps", "2", "--base", str(base), "--guidance", "3", "--json")
    tagged = run(
        "generate", "--prompt", "a (<imp>:1.3) cat <lora:imp:0.5>", "--out", "tagged", *words
    ).document
    (path,) = (Path(row["path"]) for row in tagged["pictures"])
    facts = read_facts(path)
    assert facts["prompt"] == "a (<imp>:1.3) cat <lora:imp:0.5>"
    assert facts["wording"]["prompt"] == "a (<imp>:1.3) cat"
    assert [(one["reference"], one["strength"]) for one in facts["composition"]["concepts"]] == [(imp, 0.5)]
    named = run(
        "generate", "--with", "me/imp*0.5", "--prompt", "a (<imp>:1.3) cat", "--out", "named", *words
    ).document
    plain = run(
        "generate", "--with", "me/imp*0.5", "--prompt", "a <imp> cat", "--out", "plain", *words
    ).document
    assert np.array_equal(read_pixels(path), read_pixels(Path(named["pictures"][0]["path"])))
    assert not np.array_equal(read_pixels(path), read_pixels(Path(plain["pictures"][0]["path"])))
    move_to_an_empty_store(run, tmp_path, monkeypatch)
    assert run("reproduce", str(path), "--base", str(base), "-q").out == "same_bytes\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--prompt", "a cat <lora:none:1>"), 3, "nothing in the store is called so"),
        (("--prompt", "a cat", "--negative", "<lora:imp:1>"), 2, "stands in the negative prompt"),
        (("--prompt", "a cat", "--negative", "<hypernet:ink>"), 2, "and a hypernetwork changes both"),
        (("--prompt", "a cat <hypernet:imp:1>"), 3, "names the hypernetwork 'imp', and nothing in the store"),
        (("--prompt", "[cat:dog:0.5]"), 2, "changes the prompt with the step"),
        (("--prompt", "a cat", "--strength", "0.5"), 2, "say how --image is drawn over"),
        (("--prompt", "a cat", "--size", "wide"), 2, "not a size"),
        (("--prompt", "a \udcff cat"), 2, "cannot be kept"),
        (("--prompt", "a cat <lora:imp:1>", "--with", "me/imp"), 2, "occurs twice"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_base_is_opened(
    run: Run, imp: str, words: tuple[str, ...], code: int, said: str
) -> None:
    finished = run("generate", *words, "--base", "sd1", "--out", "pictures", code=code)
    assert said in finished.err
    assert not Path("pictures").exists()


def test_a_tag_names_a_hypernetwork(run: Run, base: Path, tmp_path: Path) -> None:
    make_hypernetwork(tmp_path / "ink", make_pipeline("sd1"), name="me/ink")
    run("publish", str(tmp_path / "ink"))
    drawing = ("--steps", "1", "--base", str(base), "-q")
    run("generate", "--prompt", "a cat <hypernet:ink:0.5>", *drawing, "--out", "tagged")
    run("generate", "--with", "me/ink*0.5", "--prompt", "a cat", *drawing, "--out", "named")
    run("generate", "--prompt", "a cat", *drawing, "--out", "plain")
    tagged, named, plain = (read_pixels(Path(out, "000.png")) for out in ("tagged", "named", "plain"))
    assert np.array_equal(tagged, named)
    assert not np.array_equal(tagged, plain)


def test_a_folder_that_stays_empty_is_taken_away_unless_it_was_there(run: Run, base: Path) -> None:
    refused = ("--prompt", "a (cat:1.2)", "--negative", "a (cat:0.5)", "--steps", "1", "--base", str(base))
    assert "give them different words" in run("generate", *refused, "--out", "deep/new", code=2).err
    assert not Path("deep").exists()
    Path("old").mkdir()
    run("generate", *refused, "--out", "old", code=2)
    assert Path("old").is_dir()


def test_another_base_another_picture_and_a_lost_concept_are_said(
    run: Run, imp: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = draw(run, base, "--with", imp)
    other = tmp_path / "other"
    make_pipeline("sd1", seed=1).save_pretrained(other)
    assert "this base is another" in run("reproduce", str(path), "--base", str(other), code=6).err
    assert "has no name here" in run("reproduce", str(path), code=2).err
    with Image.open(path) as picture:
        info = PngInfo()
        info.add_itxt("conceptry", picture.info["conceptry"])
        picture.save("copied.png", pnginfo=info)
        inverted = Image.eval(picture, lambda level: 255 - level)
        inverted.save("changed.png", pnginfo=info)
        theirs = PngInfo()
        theirs.add_text("parameters", "a cat\nSteps: 2, Model: some_model")
        picture.save("theirs.png", pnginfo=theirs)
    assert run("reproduce", "copied.png", "theirs.png", "--base", str(base), "-q").out == "same_pixels\n"
    changed = run("reproduce", "changed.png", "--base", str(base), code=4)
    assert changed.out.startswith("changed.png: another picture: at most ")
    both = run("reproduce", "theirs.png", "copied.png", "--base", str(base), "--json").document
    assert [row["picture"] for row in both["pictures"]] == ["copied.png"]
    assert [(row["picture"], row["missing"]) for row in both["explained"]] == [("theirs.png", ["some_model"])]
    monkeypatch.setenv("CONCEPTRY_HOME", str(tmp_path / "empty"))
    lost = run("reproduce", str(path), "--base", str(base), code=3)
    assert "me/imp@1.0.0 with the digest" in lost.err
    assert "no remote, none is configured" in lost.err


def test_a_composition_file_keeps_its_concepts_from_being_collected(run: Run, imp: str) -> None:
    run("compose", "me/imp", "--out", "one.toml")
    run("remove", imp, "--yes")
    found = run("gc", "--grace", "0", "--dry-run", "--json").document
    assert found["items"] == []
    assert [row["kind"] for row in found["kept_for"]] == ["composition"]
    run("gc", "--forget", "one.toml", "--yes")
    assert len(run("gc", "--grace", "0", "--dry-run", "--json").document["items"]) == 2


def test_words_that_collide_are_renamed_recorded_and_called_by_tags(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline("sd1")
    for name, seed in (("one", 1), ("two", 2)):
        make_embedding(tmp_path / name, pipeline, "<e>", name=f"me/{name}", seed=seed)
        run("publish", str(tmp_path / name))
        run("push", f"me/{name}", (tmp_path / "studio").as_uri())
    words = ("--steps", "2", "--base", str(base), "--json")
    prompt = "a cat, (embedding:two:1.2), embedding:me/one"
    document = run("generate", "--with", "me/one", "--prompt", prompt, "--out", "tagged", *words).document
    (path,) = (Path(row["path"]) for row in document["pictures"])
    facts = read_facts(path)
    assert facts["wording"]["prompt"] == "a cat, (<e-2>:1.2), <e>"
    concepts = facts["composition"]["concepts"]
    assert [(one["reference"], one["words"]) for one in concepts] == [
        ("me/one@1.0.0", {"<e>": "<e>"}),
        ("me/two@1.0.0", {"<e>": "<e-2>"}),
    ]
    move_to_an_empty_store(run, tmp_path, monkeypatch)
    assert run("reproduce", str(path), "--base", str(base), "-q").out == "same_bytes\n"


def test_a_name_that_two_concepts_have_is_refused_with_both(run: Run, imp: str, tmp_path: Path) -> None:
    run("publish", str(write_package(tmp_path / "your", "you/imp")))
    words = ("--prompt", "a <lora:imp:0.5> cat", "--base", "sd1", "--out", "pictures")
    refused = run("generate", *words, code=2)
    assert "'imp' may be me/imp, you/imp\n" in refused.err
    assert "hint: write the whole name, such as <lora:me/imp:0.5>" in refused.err


@pytest.mark.slow
def test_a_hundred_pictures_of_every_kind_come_back_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "reproducing.py"), str(tmp_path / "out.json")]
    subprocess.run(command, check=True, cwd=tmp_path)  # our own script
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    assert (results["here"]["pictures"], results["here"]["equal_files"]) == (100, 100)
    assert all("different" not in row for row in results.values())
