"""What lies on the disk and in memory while switching is measured: a base, adapters for both programs, a stopwatch."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attaching import PROJECTIONS, RANK

from conceptry.composer import Composition, attach, export
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.formats.lora import LORA_NAME, LoraContents, LoraModule, write_lora
from tests.fakes.concepts import describe_base, write_concept
from tests.fakes.real import make_narrow_sdxl, make_sd15, make_sdxl

PEER_NAME: Final = "for-diffusers.safetensors"


@dataclass(frozen=True, slots=True)
class Base:
    """A base that is measured."""

    make: Callable[[], Any]
    latent: int
    """Width and height of what is denoised."""

    fused_bytes: int
    """Memory that must be free before concepts are fused."""


BASES: Final[Mapping[str, Base]] = {
    "sd15": Base(make_sd15, 8, 2 << 30),
    "sdxl": Base(make_sdxl, 8, 7 << 30),
    "narrow": Base(make_narrow_sdxl, 8, 1 << 30),
}


class Stopwatch:
    """Seconds of everything that was measured, by name: what is compared, and the clock's.

    Other programs may run beside this one, so that on a processor its own time is compared. An accelerator works while
    the processor goes on: there the clock is, from when it was done with everything before until it is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.clock: dict[str, list[float]] = {}

    def now(self) -> float:
        """Returns the time that is compared, in seconds since some moment."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def measure(self, name: str, run: Callable[[], Any], *, times: float = 1.0) -> Any:
        """Returns what ``run`` returns, and keeps how long ``times`` as much takes."""
        clock, started = time.perf_counter(), self.now()
        found = run()
        self.seconds.setdefault(name, []).append(times * (self.now() - started))
        self.clock.setdefault(name, []).append(times * (time.perf_counter() - clock))
        return found


def write_adapter(folder: Path, pipeline: Any, number: int) -> Concept:
    """Returns a LoRA concept on every attention projection of the UNet."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(number)
    modules = {}
    for path, layer in pipeline.unet.named_modules():
        if path.endswith(PROJECTIONS) and ".attn" in path:
            rows, columns = layer.weight.shape
            down = (
                torch.randn(RANK, columns, generator=generator) / columns**0.5
            )  # on the processor: one file for all
            up = torch.randn(rows, RANK, generator=generator) * 0.01
            modules[f"unet.{path}"] = LoraModule.of_factors(
                down=from_torch(down), up=from_torch(up), alpha=float(RANK)
            )
    write_lora(folder / LORA_NAME, LoraContents(modules=modules), {})
    (folder / LORA_NAME).chmod(0o444)  # as every file of a store
    method = {"kind": "lora", "rank": RANK, "modules": len(modules), "scale": 1.0}
    base = describe_base(identify_pipeline(pipeline))
    return write_concept(folder, f"bench/lora-{number}", base, method, files=[LORA_NAME], tokens=[])


def load_peer(pipeline: Any, folder: Path, name: str) -> None:
    """Loads an adapter with diffusers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(folder), weight_name=PEER_NAME, adapter_name=name)


class Bench:
    """One base, what lies on the disk for it, and what was measured."""

    def __init__(self, id: str, folder: Path, device: torch.device) -> None:
        self.id, self.base, self.folder, self.watch = id, BASES[id], folder, Stopwatch(device)
        self.started = time.monotonic()
        self.left_out: list[str] = []
        self.say("building the base")
        self.pipeline = self.base.make().to(device)
        self.folders: list[Path] = []
        self.concepts: list[Concept] = []

    def say(self, text: str) -> None:
        """Says on stderr what is done now, and when."""
        print(f"{self.id} {time.monotonic() - self.started:6.1f} s: {text}", file=sys.stderr, flush=True)

    def prepare(self, count: int, *, peers: int) -> None:
        """Writes adapters, the first of them for diffusers, too, and has each program do its own once."""
        self.say(f"writing {count} adapters")
        self.folders = [self.folder / f"lora-{number}" for number in range(count)]
        self.concepts = [write_adapter(one, self.pipeline, number) for number, one in enumerate(self.folders)]
        for concept, one in zip(self.concepts[:peers], self.folders, strict=False):
            export(Composition(concept), self.pipeline, one / PEER_NAME)
        self.say("doing everything once")
        attach(Composition(self.concepts[0]), self.pipeline).detach()
        if peers:
            load_peer(self.pipeline, self.folders[0], "a")
            self.pipeline.unload_lora_weights()

    def has_memory(self) -> bool:
        """Returns whether something can be fused; what cannot is noted."""
        fits = read_free_memory(self.watch.device) > self.base.fused_bytes
        if not fits:
            self.left_out.append("everything fused: too little memory is free")
        return fits


def drop_pages(path: Path) -> None:
    """Lets the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def list_changed(pipeline: Any) -> list[torch.Tensor]:
    """Returns the weights that the adapters change."""
    return [
        layer.weight
        for path, layer in pipeline.unet.named_modules()
        if path.endswith(PROJECTIONS) and ".attn" in path
    ]


def count_bytes(tensors: Any) -> int:
    """Returns how many bytes the tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def read_memory(device: torch.device) -> tuple[int, int]:
    """Returns the bytes of memory that the process holds on the device now, and how many of them are of no file."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        allocated = torch.accelerator.memory_allocated(device)
        return allocated, allocated
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    rows = {name: text.split() for name, _, text in (line.partition(":") for line in lines)}
    return int(rows["VmRSS"][0]) * 1024, int(rows["RssAnon"][0]) * 1024


def read_free_memory(device: torch.device) -> int:
    """Returns the bytes that the device can still give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
