"""``python -m conceptry.toybox.evaluate``: the figures of the bundled base model and its scorer, on held-out seeds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from conceptry.toybox import GUIDANCE_SCALE, INFERENCE_STEPS, path
from conceptry.toybox.measures import (
    measure_autoencoder,
    measure_base,
    measure_identity,
    measure_scorer,
    measure_sensitivity,
)
from conceptry.toybox.scorer import Scorer
from conceptry.toybox.training import pick_device


def evaluate(folder: Path, *, captions: int, device: str = "auto") -> dict[str, Any]:
    """Every figure; ``captions`` is the number of held-out captions (512), the other counts follow it."""
    place = pick_device(device)
    pipeline = StableDiffusionPipeline.from_pretrained(folder).to(place)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    scorer = Scorer.load(folder / "scorer", place)
    read = measure_scorer(scorer, 2 * captions)
    read |= measure_identity(scorer, groups=max(8, captions // 16))
    return {
        "scorer": {**read, "sensitivity": measure_sensitivity(scorer, instances=max(8, captions // 16))},
        "autoencoder": measure_autoencoder(pipeline.vae, captions),
        "base": measure_base(pipeline, scorer, captions),
        "protocol": {"captions": captions, "guidance_scale": GUIDANCE_SCALE, "steps": INFERENCE_STEPS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures, as JSON or one a line."""
    parser = argparse.ArgumentParser(prog="python -m conceptry.toybox.evaluate", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--base", type=Path, default=path(), help="folder of the base model")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    figures = evaluate(options.base, captions=options.captions, device=options.device)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for part, values in figures.items():
        for name, value in values.items():
            print(f"{part}.{name}: {value}")


if __name__ == "__main__":
    main()
