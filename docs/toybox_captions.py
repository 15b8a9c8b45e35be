"""Writes ``trainer/data/captions-toybox.txt.gz``: captions of the toy world, for the covariance of the toybox base.

The trainer may not import the toybox, so the list is data. ``python docs/toybox_captions.py`` writes the same bytes
each time; its scenes are drawn from training seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from conceptry.toybox.captions import describe
from conceptry.toybox.sampling import TRAINING_SEEDS, draw_scenes
from conceptry.trainer.caption_grammar import pack_lines

SCENES: Final = 12_000
OUT: Final = Path(__file__).parent.parent / "trainer" / "data" / "captions-toybox.txt.gz"


def write_lines() -> list[str]:
    """Returns the distinct captions of fixed scenes, in the order in which they were drawn."""
    chance = np.random.default_rng(TRAINING_SEEDS.start)
    scenes = draw_scenes(TRAINING_SEEDS.start, SCENES)
    return list(dict.fromkeys(describe(scene, chance).text for scene in scenes))


def main() -> None:
    """Writes the file and says how many lines it has."""
    lines = write_lines()
    OUT.write_bytes(pack_lines(lines))
    print(f"{len(lines)} captions in {OUT.name}")


if __name__ == "__main__":
    main()
