"""Concepts on transformers from the command line: checked, composed, drawn, drawn again; what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conceptry.registry import Registry
from tests.cli.conftest import Run
from tests.cli.test_pictures import read_facts, read_pixels
from tests.composer.test_transformers import import_adapter, write_kohya
from tests.fakes.flows import FAMILIES, make_flow_pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet

DRAWING = ("--prompt", "a zork on the beach", "--steps", "2", "--size", "32x32", "-q")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of all bases that were saved, which no test may change."""
    return tmp_path_factory.mktemp("flows")


def save_base(bases: Path, family: str) -> Path:
    """Returns the folder of a base: its published configuration with two blocks, narrow, random weights."""
    folder = bases / family
    if not folder.is_dir():
        make_flow_pipeline(family).save_pretrained(folder)
    return folder


def publish_adapter(tmp_path: Path, family: str, name: str, seed: int = 0) -> str:
    """Returns the reference of an adapter in the names of the family's authors."""
    import_adapter(write_kohya(tmp_path / f"{name}.safetensors", family, seed), family, f"me/{name}")
    return str(Registry().publish(tmp_path / name).reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_checked_drawn_and_drawn_again(
    run: Run, bases: Path, tmp_path: Path, family: str
) -> None:
    base = ("--base", str(save_base(bases, family)))
    adapter = publish_adapter(tmp_path, family, "one")
    checked = run("check", adapter, *base, "--json").document
    assert (checked["base"]["family"], checked["base"]["prediction_type"]) == (family, "flow")
    assert [row["fit"] for row in checked["concepts"]] == ["exact"]
    run("generate", "--with", f"{adapter}*0", *base, *DRAWING, "--out", "bare")
    run("generate", "--with", adapter, *base, *DRAWING, "--out", "drawn")
    drawn, bare = (Path(out, "000.png") for out in ("drawn", "bare"))
    assert not np.array_equal(read_pixels(drawn), read_pixels(bare))
    facts = read_facts(drawn)
    assert (facts["width"], facts["machine"]["dtype"]) == (32, "float32")
    assert run("reproduce", str(drawn), *base, "-q").out == "same_bytes\n"


def test_a_composition_file_draws_what_its_options_do_and_is_exported(
    run: Run, bases: Path, tmp_path: Path
) -> None:
    base = ("--base", str(save_base(bases, "flux")))
    one, two = (publish_adapter(tmp_path, "flux", name, seed) for seed, name in enumerate(("one", "two")))
    timed = ("--schedule", "me/two:0.4..")
    run("compose", one, f"{two}*0.5", *timed, *base, "--out", "two.toml")
    run("generate", "--composition", "two.toml", *base, *DRAWING, "--out", "file")
    run("generate", "--with", one, "--with", f"{two}*0.5", *timed, *base, *DRAWING, "--out", "named")
    assert Path("file/000.png").read_bytes() == Path("named/000.png").read_bytes()
    run("compose", one, two, *base, "--export", "sum.safetensors")
    assert Path("sum.safetensors").is_file()


@pytest.mark.parametrize(
    "options", [("--way", "focus"), ("--way", "composite"), ("--region", "me/one:0,0,0.5,1")]
)
def test_what_takes_rows_and_columns_is_refused_before_anything_is_drawn(
    run: Run, bases: Path, tmp_path: Path, options: tuple[str, str]
) -> None:
    base = ("--base", str(save_base(bases, "flux")))
    one, two = (publish_adapter(tmp_path, "flux", name, seed) for seed, name in enumerate(("one", "two")))
    refused = run("compose", one, two, *options, *base, "--out", "x.toml", code=6)
    assert "needs a denoiser of rows and columns, a UNet, and flux has a transformer" in refused.err
    assert "hint: use the way 'sum' or 'switch', without regions\n" in refused.err
    drawn = run("generate", "--with", one, "--with", two, *options, *base, *DRAWING, "--out", "x", code=6)
    assert drawn.err.splitlines()[-2:] == refused.err.splitlines()[-2:]
    assert not any(path.is_file() for path in Path().rglob("*"))


def test_turns_and_several_called_words_need_no_rows(run: Run, bases: Path, tmp_path: Path) -> None:
    base = ("--base", str(save_base(bases, "sd3")))
    one, two = (publish_adapter(tmp_path, "sd3", name, seed) for seed, name in enumerate(("one", "two")))
    both = ("generate", "--with", one, "--with", two, *base, *DRAWING)
    run(*both, "--out", "sum")
    assert read_facts(Path("sum/000.png"))["composition"]["way"] == "sum"
    run(*both, "--way", "switch", "--period", "1", "--out", "turns")
    assert not np.array_equal(read_pixels(Path("turns/000.png")), read_pixels(Path("sum/000.png")))


@pytest.mark.parametrize(
    ("family", "options", "code", "said"),
    [
        ("flux", ("--negative", "rain"), 2, "guided by a number that it was taught"),
        ("z_image", ("--sampler", "euler"), 2, "this base is a flow, and euler takes the steps of noise"),
        ("sd3", ("--size", "36x32"), 2, "sides are multiples of 8"),
        ("qwen_image", ("--image", "IMAGE"), 6, "QwenImagePipeline has no way here to draw over a picture"),
        ("flux", ("--prompt", "a (zork:1.3)"), 6, "is not CLIP's, so its words cannot be weighed"),
    ],
)
def test_what_a_transformer_does_not_have_is_refused_with_words(
    run: Run, bases: Path, tmp_path: Path, family: str, options: tuple[str, ...], code: int, said: str
) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "room.png")
    filled = [str(tmp_path / "room.png") if word == "IMAGE" else word for word in options]
    drawing = DRAWING[2:] if "--prompt" in options else DRAWING
    refused = run(
        "generate", "--base", str(save_base(bases, family)), *drawing, *filled, "--out", "x", code=code
    )
    assert said in refused.err
    assert not any(path.is_file() for path in Path().rglob("*"))


def test_a_negative_prompt_leads_a_flow_away(run: Run, bases: Path) -> None:
    for family in ("qwen_image", "z_image"):
        base = ("--base", str(save_base(bases, family)))
        run("generate", *base, *DRAWING, "--out", f"{family}-plain")
        run("generate", *base, *DRAWING, "--negative", "rain", "--out", f"{family}-dry")
        plain, dry = (read_pixels(Path(f"{family}-{out}", "000.png")) for out in ("plain", "dry"))
        assert not np.array_equal(plain, dry)


def test_a_base_that_makes_films_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "wan"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    refused = run("generate", "--base", str(folder), *DRAWING, "--out", "x", code=6)
    assert "is a 'WanPipeline', which is not opened here" in refused.err
