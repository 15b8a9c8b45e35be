"""Pictures that carry what draws them again: drawn, pulled together elsewhere, and compared byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.cli.packages import write_package
from tests.fakes.pipelines import make_pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # other libraries' remarks; the command line keeps them quiet

TO_K = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a small random base in the diffusers layout."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_pipeline("sd1").save_pretrained(folder)
    return folder


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
