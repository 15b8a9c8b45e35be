"""The toy world: pictures and captions follow from seeds, and what a caption says is true."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from conceptry.toybox.canvas import Brush, Canvas
from conceptry.toybox.captions import MAX_WORDS, count_words, describe
from conceptry.toybox.render import render
from conceptry.toybox.sampling import (
    ATTRIBUTES,
    HELD_OUT_SEEDS,
    TRAINING_SEEDS,
    change_attribute,
    draw_scenes,
    make_instance,
    make_scene,
    make_style,
    show_instance,
)
from conceptry.toybox.scene import NAMED_STYLES, Placed
from conceptry.toybox.vocabulary import (
    BACKGROUNDS,
    CLASSES,
    COLORS,
    DETAILS,
    PATTERNS,
    POSITION_PHRASES,
    STYLE_PHRASES,
)


def test_equal_seeds_draw_equal_pictures() -> None:
    first, second = render(draw_scenes(3, 40)), render(draw_scenes(3, 40))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, render(draw_scenes(4, 40)))


def test_a_picture_does_not_depend_on_the_batch_it_was_drawn_in() -> None:
    scenes = draw_scenes(5, 24)
    together = render(scenes)
    for index in (0, 11, 23):
        assert np.array_equal(together[index], render([scenes[index]])[0])


def test_training_never_draws_a_held_out_instance_or_style() -> None:
    assert not set(HELD_OUT_SEEDS) & {TRAINING_SEEDS.start, TRAINING_SEEDS.stop - 1}
    for scene in draw_scenes(6, 400):
        assert scene.style.seed is None or scene.style.seed in TRAINING_SEEDS
        assert all(placed.instance.seed in TRAINING_SEEDS for placed in scene.objects)
    for seed in range(100):
        scene = make_scene(seed)
        assert scene.style.seed is None or scene.style.seed in HELD_OUT_SEEDS
        assert all(placed.instance.seed in HELD_OUT_SEEDS for placed in scene.objects)


def test_captions_say_only_what_is_true_of_the_scene() -> None:
    rng = np.random.default_rng(0)
    for scene in draw_scenes(7, 600):
        says = describe(scene, rng).says
        kinds = [placed.instance.kind for placed in scene.objects]
        assert says.get("background", scene.background) == scene.background
        assert says.get("position", scene.position) == scene.position
        assert says.get("style", scene.style.name or "unusual") == (scene.style.name or "unusual")
        assert says.get("relation", scene.relation) == scene.relation
        assert sorted(says[f"class{i}"] for i in range(len(kinds))) == sorted(kinds)
        for index in range(len(kinds)):
            named = {
                key: says[f"{key}{index}"]
                for key in ("color", "second", "pattern")
                if f"{key}{index}" in says
            }
            fits = [
                all(getattr(placed.instance, key) == value for key, value in named.items())
                for placed in scene.objects
                if placed.instance.kind == says[f"class{index}"]
            ]
            assert any(fits)


def test_full_captions_name_everything_that_is_measured_and_stay_short() -> None:
    rng = np.random.default_rng(1)
    for scene in (make_scene(seed) for seed in range(300)):
        caption = describe(scene, rng, full=True)
        assert count_words(caption.text) <= MAX_WORDS
        assert BACKGROUNDS[scene.background] in caption.text
        assert all(placed.instance.color in caption.text for placed in scene.objects)
        assert scene.position is None or POSITION_PHRASES[scene.position] in caption.text
        assert scene.style.name is None or STYLE_PHRASES[scene.style.name] in caption.text


@pytest.mark.parametrize("kind", CLASSES)
def test_changing_any_one_attribute_changes_the_picture(kind: str) -> None:
    rng = np.random.default_rng(2)
    instance = replace(make_instance(kind, 12), pattern="striped")
    scene = show_instance(instance, rng)
    before = render([scene])[0].astype(int)
    for attribute in ATTRIBUTES:
        changed = change_attribute(instance, attribute, rng)
        after = render([replace(scene, objects=(replace(scene.objects[0], instance=changed),))])[0]
        assert np.abs(before - after).max() > 25, attribute


def test_every_class_has_three_details_and_named_colors_stay_apart() -> None:
    assert set(DETAILS) == set(CLASSES)
    assert all(len(rows) == 3 for rows in DETAILS.values())
    anchors = np.asarray(list(COLORS.values()))
    distances = np.abs(anchors[:, None] - anchors[None]).max(2) + np.eye(len(anchors))
    assert distances.min() > 0.2


def test_styles_change_the_whole_picture_and_unseen_ones_differ_from_each_other() -> None:
    scene = show_instance(make_instance("house", 3), np.random.default_rng(3))
    styles = [*NAMED_STYLES.values(), make_style(1), make_style(2)]
    pictures = render([replace(scene, style=style) for style in styles]).astype(float)
    for first in range(len(styles)):
        for second in range(first):
            assert np.abs(pictures[first] - pictures[second]).mean() > 5.0


def test_the_world_needs_numpy_alone() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'PIL', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from conceptry.toybox.render import render\n"
        "from conceptry.toybox.captions import describe\n"
        "from conceptry.toybox.sampling import draw_scenes\n"
        "import conceptry.toybox as toybox\n"
        "assert render(draw_scenes(0, 2)).shape == (2, 64, 64, 3) and toybox.path()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "plain"])
def test_the_color_that_is_named_is_the_one_that_covers_most_of_a_pattern(pattern: str) -> None:
    wall = replace(make_instance("house", 5), pattern=pattern, shade=(1.0, 0, 0), second_shade=(0, 0, 1.0))
    canvas = Canvas([Placed(wall, 0.5, 0.5, 0.5)], Brush.of([NAMED_STYLES["flat"]], 256), 256)
    share = float(canvas.surface()[..., 2].mean())
    assert 0.2 < share < 0.4
