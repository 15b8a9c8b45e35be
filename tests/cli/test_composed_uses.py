"""Schedules, regions, parts and ways as options: into a file, out of it, and into the same pictures."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conceptry.cli.composing import WAYS
from conceptry.composer.ways import WAY_BY_ID
from conceptry.digests import Digest
from tests.cli.conftest import Run
from tests.cli.test_pictures import read_facts, read_pixels
from tests.fakes.concepts import make_embedding
from tests.fakes.pipelines import make_pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Give a mask of the left half."""
    values = np.zeros((64, 64), np.uint8)
    values[:, :32] = 255
    Image.fromarray(values).save(tmp_path / "left.png")
    return tmp_path / "left.png"


def test_every_way_is_offered() -> None:
    assert set(WAYS) == set(WAY_BY_ID)


def test_what_is_asked_is_written_read_back_and_has_a_digest(
    run: Run, imp: str, look: str, mask: Path
) -> None:
    asked = (
        *("--schedule", "me/look:0.2..0.8~0.1", "--part", "me/look:text_encoder=0"),
        *("--region", f"me/imp:{mask}", "--region-prompt", "me/imp:an <imp>"),
        *("--way", "switch", "--period", "3"),
    )
    written = run("compose", "me/imp", "me/look*0.7", *asked, "--json").document
    digest = Digest.of_file(mask)
    assert tomllib.loads(Path("composition.toml").read_text(encoding="utf-8")) == {
        "schema": 1,
        "way": "switch",
        "period": 3,
        "concepts": [
            {
                "reference": imp,
                "digest": written["concepts"][0]["digest"],
                "strength": 1.0,
                "region": {"mask": str(digest), "feather": 0.0, "prompt": "an <imp>"},
            },
            {
                "reference": look,
                "digest": written["concepts"][1]["digest"],
                "strength": 0.7,
                "parts": {"text_encoder": 0.0},
                "schedule": {"start": 0.2, "stop": 0.8, "ramp": 0.1},
            },
        ],
    }
    assert Path("masks", f"{digest.hex}.png").read_bytes() == mask.read_bytes()
    read = run("compose", "--file", "composition.toml", "--json").document
    assert read["digest"] == written["digest"]
    assert (read["way"], read["concepts"]) == ("switch", written["concepts"])
    said = run("compose", "--file", "composition.toml").out
    assert f"used     inside the mask {digest.short}, drawn by 'an <imp>'" in said
    assert "used     from 0.2 to 0.8 of the steps, rising and falling over 0.1" in said
    assert "way: by turns of 3 steps each (LoRA Switch)" in said


