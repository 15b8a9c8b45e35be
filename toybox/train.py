"""``python -m conceptry.toybox.train RECIPE``: trains one part of the bundled base model; resumable, seeded."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from conceptry.toybox.training import Settings

RECIPES: Final = MappingProxyType(
    {
        "autoencoder": ("conceptry.toybox.autoencoder", "train_autoencoder"),
        "text": ("conceptry.toybox.text", "train_text"),
        "unet": ("conceptry.toybox.diffusion", "train_unet"),
        "scorer": ("conceptry.toybox.scorer_training", "train_scorer"),
    }
)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conceptry.toybox.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the recipe that the command line names."""
    options = _arguments(arguments)
    if options.seconds is None and options.steps is None:
        options.seconds = 3600.0
    module, function = RECIPES[options.recipe]
    values = {name: value for name, value in vars(options).items() if name != "recipe"}
    getattr(importlib.import_module(module), function)(Settings(**values))


if __name__ == "__main__":
    main()
