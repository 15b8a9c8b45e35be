"""What several subjects in one picture could score at most: the scorer on renders, and the base with plain words.

``python benchmarks/ceilings.py [OUT.json] [--pictures N]``: one, two and three of the benchmark's subjects, for the
groups and prompts of ``evaluation/together.toml``. ``renders``: the very subjects drawn by the world itself and put
through the base's autoencoder; the share in which the scorer finds each of them once is the most that any concept could
reach. ``classes, rendered``: the same pictures, read by class. ``classes, drawn``: what the base makes of the prompts
with plain words; the share in which the scorer reads exactly the classes that were asked, and how many of them it
reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from measuring import describe_machine

from conceptry import toybox
from conceptry.base_locations import resolve_base
from conceptry.bases import FamilyId
from conceptry.composer import load_pipeline
from conceptry.evaluation.bench_multi import fill, load_multi_suite
from conceptry.evaluation.examination import Drawing, draw_pictures
from conceptry.evaluation.presence import Identity, find_members
from conceptry.toybox.examples import held_out_instance, instance_scenes
from conceptry.toybox.render import render
from conceptry.toybox.roundtrip import round_trip
from conceptry.toybox.sampling import place_one, place_three, place_two
from conceptry.toybox.scene import NAMED_STYLES, Instance, Scene
from conceptry.toybox.scorer import Reading, Scorer

REFERENCES: Final = 32
BACKGROUNDS: Final = ("beach", "snow", "stage", "night")
FIRST_SEED: Final = 9_000


def list_groups(count: int) -> list[list[Instance]]:
    """Returns the subjects of each group of so many; single ones are those that occur in any group."""
    found = [[one for one in group if not one.startswith("style-")] for group in load_multi_suite().groups]
    if count == 1:
        groups = [[one] for one in dict.fromkeys(one for group in found for one in group)]
    else:
        groups = [group for group in found if len(group) == count]
    return [[make_subject(one) for one in group] for group in groups]


def make_subject(id: str) -> Instance:
    """Returns the held-out instance that a subject of the benchmark is."""
    kind, _, seed = id.partition("-")
    return held_out_instance(kind, int(seed))


def place(things: Sequence[Instance], rng: np.random.Generator, number: int) -> Scene:
    """Returns the subjects in one scene, where the world puts so many."""
    if len(things) == 1:
        placed: Any = (place_one(things[0], "center", rng),)
    elif len(things) == 2:
        placed = place_two(things[0], things[1], ("left", "right", "above")[number % 3], rng)
    else:
        placed = place_three((things[0], things[1], things[2]), rng)
    return Scene(placed, BACKGROUNDS[number % len(BACKGROUNDS)], number, NAMED_STYLES["flat"])


def know(scorer: Scorer, pipeline: Any, thing: Instance) -> Identity:
    """Returns a subject as the benchmark knows it: from references, between what is it and what is of its class."""
    prototype = scorer.prototype(render(instance_scenes(thing, REFERENCES)))
    own = round_trip(pipeline.vae, render(instance_scenes(thing, REFERENCES, part=1)))
    texts = [
        text.format(thing.kind) for text in ("a photo of a {} in the forest", "a picture of a {} at sunset")
    ]
    other = draw_pictures(
        pipeline, texts * 2, FIRST_SEED, Drawing.of_family(FamilyId("toybox")), lambda _: None
    )
    middle = scorer.identity(own, prototype).mean() + scorer.identity(other, prototype).mean()
    return Identity(prototype=prototype, threshold=float(middle) / 2, kind=thing.kind, color=thing.color)


def count_classes(readings: Sequence[Reading], groups: Sequence[Sequence[Instance]]) -> dict[str, float]:
    """Returns how often exactly the classes that were asked are read, and which share of them is."""
    exact, there = [], []
    for reading, things in zip(readings, groups, strict=True):
        left = [one.kind for one in reading.objects]
        exact.append(sorted(left) == sorted(thing.kind for thing in things))
        hits = 0
        for thing in things:
            if thing.kind in left:
                left.remove(thing.kind)
                hits += 1
        there.append(hits / len(things))
    return {"joint": float(np.mean(exact)), "recall": float(np.mean(there)), "pictures": len(exact)}


def measure(
    count: int, pictures: int, scorer: Scorer, pipeline: Any, known: dict[Any, Identity]
) -> dict[str, Any]:
    """Returns the ceilings of so many subjects."""
    rng, groups = np.random.default_rng(0), list_groups(count)
    asked = [groups[number % len(groups)] for number in range(pictures)]
    for things in groups:
        for thing in things:
            if repr(thing) not in known:
                known[repr(thing)] = know(scorer, pipeline, thing)
    scenes = [place(things, rng, number) for number, things in enumerate(asked)]
    readings = scorer.read(round_trip(pipeline.vae, render(scenes)))
    present = [
        find_members(reading, [known[repr(thing)] for thing in things])
        for reading, things in zip(readings, asked, strict=True)
    ]
    print(f"{count} subjects: drawing {pictures} pictures", file=sys.stderr, flush=True)
    prompts = [text for text, _ in load_multi_suite().list_prompts(count)]
    texts = [
        fill(prompts[number // len(groups) % len(prompts)], [thing.kind for thing in things], has_style=False)
        for number, things in enumerate(asked)
    ]
    drawn = draw_pictures(pipeline, texts, FIRST_SEED, Drawing.of_family(FamilyId("toybox")), lambda _: None)
    return {
        "subjects": count,
        "groups": len(groups),
        "renders": {
            "joint": float(np.mean([one.is_joint for one in present])),
            "recall": float(np.mean([[found is not None for found in one.found] for one in present])),
            "pictures": len(present),
        },
        "classes, rendered": count_classes(readings, asked),
        "classes, drawn": count_classes(scorer.read(drawn), asked),
    }


def main() -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=36)
    given = parser.parse_args()
    torch.set_num_threads(1)
    scorer, pipeline = Scorer.load(), load_pipeline(resolve_base(str(toybox.path()), {}))
    rows, known = [], dict[Any, Identity]()
    for count in (1, 2, 3):
        row = measure(count, given.pictures, scorer, pipeline, known)
        rows.append(row)
        for name in ("renders", "classes, rendered", "classes, drawn"):
            found = row[name]
            print(
                f"{count} subjects, {row['groups']} groups, {found['pictures']} pictures: {name}: joint "
                f"{found['joint']:.2f}, recall {found['recall']:.2f}",
                flush=True,
            )
    if given.out is not None:
        document = {"machine": describe_machine(), "rows": rows}
        given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