def test_another_mask_is_another_composition_and_a_changed_or_lost_one_is_refused(
    run: Run, imp: str, mask: Path
) -> None:
    first = run("compose", imp, "--region", f"me/imp:{mask}", "--out", "a.toml", "--json").document
    with Image.open(mask) as picture:
        turned = picture.rotate(180)
    turned.save(mask)
    second = run("compose", imp, "--region", f"me/imp:{mask}", "--out", "b.toml", "--json").document
    assert first["digest"] != second["digest"]
    assert len(list(Path("masks").iterdir())) == 2
    kept = Path("masks", f"{Digest.of_file(mask).hex}.png")
    kept.write_bytes(next(path for path in Path("masks").iterdir() if path != kept).read_bytes())
    for command in ("compose", "check"):
        assert "was changed" in run(command, "--file", "b.toml", code=4).err
    kept.unlink()
    lost = run("compose", "--file", "b.toml", code=3)
    assert f"hint: put it beside what names it, as masks/{kept.name}\n" in lost.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--schedule", "me/imp"), "not a schedule: 'me/imp'"),
        (("--schedule", "me/imp:half"), "not a schedule: 'half'"),
        (("--schedule", "me/imp:0.8..0.2"), "start 0.8 is not before stop 0.2"),
        (("--schedule", "me/imp:0..7"), "not a schedule: '0..7'"),
        (("--schedule", "me/imp:..0.5", "--schedule", "me/imp:0.7.."), "has --schedule twice"),
        (("--schedule", "me/other:..0.5"), "'me/other', which is not in the composition"),
        (("--region", "me/imp:0,0,1"), "not a region: '0,0,1'"),
        (("--region", "me/imp:0.5,0,0.5,1"), "is empty: it is left, top, right, bottom"),
        (("--region-prompt", "me/imp:an imp"), "me/imp has no region that a prompt could be for"),
        (("--part", "me/imp:text_encoder"), "not a part: 'text_encoder'"),
        (("--region", "me/imp:0,0,2,1"), "box[2] is 2, it may be at most 1"),
        (("--region", "me/imp:0,0,1,1~0.8"), "feather is 0.8, it may be at most 0.5"),
        (("--part", "me/imp:text_encoder=99"), "parts.text_encoder is 99, it may be at most 10"),
        (("--period", "3"), "--period is of --way switch"),
        (("--way", "composite", "--region", "me/imp:0,0,0.5,1"), "both take passes"),
        (("--schedule", "me/imp:..0.5", "--file", "x.toml"), "takes a composition as it is written"),
        (("--schedule", "me/imp:..0.5", "--export", "x.safetensors"), "no file of weights holds it"),
        (("--region", "me/imp:0,0,0.5,1", "--export", "x.safetensors"), "no file of weights holds it"),
    ],
)
def test_what_cannot_be_used_so_is_refused_and_nothing_is_written(
    run: Run, imp: str, options: tuple[str, ...], said: str
) -> None:
    named = () if "--file" in options else (imp,)
    refused = run("compose", *named, *options, code=6 if "--export" in options else 2)
    assert said in refused.err
    assert "hint: " in refused.err or "--way" in options or "=99" in options[-1]
    assert (refused.out, list(Path().iterdir())) == ("", [])


def test_uses_without_a_named_concept_are_refused(run: Run) -> None:
    words = ("generate", "--prompt", "a cat", "--way", "switch", "--base", "sd1", "--out", "pictures")
    assert "of concepts that are named" in run(*words, code=2).err


def test_a_part_is_in_an_exported_file_as_it_is_attached(run: Run, imp: str) -> None:
    run("compose", f"{imp}*0.5", "--export", "half.safetensors")
    run("compose", imp, "--part", "me/imp:unet.down_blocks=0.5", "--export", "part.safetensors")
    half, part = (read_tensors(Path(f"{name}.safetensors")) for name in ("half", "part"))
    assert half.keys() == part.keys()
    for name, values in half.items():
        np.testing.assert_array_equal(part[name], values)


def read_tensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray[Any, Any]] = load_file(path)
    return found


def test_a_part_that_holds_nothing_of_a_concept_is_said(run: Run, imp: str) -> None:
    wrong = run("compose", imp, "--part", "me/imp:unet.up_block=0", "--out", "a.toml", "--json")
    (said,) = [text for text in wrong.document["warnings"] if "unet.up_block" in text]
    assert said == f"{imp}: it changes nothing in the part unet.up_block, so its share there does nothing"
    assert f"warning: {said}\n" in wrong.err
    right = run("compose", imp, "--part", "me/imp:unet.down_blocks.0=0", "--out", "b.toml")
    assert "does nothing" not in right.err
    assert (
        "hint: concepts generate --composition b.toml --prompt 'a photo of a <imp> creature' --out pictures"
        in right.err
    )


def test_what_does_nothing_to_words_is_said(run: Run, base: Path, tmp_path: Path) -> None:
    make_embedding(tmp_path / "words", make_pipeline("sd1"), "<e>", name="me/words")
    run("publish", str(tmp_path / "words"))
    told = run("compose", "me/words", "--schedule", "me/words:..0.5", "--out", "a.toml").err
    assert "warning: me/words@1.0.0: a schedule does nothing to it" in told
    prompted = ("--region", "me/words:0,0,0.5,1", "--region-prompt", "me/words:a <e>")
    assert "does nothing" not in run("compose", "me/words", *prompted, "--out", "b.toml").err


