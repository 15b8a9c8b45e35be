"""Claim: on one processor, the same identity in a third of the plain loop's time; 16 together faster than apart.

``python benchmarks/training.py [OUT.json] [--methods M ...] [--samples N] [--concepts N] [--batches N ...] [--quick]``

On the toybox. Each loop trains with the same optimiser and rate at batches of 1, 4 and 16 for up to ``--samples``
samples; at four marks the concept is saved as a package and examined. The best of each loop is its shortest time to
the identity that both reach within 0.03. Setting up counts: the pictures are encoded inside our time. ``together``
trains ``--concepts`` jobs by ``train_many`` and one after another in one process, with the base loaded for both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from measuring import describe_machine
from plain_loop import Marked, PlainRun, adapt_plainly, invert_plainly
from safetensors.torch import load_file

from conceptry import toybox
from conceptry.bases import FamilyId
from conceptry.concepts import Concept
from conceptry.evaluation.concepts import ExamOptions, evaluate_concept
from conceptry.toybox.examples import render_instance
from conceptry.trainer.events import ignore
from conceptry.trainer.jobs import TrainJob, make_job
from conceptry.trainer.loop import LoopResult
from conceptry.trainer.many import ManyOptions, train_many
from conceptry.trainer.preparation import prepared
from conceptry.trainer.settings import resolve_settings
from conceptry.trainer.staging import OpenBase, finish_run, prepare_run, read_pictures
from conceptry.trainer.training import train

BATCHES = (1, 4, 16)
SHARES = (0.125, 0.25, 0.5, 1.0)
NEAR = 0.03
SUPERCLASS = "creature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One concept at one mark: who trained it, how long that took, and how like the instance it is."""

    loop: str
    method: str
    batch_size: int
    samples: int
    seconds: float
    identity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured, and where."""

    images: Path
    folder: Path
    samples: int
    shares: tuple[float, ...] = SHARES
    exam: ExamOptions = field(default_factory=lambda: ExamOptions(pictures_per_prompt=4, thorough=False))


def open_base() -> Any:
    """Returns a fresh toybox: the plain loop leaves its own changed."""
    pipeline = StableDiffusionPipeline.from_pretrained(toybox.path())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(
    bench: Bench, method: str, batch_size: int, samples: int, name: str = "bench/imp", **more: Any
) -> TrainJob:
    """Returns our job: constant rate, the last values kept, so that a shorter run is the beginning of a longer one."""
    settings = {"batch_size": batch_size, "schedule": "constant", "warmup_steps": 0, "keep": "last"}
    return make_job(
        {
            "method": method,
            "images": bench.images,
            "name": name,
            "placeholder": "<imp>",
            "superclass": SUPERCLASS,
            "steps": max(1, samples // batch_size),
            "settings": settings,
            **more,
        }
    )


def examine(bench: Bench, concept: Concept, pipeline: Any) -> float:
    """Returns the normalised identity."""
    score = evaluate_concept(concept, pipeline, bench.exam).identity
    return (score.score - score.floor) / max(score.ceiling - score.floor, 1e-6)


def run_ours(bench: Bench, method: str, batch_size: int) -> list[Point]:
    """Returns our points: each mark is a run of its own, timed with all that belongs to it."""
    points = []
    for share in bench.shares:
        pipeline, samples = open_base(), int(bench.samples * share)
        with tempfile.TemporaryDirectory(dir=bench.folder) as work:
            started = time.perf_counter()
            result = train(
                make(bench, method, batch_size, samples),
                base=pipeline,
                workdir=Path(work) / "work",
                cache_folder=Path(work) / "cache",
            )
            seconds = time.perf_counter() - started
            identity = examine(bench, result.concept, pipeline)
        points.append(
            Point(
                loop="ours",
                method=method,
                batch_size=batch_size,
                samples=samples,
                seconds=seconds,
                identity=identity,
            )
        )
        print_point(points[-1])
    return points


def run_plain(bench: Bench, method: str, batch_size: int) -> list[Point]:
    """Returns the plain loop's points; its values are put into our package, so that both are examined alike."""
    job = make(bench, method, batch_size, bench.samples)
    settings = resolve_settings(method, FamilyId("toybox"), {})
    base = open_base()
    with prepared(base):
        stage = stage_job(bench, job, base)
        prompts = sorted({pair.concept for row in stage.context.prompts for pair in row})
        paths = [name.split("/")[1] for name in stage.learner.parameters if name.endswith("/down")]
    (rate,) = settings.learning_rates.values()
    run = PlainRun(
        pictures=sorted(bench.images.glob("*.png")),
        prompts=prompts,
        batch_size=batch_size,
        learning_rate=rate,
        marks=[int(bench.samples * share) for share in bench.shares],
        side_pixels=64,
    )
    plain = open_base()
    for part in (plain.unet, plain.vae, plain.text_encoder):
        part.requires_grad_(False)
    if method == "lora":
        marks = adapt_plainly(plain, run, rank=settings.rank, paths=paths)
    else:
        marks = invert_plainly(plain, run, placeholder="<imp>", word=SUPERCLASS, vectors=settings.vectors)
    return [_judge_plain(bench, job, mark) for mark in marks]


def stage_job(bench: Bench, job: TrainJob, base: Any) -> Any:
    """Returns a job ready for the loop."""
    return prepare_run(
        job,
        read_pictures(job, ignore),
        OpenBase(pipeline=base),
        folder=bench.folder / "plain",
        cache_folder=bench.folder / "cache",
        on_event=ignore,
    )


