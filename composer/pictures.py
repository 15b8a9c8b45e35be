"""Pictures that can be drawn again: what decided them, and the settings under which sums are rounded the same way."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from conceptry.composer.emphasis import emphasized, join_pieces
from conceptry.composer.fingerprints import fingerprint_component, identify_pipeline
from conceptry.composer.generate import BLANK, Canvas, generate
from conceptry.composer.pipelines import Pipeline, get_device, list_components
from conceptry.composer.prompts import parse_weights
from conceptry.composer.slots import DENOISERS
from conceptry.digests import Digest
from conceptry.errors import InvalidFileError, UsageError
from conceptry.formats.picture_notes import format_parameters
from conceptry.formats.picture_records import TEXT_KEY, BaseRecord, Machine, PictureRecord, Sampler

CLOSE_MAX_LEVELS: Final = 8
CLOSE_MEAN_LEVELS: Final = 0.1
"""How far rounding alone takes a picture, of 255 levels; benchmarks/reproducing.py measures it."""

_THREADS_PER_CORE: Final = 4  # more than that is no honest number
_LIBRARIES: Final = ("conceptry", "diffusers", "numpy", "pillow", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """One way to take the steps: a scheduler of diffusers, and what A1111 calls it."""

    name: str
    scheduler: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)


SAMPLERS: Final = (
    SamplerRow("ddim", "DDIMScheduler", "DDIM"),
    SamplerRow("pndm", "PNDMScheduler", "PLMS"),
    SamplerRow("lms", "LMSDiscreteScheduler", "LMS"),
    SamplerRow("euler", "EulerDiscreteScheduler", "Euler"),
    SamplerRow("euler_a", "EulerAncestralDiscreteScheduler", "Euler a"),
    SamplerRow("heun", "HeunDiscreteScheduler", "Heun"),
    SamplerRow("dpmpp_2m", "DPMSolverMultistepScheduler", "DPM++ 2M"),
    SamplerRow("unipc", "UniPCMultistepScheduler", "UniPC"),
)
SAMPLER_BY_NAME: Final = {row.name: row for row in SAMPLERS}


def set_sampler(pipeline: Pipeline, name: str | None) -> Sampler:
    """Returns the sampler that the pipeline has from now on: the one called ``name``, None for the base's own.

    Raises:
        UsageError: if there is none of that name, or the base's predictions do not fit it.
    """
    if name is not None:
        row = SAMPLER_BY_NAME.get(name)
        if row is None:
            raise UsageError(
                f"no sampler is called {name[:80]!r}", hint=f"known: {', '.join(SAMPLER_BY_NAME)}"
            )
        import diffusers

        if type(pipeline.scheduler).__name__.startswith("FlowMatch"):
            raise UsageError(
                f"this base is a flow, and {name} takes the steps of noise that is predicted",
                hint="leave out --sampler: the base's own takes its steps",
            )
        kind: Any = getattr(diffusers, row.scheduler)
        try:
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **row.options)
        except (ValueError, NotImplementedError, TypeError) as error:
            raise UsageError(
                f"this base cannot be sampled by {name}: {str(error).splitlines()[0][:200]}"
            ) from error
    scheduler = pipeline.scheduler
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    text = json.dumps(settings, sort_keys=True, default=str)
    return Sampler(
        name=name, scheduler=type(scheduler).__name__, settings=Digest.of_bytes(text.encode("utf-8"))
    )


def describe_base(pipeline: Pipeline, name: str | None) -> BaseRecord:
    """Returns which base an open pipeline is, its autoencoder too. Raises IncompatibleError."""
    identity = identify_pipeline(pipeline)
    prints = {str(part): value for part, value in identity.fingerprints.items()}
    if getattr(pipeline, "vae", None) is not None:
        prints["vae"] = fingerprint_component(pipeline.vae)
    return BaseRecord(
        name=name,
        family=identity.family,
        prediction_type=identity.prediction_type,
        components={part: value.digest for part, value in sorted(prints.items())},
    )


def describe_machine(pipeline: Pipeline) -> Machine:
    """Returns what decides, beside the record itself, how sums are rounded here."""
    device = get_device(pipeline)
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    packer = "zlib_ng" if features.check_feature("zlib_ng") else "zlib"
    libraries[packer] = str(features.version(packer) or "unknown")
    capability = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        capability = torch.cuda.get_device_name(device)
    return Machine(
        device=device.type,
        dtype=str(_find_denoiser(pipeline).dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        system=platform.system() or "unknown",
        processor=platform.machine() or "unknown",
        capability=capability,
        libraries=libraries,
    )


def _find_denoiser(pipeline: Pipeline) -> Any:
    return next(module for name, module in list_components(pipeline).items() if name in DENOISERS)


def compare_machines(there: Machine, here: Machine) -> list[str]:
    """Returns what differs, in words; what may make pictures differ in their last bits."""
    before, now = there.model_dump(), here.model_dump()
    old, new = before.pop("libraries"), now.pop("libraries")
    pairs = [(key, before[key], now[key]) for key in before]
    pairs += [(key, old.get(key, "none"), new.get(key, "none")) for key in sorted({*old, *new})]
    return [f"{key} {then}, here {here}" for key, then, here in pairs if then != here]


@contextmanager
def same_rounding(threads: int | None = None) -> Iterator[None]:
    """Has sums rounded the same way each time while the block runs: so many threads, no search for faster ways."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        torch.get_num_threads(),
        cudnn.deterministic,
        cudnn.benchmark,
        cudnn.allow_tf32,
        matmul.allow_tf32,
    )
    try:
        if threads is not None:
            torch.set_num_threads(min(threads, _THREADS_PER_CORE * (os.cpu_count() or 1)))
        cudnn.deterministic, cudnn.benchmark = True, False
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before[1:]