def test_a_masked_picture_is_that_of_its_file_and_comes_back_byte_for_byte(
    run: Run, imp: str, base: Path, mask: Path
) -> None:
    drawing = ("--prompt", "a photo of <imp> creature", "--steps", "2", "--base", str(base), "-q")
    used = ("--region", f"me/imp:{mask}", "--schedule", "me/imp:..0.9")
    run("generate", "--with", f"{imp}*9", *used, *drawing, "--out", "direct")
    run("compose", f"{imp}*9", *used, "--base", str(base), "--out", "one.toml")
    run("generate", "--composition", "one.toml", *drawing, "--out", "file")
    picture = Path("direct", "000.png")
    assert picture.read_bytes() == Path("file", "000.png").read_bytes()
    (member,) = read_facts(picture)["composition"]["concepts"]
    assert member["region"]["mask"] == str(Digest.of_file(mask))
    boxed = ("--region", "me/imp:0,0,0.5,1", "--schedule", "me/imp:..0.9")
    run("generate", "--with", f"{imp}*9", *boxed, *drawing, "--out", "box")
    assert np.array_equal(read_pixels(Path("box", "000.png")), read_pixels(picture))
    again = ("reproduce", str(picture), "--base", str(base), "-q")
    assert run(*again, "--out", "moved").out == "same_bytes\n"
    moved = ("reproduce", "moved/000.png", "--base", str(base), "-q")
    assert run(*moved).out == "same_bytes\n"
    for kept in Path("direct", "masks").iterdir():
        kept.unlink()
    assert "the mask sha256:" in run(*again, code=3).err
    assert run(*again, "--image", str(mask)).out == "same_bytes\n"


def test_a_word_in_the_prompt_of_a_region_is_said(run: Run, base: Path, tmp_path: Path) -> None:
    make_embedding(tmp_path / "words", make_pipeline("sd1"), "<e>", name="me/words")
    run("publish", str(tmp_path / "words"))
    drawing = ("generate", "--with", "me/words", "--prompt", "a cat", "--steps", "1", "--base", str(base))
    boxed = ("--region", "me/words:0,0,0.5,1", "--region-prompt", "me/words:a <e>")
    assert "no prompt says" not in run(*drawing, *boxed, "--out", "said").err
    assert "no prompt says <e>" in run(*drawing, *boxed[:2], "--out", "unsaid").err


def test_several_concepts_that_the_prompt_calls_are_drawn_each_by_itself(
    run: Run, base: Path, tmp_path: Path
) -> None:
    for number, name in enumerate(("one", "two")):
        make_embedding(tmp_path / name, make_pipeline("sd1"), f"<{name}>", name=f"me/{name}", seed=number)
        run("publish", str(tmp_path / name))
    both = ("generate", "--with", "me/one", "--with", "me/two*0.9", "--steps", "2", "--base", str(base), "-q")

    def draw(out: str, prompt: str, *words: str) -> Path:
        run(*both, "--prompt", prompt, "--out", out, *words)
        return Path(out, "000.png")

    focused = draw("called", "a <one> and a (<two>:1.2)")
    assert read_facts(focused)["composition"]["way"] == "focus"
    assert run("reproduce", str(focused), "--base", str(base), "-q").out == "same_bytes\n"
    summed = draw("sum", "a <one> and a (<two>:1.2)", "--way", "sum")
    assert read_facts(summed)["composition"]["way"] == "sum"
    assert not np.array_equal(read_pixels(summed), read_pixels(focused))
    for out, prompt, words in (
        ("one", "a <one>", ()),
        ("boxed", "<one> <two>", ("--region", "me/one:0,0,1,1")),
    ):
        assert read_facts(draw(out, prompt, *words))["composition"]["way"] == "sum"