def _judge_plain(bench: Bench, job: TrainJob, mark: Marked) -> Point:
    base = open_base()
    with prepared(base):
        stage = stage_job(bench, job, base)
        with torch.no_grad():
            for name, parameter in stage.learner.parameters.items():
                key = "rows" if "rows" in mark.values else name.partition("/")[2]
                parameter.copy_(mark.values[key].reshape(parameter.shape))
        concept = finish_run(stage, LoopResult(1.0, 0.5, steps=1, seconds=mark.seconds)).concept
    point = Point(
        loop="plain",
        method=job.method,
        batch_size=int(str(job.settings["batch_size"])),
        samples=mark.samples,
        seconds=mark.seconds,
        identity=examine(bench, concept, base),
    )
    print_point(point)
    return point


def print_point(point: Point) -> None:
    """Prints one line of the table."""
    print(
        f"{point.loop:6}{point.method:20}batch {point.batch_size:3}{point.samples:8} samples"
        f"{point.seconds:9.1f} s{point.identity:8.3f}",
        flush=True,
    )


def compare(points: Sequence[Point]) -> dict[str, Any]:
    """Returns each loop's shortest time to the identity that both reach, and the ratio."""
    best = {loop: max(point.identity for point in points if point.loop == loop) for loop in ("ours", "plain")}
    target = min(best.values()) - NEAR
    times = {
        loop: min(point.seconds for point in points if point.loop == loop and point.identity >= target)
        for loop in best
    }
    return {
        "target_identity": target,
        "best_identity": best,
        "seconds": times,
        "concepts_an_hour": {loop: 3600 / seconds for loop, seconds in times.items()},
        "ratio": times["plain"] / times["ours"],
    }


def time_together(bench: Bench, method: str, concepts: int, samples: int) -> dict[str, Any]:
    """Returns the seconds of many jobs together and of the same one after another, and how far their values differ."""
    seconds, cpu_seconds = {}, {}
    folders: dict[str, list[Path]] = {}
    with tempfile.TemporaryDirectory(dir=bench.folder) as work:
        for name, together in (("apart", 1), ("together", concepts)):
            jobs = [
                make(bench, method, 16, samples, name=f"bench/imp-{number}", seed=number)
                for number in range(concepts)
            ]
            place = Path(work) / name
            base = open_base()
            started, cpu_started = time.perf_counter(), time.process_time()
            outcomes = train_many(
                jobs, ManyOptions(workdir=place, cache_folder=place / "cache", base=base, together=together)
            )
            seconds[name] = time.perf_counter() - started
            cpu_seconds[name] = (
                time.process_time() - cpu_started
            )  # what a machine without other work would take
            failed = [outcome.error for outcome in outcomes if outcome.error is not None]
            if failed:
                raise RuntimeError(str(failed[0]))
            folders[name] = [outcome.result.folder for outcome in outcomes if outcome.result is not None]
        differences = [differ(*pair) for pair in zip(folders["apart"], folders["together"], strict=True)]
    ratio = seconds["apart"] / seconds["together"]
    print(
        f"{method}: {concepts} apart {seconds['apart']:.1f} s, together {seconds['together']:.1f} s, {ratio:.2f}x; "
        f"of the processor {cpu_seconds['apart']:.1f} s and {cpu_seconds['together']:.1f} s; "
        f"values differ by {max(differences):.1e}"
    )
    return {
        "concepts": concepts,
        "samples_each": samples,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": ratio,
        "largest_relative_difference": max(differences),
    }


def differ(folder: Path, other: Path) -> float:
    """Returns the largest difference of a tensor's values, as a share of its own largest value."""
    worst = 0.0
    for path in sorted(folder.glob("*.safetensors")):
        others = load_file(other / path.name)
        for name, value in load_file(path).items():
            largest = float((value.float() - others[name].float()).abs().max())
            worst = max(worst, largest / max(float(value.float().abs().max()), 1e-30))
    return worst


def paint(folder: Path) -> Path:
    """Returns a folder of pictures of one creature that the base never saw, with its instance beside them."""
    render_instance(SUPERCLASS, 7, 5, folder)
    return folder


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--methods", nargs="+", default=["textual_inversion", "lora"])
    parser.add_argument("--samples", type=int, default=4800)
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--concepts", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="a minute's look: too little to learn anything")
    parser.add_argument(
        "--only-together", action="store_true", help="leave out the comparison with the plain loop"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    samples = 64 if given.quick else given.samples
    document: dict[str, Any] = {"machine": describe_machine(), "quick": given.quick, "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(images=paint(Path(folder) / "pictures"), folder=Path(folder), samples=samples)
        if given.quick:
            exam = ExamOptions(pictures_per_prompt=1, thorough=False, steps=2)
            bench = replace(bench, shares=(1.0,), exam=exam)
        for method in given.methods:
            together = time_together(bench, method, given.concepts, max(32, samples // 16))
            if given.only_together:
                document["methods"][method] = {"together": together}
                continue
            points = [
                point
                for batch_size in given.batches
                for run in (run_plain, run_ours)
                for point in run(bench, method, batch_size)
            ]
            found = compare(points)
            target = found["target_identity"]
            print(f"{method}: {found['ratio']:.2f} times the concepts an hour at identity {target:.3f}")
            document["methods"][method] = {
                **found,
                "points": [{name: getattr(point, name) for name in Point.__slots__} for point in points],
                "together": together,
            }
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
