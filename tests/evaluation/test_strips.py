"""The pictures of a row say what they show: their prompts, and the true thing beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conceptry.evaluation.bench_page import make_benchmark_page
from conceptry.evaluation.bench_strips import list_prompts, locate_reference, render_truth, thin_prompts
from conceptry.evaluation.toybench import load_suite
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from tests.evaluation.rows import gather, make_row
from tests.evaluation.strict_html import parse_strictly

PROMPTS = load_suite().prompts["instance"]


def paint_strip(path: Path, tiles: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64 * tiles, 64), (10, 90, 200)).save(path)


def test_each_picture_of_a_row_stands_over_the_prompt_that_it_was_drawn_for() -> None:
    row = make_row("lora", "creature-20", 0.8, 0.9)
    said = list_prompts(row, "toybox-1", 10)
    assert said == [prompt.with_concept("[word]") for prompt in PROMPTS[::2]]
    few = list_prompts(row, "toybox-1", 5)
    assert few == [prompt.with_concept("[word]") for prompt in thin_prompts(PROMPTS, 5)]
    assert list_prompts(row, "toybox-1", 13) == []
    assert len(list_prompts(row, "clip-dino 0123456789ab", 10)) == 10


def test_the_true_thing_is_rendered_from_its_seed_and_was_never_taught() -> None:
    shown = render_truth("cup-21")
    assert shown is not None
    true = render(instance_scenes(held_out_instance("cup", 21), 2, part=1))
    assert np.array_equal(np.asarray(shown), np.concatenate(list(true), axis=1))
    assert render_truth("style-40") is not None
    assert render_truth("dog-1@0123456789ab") is None


def test_the_page_has_the_true_thing_and_the_prompts_with_each_row(tmp_path: Path) -> None:
    rows = []
    for subject in ("creature-20", "dog-1"):
        name = f"pictures/lora/{subject}.png"
        paint_strip(tmp_path / name, 10)
        rows.append(make_row("lora", subject, 0.8, 0.9, pictures=name))
    paint_strip(tmp_path / locate_reference("dog-1"), 1)
    parsed = parse_strictly(make_benchmark_page(gather(*rows), tmp_path))
    assert parsed.pictures == 2
    for prompt in PROMPTS[::2]:
        assert parsed.text.count(prompt.with_concept("[word]")) == 2
    for subject in ("creature-20", "dog-1"):
        assert f"the true {subject}, never taught so" in parsed.text


@pytest.mark.parametrize("name", ["../../secret.webp", "missing.webp"])
def test_a_row_whose_pictures_are_not_there_shows_none(name: str, tmp_path: Path) -> None:
    row = make_row("lora", "creature-20", 0.8, 0.9, pictures=name)
    assert parse_strictly(make_benchmark_page(gather(row), tmp_path)).pictures == 0