def draw_batch(pipeline: Pipeline, record: PictureRecord, canvas: Canvas = BLANK) -> list[Image.Image]:
    """Returns all pictures of the batch that ``record`` is of, in order; concepts are attached already."""
    size = record.batch.size
    prompt, negative = parse_weights(record.wording.prompt), parse_weights(record.wording.negative)
    with emphasized(pipeline, prompt, negative):
        return generate(
            pipeline,
            [join_pieces(prompt)] * size,
            [record.first_seed + index for index in range(size)],
            steps=record.steps,
            guidance=record.guidance,
            negative=join_pieces(negative),
            canvas=canvas,
        )


def encode_picture(picture: Image.Image, record: PictureRecord) -> bytes:
    """Returns the PNG file of a picture, with its record and with the ``parameters`` that other programs read."""
    row = SAMPLER_BY_NAME.get(record.sampler.name or "")
    title = row.title if row else record.sampler.scheduler.removesuffix("Scheduler")
    info = PngInfo()
    info.add_text("parameters", format_parameters(record, sampler=title))
    info.add_itxt(TEXT_KEY, record.to_text())
    file = io.BytesIO()
    picture.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


# --- comparing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How far a picture is from another, in levels of 255."""

    outcome: Literal["same_bytes", "same_pixels", "close", "different"]
    max_levels: int
    mean_levels: float


def compare_pictures(before: bytes, after: bytes, *, elsewhere: bool) -> Compared:
    """Returns how a picture that was drawn again compares with the file that it was drawn from.

    Args:
        before: the file that there was.
        after: the one drawn from it.
        elsewhere: whether versions or the machine are others, so that sums may be rounded otherwise.

    Raises:
        InvalidFileError: if the pixels of ``before`` cannot be read.
    """
    if before == after:
        return Compared(outcome="same_bytes", max_levels=0, mean_levels=0.0)
    old, new = _read_pixels(before), _read_pixels(after)
    if old.shape != new.shape:
        return Compared(outcome="different", max_levels=255, mean_levels=255.0)
    apart = np.abs(old - new)
    worst, mean = int(apart.max()), float(apart.mean())
    if not worst:
        return Compared(outcome="same_pixels", max_levels=0, mean_levels=0.0)
    close = elsewhere and worst <= CLOSE_MAX_LEVELS and mean <= CLOSE_MEAN_LEVELS
    return Compared(outcome="close" if close else "different", max_levels=worst, mean_levels=mean)


def _read_pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"), np.int16)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidFileError("the picture's pixels cannot be read", hint="download it again") from error
