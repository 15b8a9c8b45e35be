"""The pictures beside the weights: samples of the world, of the autoencoder and of the base, and training curves."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from conceptry.toybox import path
from conceptry.toybox.measures import draw, held_out_scenes
from conceptry.toybox.render import render
from conceptry.toybox.roundtrip import round_trip

PROMPTS: Final = (
    "a photo of a red creature in the center on the beach",
    "a photo of a blue striped creature on the left in the desert",
    "a photo of a yellow house in the snow",
    "a picture of a pink flower in space",
    "a green cup on the right in a room in ink style",
    "an orange ball on a road",
    "a purple star at night in watercolor style",
    "a teal fish in the ocean",
    "a white car in the city",
    "a red ball to the left of a blue cup in a meadow",
    "a green house above a pink fish on a stage",
    "a photo of a creature",
)
_COLUMNS: Final = 12
_GAP: Final = 2
_CURVES: Final = (("autoencoder", "psnr"), ("text", "right"), ("unet", "loss"), ("scorer", "class"))


def tile(pictures: NDArray[np.uint8], columns: int = _COLUMNS, *, scale: int = 2) -> Image.Image:
    """The pictures (n, h, w, 3) row by row on white, each pixel ``scale`` pixels wide."""
    size = pictures.shape[1] + _GAP
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * size, columns * size, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * size, (index % columns) * size
        canvas[top : top + size - _GAP, left : left + size - _GAP] = picture
    image = Image.fromarray(canvas)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def sample_sheet(folder: Path) -> Image.Image:
    """Two rows of renders, the same through the autoencoder, then four pictures of each prompt."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    real = render(held_out_scenes(_COLUMNS))
    made = draw(pipeline, [prompt for prompt in PROMPTS for _ in range(4)])
    return tile(np.concatenate([real, round_trip(pipeline.vae, real), made]))


def _read_curve(file: Path, column: str) -> list[tuple[float, float]]:
    with file.open(newline="") as stream:
        return [(float(row["seconds"]), float(row[column])) for row in csv.DictReader(stream)]


def _plot(
    canvas: ImageDraw.ImageDraw, points: list[tuple[float, float]], frame: tuple[int, int, int, int]
) -> None:
    left, top, right, bottom = frame
    canvas.rectangle(frame, outline=(120, 120, 120))
    values = [value for _, value in points]
    low, high, longest = min(values), max(values), points[-1][0]
    line = [
        (
            left + (right - left) * seconds / longest,
            bottom - (bottom - top) * (value - low) / (high - low or 1.0),
        )
        for seconds, value in points
    ]
    canvas.line(line, fill=(30, 80, 200), width=2)
    canvas.text((left + 4, top + 2), f"{high:.3g}", fill=(60, 60, 60))
    canvas.text((left + 4, bottom - 14), f"{low:.3g}", fill=(60, 60, 60))
    canvas.text((right - 60, bottom - 14), f"{longest:.0f} s", fill=(60, 60, 60))


def curve_sheet(runs: Path) -> Image.Image:
    """The training curves side by side: seconds to the right, the recipe's own measure upwards."""
    image = Image.new("RGB", (320 * len(_CURVES), 240), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    for index, (name, column) in enumerate(_CURVES):
        file = runs / name / "curve.csv"
        points = _read_curve(file, column) if file.is_file() else []
        if len(points) > 1:
            canvas.text((320 * index + 12, 6), f"{name}: {column}", fill=(0, 0, 0))
            _plot(canvas, points, (320 * index + 10, 24, 320 * index + 308, 228))
    return image


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m conceptry.toybox.sheets``: write ``samples.png`` and ``curves.png`` beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m conceptry.toybox.sheets", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path(".runs/toybox"))
    parser.add_argument("--base", type=Path, default=path())
    options = parser.parse_args(arguments)
    curve_sheet(options.runs).save(options.base / "curves.png")
    sample_sheet(options.base).save(options.base / "samples.png")


if __name__ == "__main__":
    main()
