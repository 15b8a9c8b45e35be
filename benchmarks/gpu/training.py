"""Speed and memory of training on one accelerator: SD1.5 at 512 px and SDXL at 1024 px, random weights.

``python benchmarks/gpu/training.py [OUT.json] [--small] [--steps N]``; with ``--small`` narrow networks, on a processor
too. Pictures a second of each method by batch, the share of the measured ceiling of matrix products, the peak of memory
beside what the doctor said, the same with settings that spare memory or compile, and concepts an hour, alone and 16
together. Needs the repository's tests beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from measuring import describe_machine

from conceptry.errors import ConceptryError
from conceptry.trainer.arithmetic import measure_ceiling
from conceptry.trainer.doctor import plan_run
from conceptry.trainer.events import ignore
from conceptry.trainer.jobs import TrainJob, make_job
from conceptry.trainer.loop import run_loop
from conceptry.trainer.many import ManyOptions, train_many
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import OpenBase, prepare_run, read_pictures
from tests.fakes.pipelines import make_pipeline
from tests.fakes.real import make_narrow_sdxl, make_sd15
from tests.trainer.real_shapes import SDXL_UNET

CAPTIONS: Final = "\n".join(
    f"a photo of a {color} {thing}" for color in ("red", "blue") for thing in ("cat", "dog")
)
TERA: Final = 1e12
SAMPLE_TFLOP: Final[Mapping[str, float]] = {"sd15": 1.606, "sdxl": 13.52}
"""Forward and the gradient of the inputs of one sample, counted layer by layer (research/trainers.md, 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One base to train on, and the batches to try."""

    name: str
    make: Callable[[], Any]
    batches: tuple[int, ...]


def make_sdxl() -> Any:
    """Returns SDXL with its real denoiser; the text encoders stay narrow, a projection brings them to its width."""
    from diffusers import UNet2DConditionModel

    pipeline = make_narrow_sdxl()
    config = {**SDXL_UNET, "cross_attention_dim": 256, "projection_class_embeddings_input_dim": 6 * 256 + 160}
    pipeline.unet = UNet2DConditionModel(**config).eval()
    return pipeline


SHAPES: Final = (
    Shape(name="sd15", make=make_sd15, batches=(1, 4, 16, 32)),
    Shape(name="sdxl", make=make_sdxl, batches=(1, 4, 8)),
)
SMALL: Final = (Shape(name="tiny", make=make_pipeline, batches=(1, 4)),)
METHODS: Final = ("textual_inversion", "perfusion", "lora")
ROWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "plain": {},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "int8": {"base_precision": "int8"},
    "offload": {"offload_base": True},
    "int8 and offload": {"base_precision": "int8", "offload_base": True},
    "compiled": {"compile": True},
    "cuda graphs": {"compile": "cuda_graphs"},
}
"""Settings that trade memory for time, or minutes of compiling for speed; measured with LoRA."""


def paint(folder: Path) -> Path:
    """Returns a folder of five pictures of noise, and captions for the covariance."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(random.integers(0, 255, (512, 512, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder.parent / "captions.list").write_text(CAPTIONS, encoding="utf-8")
    return folder


def write_job(
    method: str, images: Path, batch_size: int, steps: int, *, number: int = 0, more: Mapping[str, Any] = {}
) -> TrainJob:
    """Returns a job whose loop does nothing but steps, with ``more`` settings."""
    settings = {"batch_size": batch_size, "keep": "last", "checkpoint_every_steps": 1_000_000, **more}
    return make_job(
        {
            "method": method,
            "images": images,
            "name": f"bench/imp-{number}",
            "placeholder": "<imp>",
            "superclass": "creature" if method != "perfusion" else "cat",
            "captions": images.parent / "captions.list",
            "seed": number,
            "steps": steps,
            "settings": settings,
        }
    )


def wait(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_loop(pipeline: Any, job: TrainJob, folder: Path) -> dict[str, Any]:
    """Returns pictures a second of the loop after some steps of warming up, the peak and the doctor's word."""
    device = next(pipeline.unet.parameters()).device
    found: dict[str, Any] = {}
    for steps in (3, job.steps or 3):
        one = job.model_copy(update={"steps": steps})
        with prepared(pipeline):
            stage = prepare_run(
                one,
                read_pictures(one, ignore),
                OpenBase(pipeline=pipeline),
                folder=folder / "work",
                cache_folder=folder / "cache",
                on_event=ignore,
            )
            plan = plan_run(stage.context, stage.learner, with_time=False)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            loop = run_loop(stage.context, stage.learner, stage.checkpoints, resume=False)
            wait(device)
        batch_size = stage.context.job.settings.batch_size
        found = {
            "pictures_a_second": steps * batch_size / loop.seconds,
            "predicted_peak_bytes": plan.peak_bytes,
            "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }
    return found


def measure_shape(shape: Shape, device: torch.device, ceiling: float, steps: int) -> list[dict[str, Any]]:
    """Returns a row for each method and batch."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        images = paint(Path(place) / "pictures")
        pipeline = shape.make().to(device)
        for method in METHODS:
            for batch_size in shape.batches:
                try:
                    found = time_loop(pipeline, write_job(method, images, batch_size, steps), Path(place))
                except torch.OutOfMemoryError as error:
                    found = {"error": str(error).splitlines()[0]}
                row = {"shape": shape.name, "method": method, "batch_size": batch_size, **found}
                cost = SAMPLE_TFLOP.get(shape.name)
                if cost and "pictures_a_second" in found:
                    row["share_of_ceiling"] = found["pictures_a_second"] * cost / ceiling
                print(row, flush=True)
                rows.append(row)
    return rows


def measure_rows(shape: Shape, device: torch.device, steps: int) -> list[dict[str, Any]]:
    """Returns pictures a second and the peak of memory with each of ``ROWS``."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        images = paint(Path(place) / "pictures")
        pipeline = shape.make().to(device)
        for name, more in ROWS.items():
            job = write_job("lora", images, shape.batches[1], steps, more=more)
            try:
                found = time_loop(pipeline, job, Path(place))
            except (torch.OutOfMemoryError, ConceptryError) as error:
                found = {"error": str(error).splitlines()[0]}
            rows.append({"shape": shape.name, "row": name, "batch_size": shape.batches[1], **found})
            print(rows[-1], flush=True)
    return rows


def count_concepts(shape: Shape, device: torch.device, concepts: int, steps: int) -> list[dict[str, Any]]:
    """Returns concepts an hour, alone and together, with the base loaded."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        images = paint(Path(place) / "pictures")
        pipeline = shape.make().to(device)
        for method in METHODS:
            for together in (1, concepts):
                jobs = [write_job(method, images, 4, steps, number=number) for number in range(concepts)]
                folder = Path(place) / f"{method}-{together}"
                started = time.perf_counter()
                outcomes = train_many(
                    jobs,
                    ManyOptions(
                        workdir=folder, cache_folder=Path(place) / "cache", base=pipeline, together=together
                    ),
                )
                seconds = time.perf_counter() - started
                good = sum(outcome.error is None for outcome in outcomes)
                row = {
                    "shape": shape.name,
                    "method": method,
                    "together": together,
                    "steps": steps,
                    "finished": good,
                    "concepts_an_hour": 3600 * good / seconds,
                }
                print(row, flush=True)
                rows.append(row)
    return rows


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--concepts", type=int, default=16)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.small:
        parser.error("there is no accelerator here; --small runs narrow networks on the processor")
    ceiling = measure_ceiling(device, torch.bfloat16 if device.type == "cuda" else torch.float32) / TERA
    print(f"{device}: {ceiling:.2f} TFLOP/s of matrix products")
    shapes = SMALL if given.small else SHAPES
    document = {
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor",
        "ceiling_tflops": ceiling,
        "loop": [row for shape in shapes for row in measure_shape(shape, device, ceiling, given.steps)],
        "rows": [row for shape in shapes for row in measure_rows(shape, device, given.steps)],
        "concepts": count_concepts(shapes[0], device, given.concepts, given.steps),
    }
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
