"""Claim: LoRA jobs of one batch share the base's layers and the work beside them; in processor seconds of a step.

``python benchmarks/together.py [OUT.json] [--method M] [--concepts N ...] [--batches N ...] [--steps N]``

On the toybox with the method's preset. Every figure is the median processor time of a step on one thread: setting up,
encoding and checking are the same for both ways.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from measuring import describe_machine

from conceptry import toybox
from conceptry.toybox.examples import render_instance
from conceptry.trainer import many
from conceptry.trainer.events import TrainEvent, ignore
from conceptry.trainer.jobs import make_job
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import OpenBase, Stage, prepare_run, read_pictures


def make_stages(
    base: Any, folder: Path, options: argparse.Namespace, *, batch_size: int, count: int, marks: list[float]
) -> dict[int, Stage]:
    """Returns a stage for each concept, with pictures and a seed of its own; ``marks`` takes the time of each step."""

    def note(event: TrainEvent) -> None:
        if event.kind == "step":
            marks.append(time.process_time())

    stages: dict[int, Stage] = {}
    for number in range(count):
        job = make_job(
            {
                "method": options.method,
                "images": folder / f"pictures-{number}",
                "name": f"bench/imp-{number}",
                "placeholder": "<imp>",
                "superclass": "creature",
                "seed": number,
                "steps": options.steps + 1,
                "precision": "float32",
                "settings": {"batch_size": batch_size, "keep": "last", "checkpoint_every_steps": 1_000_000},
            }
        )
        stages[number] = prepare_run(
            job,
            read_pictures(job, ignore),
            OpenBase(pipeline=base),
            folder=folder / f"work-{number}",
            cache_folder=folder / "cache",
            on_event=ignore if number else note,
        )
    return stages


def measure(base: Any, folder: Path, options: argparse.Namespace, batch_size: int) -> dict[str, float]:
    """Returns the processor seconds of a step of one concept alone, and of each number of them together."""
    found = {}
    for count in (1, *options.concepts):
        marks: list[float] = []
        stages = make_stages(base, folder, options, batch_size=batch_size, count=count, marks=marks)
        many._run_at_once(stages, resume=False)
        found[str(count)] = statistics.median(after - before for before, after in pairwise(marks))
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--concepts", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(max(options.concepts)):
            render_instance("creature", 900 + number, 4, folder / f"pictures-{number}")
        base = StableDiffusionPipeline.from_pretrained(toybox.path())
        base.set_progress_bar_config(disable=True)
        with prepared(base):
            for batch_size in options.batches:
                seconds = measure(base, folder, options, batch_size)
                for count in options.concepts:
                    ratio = count * seconds["1"] / seconds[str(count)]
                    rows.append({"batch_size": batch_size, "concepts": count, "ratio": ratio, **seconds})
                    print(
                        f"batch {batch_size:3}, {count:3} concepts: {seconds[str(count)]:.3f} s a step together, "
                        f"{count} x {seconds['1']:.3f} s apart: {ratio:.2f} times",
                        flush=True,
                    )
    if options.out is not None:
        document = {"machine": describe_machine(), "method": options.method, "rows": rows}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
