"""Example folders: what `concepts toybox render` leaves for a training command to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from conceptry.errors import NotFoundError, UsageError
from conceptry.toybox import render_instance, render_style


def test_an_instance_folder_holds_pictures_captions_and_the_truth(tmp_path: Path) -> None:
    paths = render_instance("creature", 7, 4, tmp_path / "imp")
    lines = [json.loads(line) for line in (tmp_path / "imp" / "captions.jsonl").read_text().splitlines()]
    truth = json.loads((tmp_path / "imp" / "instance.json").read_text())
    assert [path.name for path in paths] == [line["file_name"] for line in lines]
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))
    assert all(
        "creature" in line["text"] and truth["attributes"]["color"] not in line["text"] for line in lines
    )
    assert (truth["kind"], truth["class"], truth["seed"]) == ("instance", "creature", 7)


def test_a_style_folder_shows_different_things_in_one_style(tmp_path: Path) -> None:
    render_style(3, 6, tmp_path)
    lines = [json.loads(line)["text"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    truth = json.loads((tmp_path / "instance.json").read_text())
    assert len(set(lines)) > 3
    assert (truth["kind"], truth["seed"]) == ("style", 3)


def test_rendering_twice_gives_the_same_files(tmp_path: Path) -> None:
    render_instance("cup", 5, 3, tmp_path / "a")
    render_instance("cup", 5, 3, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_unknown_classes_training_seeds_and_empty_orders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="dragon"):
        render_instance("dragon", 1, 1, tmp_path / "out")
    with pytest.raises(UsageError, match="1000000"):
        render_instance("cup", 1_000_000, 1, tmp_path / "out")
    with pytest.raises(UsageError, match="-1"):
        render_style(-1, 1, tmp_path / "out")
    with pytest.raises(UsageError, match="0 pictures"):
        render_style(1, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
