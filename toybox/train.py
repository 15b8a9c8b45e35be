"""``python -m conceptry.toybox.train RECIPE``: trains one part of the bundled base model; resumable, seeded.

``all`` trains the four parts one after the other at full size and exports them to OUT/weights: --seconds is then the
time for all of them together, and the same command takes up an interrupted training where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from conceptry.toybox.starting import unpack
from conceptry.toybox.training import Settings


class Part(NamedTuple):
    """One row of the full training: its share of the time, and sizes for a GPU."""

    recipe: str
    share: float
    batch: int
    pictures: int | None


FULL: Final = (
    Part("autoencoder", 0.25, 64, 60_000),
    Part("decoder", 0.05, 64, 60_000),
    Part("text", 0.04, 256, 60_000),
    Part("unet", 0.46, 256, 300_000),
    Part("scorer", 0.20, 48, None),
)
RECIPES: Final = MappingProxyType(
    {
        "autoencoder": ("conceptry.toybox.autoencoder", "train_autoencoder"),
        "decoder": ("conceptry.toybox.autoencoder", "train_decoder"),
        "text": ("conceptry.toybox.text", "train_text"),
        "unet": ("conceptry.toybox.diffusion", "train_unet"),
        "scorer": ("conceptry.toybox.scorer_training", "train_scorer"),
    }
)


def train(recipe: str, settings: Settings) -> None:
    """Run one recipe until its budget is used."""
    module, function = RECIPES[recipe]
    getattr(importlib.import_module(module), function)(settings)


def _is_done(folder: Path, seconds: float) -> bool:
    state = folder / "state.json"
    return state.is_file() and float(json.loads(state.read_text())["seconds"]) >= seconds


def train_all(settings: Settings) -> None:
    """Run every recipe of ``FULL`` that is not done yet, then write the package's folder to ``OUT/weights``."""
    total = settings.seconds or 3600.0
    for part in FULL:
        seconds = total * part.share
        if not _is_done(settings.out / part.recipe, seconds):
            batch, pictures = settings.batch or part.batch, settings.pictures or part.pictures
            train(part.recipe, replace(settings, seconds=seconds, batch=batch, pictures=pictures))
    exporting = importlib.import_module("conceptry.toybox.pipeline")
    exporting.export(settings.out, settings.out / "weights", parts=("pipeline", "scorer"))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conceptry.toybox.train", description=__doc__)
    parser.add_argument("recipe", choices=[*RECIPES, "all"])
    parser.add_argument(
        "--out", type=Path, default=Path(".runs/toybox"), help="folder of checkpoints and curves"
    )
    parser.add_argument(
        "--seconds", type=float, help="stop after this much training time, earlier runs included"
    )
    parser.add_argument("--steps", type=int, help="stop after this many steps, earlier runs included")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--pictures", type=int, help="how many training pictures to render")
    parser.add_argument(
        "--compiled", action="store_true", help="compile the network first (worth it on GPUs)"
    )
    parser.add_argument(
        "--start", type=Path, help="set out from the weights in this folder, as toybox/weights is laid out"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the recipe that the command line names."""
    options = _arguments(arguments)
    if options.seconds is None and options.steps is None:
        options.seconds = 3600.0
    values = {name: value for name, value in vars(options).items() if name != "recipe"}
    if options.start:
        unpack(options.start, options.out)
    if options.recipe == "all":
        train_all(Settings(**values))
    else:
        train(options.recipe, Settings(**values))


if __name__ == "__main__":
    main()
