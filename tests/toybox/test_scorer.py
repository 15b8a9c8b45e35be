"""The scorer: what it reads in pictures of instances and styles that it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conceptry.errors import NotFoundError
from conceptry.toybox.examples import held_out_instance, held_out_style, instance_scenes, style_scenes
from conceptry.toybox.measures import equal_error_rate, held_out_scenes, measure_scorer, measure_sensitivity
from conceptry.toybox.render import render
from conceptry.toybox.scorer import Scorer


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


def test_held_out_pictures_are_read_right(scorer: Scorer) -> None:
    figures = measure_scorer(scorer, 160)
    assert min(figures[name] for name in ("class", "background", "position", "style")) >= 0.97
    assert figures["color"] >= 0.85  # styles without a name move every color


def test_an_instance_scores_higher_than_another_of_its_class(scorer: Scorer) -> None:
    imp, other = held_out_instance("creature", 7), held_out_instance("creature", 8)
    prototype = scorer.prototype(render(instance_scenes(imp, 32, part=1)))
    own = scorer.identity(render(instance_scenes(imp, 8, part=2)), prototype)
    strange = scorer.identity(render(instance_scenes(other, 8, part=2)), prototype)
    assert own.min() > strange.max()


def test_the_score_falls_when_any_one_attribute_changes(scorer: Scorer) -> None:
    assert set(measure_sensitivity(scorer, instances=8).values()) == {1.0}


def test_an_unseen_style_scores_higher_than_another(scorer: Scorer) -> None:
    prototype = scorer.style_prototype(render(style_scenes(held_out_style(3), 32, part=1)))
    own = scorer.style(render(style_scenes(held_out_style(3), 8, part=2)), prototype)
    strange = scorer.style(render(style_scenes(held_out_style(4), 8, part=2)), prototype)
    assert own.mean() > strange.mean() + 0.2


def test_two_objects_are_told_apart(scorer: Scorer) -> None:
    scenes = [
        scene for scene in held_out_scenes(120) if len(scene.objects) == 2 and scene.style.name == "flat"
    ]
    readings = scorer.read(render(scenes))
    right = [
        sorted(found.kind for found in reading.objects)
        == sorted(placed.instance.kind for placed in scene.objects)
        for scene, reading in zip(scenes, readings, strict=True)
    ]
    assert np.mean(right) >= 0.9


def test_images_and_arrays_are_read_alike_at_any_size(scorer: Scorer) -> None:
    picture = render(held_out_scenes(1))[0]
    large = Image.fromarray(picture).resize((128, 128), Image.Resampling.NEAREST)
    first, second = scorer.read(picture[None])[0], scorer.read([large])[0]
    assert first.background == second.background
    assert np.allclose(first.objects[0].embedding, second.objects[0].embedding, atol=1e-4)


def test_a_missing_scorer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no scorer"):
        Scorer.load(tmp_path)


def test_the_equal_error_rate_of_parted_and_of_equal_scores() -> None:
    low, high = np.linspace(0.0, 0.4, 50, dtype=np.float32), np.linspace(0.6, 1.0, 50, dtype=np.float32)
    assert equal_error_rate(high, low) == 0.0
    assert equal_error_rate(high, high) == pytest.approx(0.5, abs=0.02)
