"""Claim: a concept takes the place of another in milliseconds, and costs no more in use than its peers.

``python benchmarks/switching.py [OUT.json] [--base sd15|sdxl] [--no-steps]``: the real denoisers of SD1.5 and SDXL with
random weights, one after the other, adapters of rank 16 on all attention projections, diffusers and PEFT beside us in
one run on one thread. Processor time is what is compared, because other programs may run beside this one; the clock's
time is printed with it. Of a denoising step the least of its runs counts, since noise only adds. SD1.5 needs about 9 GB
of memory, SDXL 17; what does not fit is left out and named. A quarter of an hour in all.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from measuring import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attaching import PROJECTIONS, RANK

from conceptry.composer import Composition, attach, export, fingerprints, fuse, packs
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.formats.lora import LORA_NAME, LoraContents, LoraModule, write_lora
from tests.fakes.concepts import describe_base, make_embedding, make_rank_one, write_concept
from tests.fakes.real import make_sd15, make_sdxl

PEER_NAME: Final = "for-diffusers.safetensors"
RUNS: Final = 11
STEP_RUNS: Final = 3
COPIED_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Base:
    """A base that is measured."""

    make: Callable[[], Any]
    latent: int
    """Width and height of what is denoised, so that a step takes seconds."""

    fused_bytes: int
    """Memory that must be free before concepts are fused."""


BASES: Final[Mapping[str, Base]] = {
    "sd15": Base(make_sd15, 32, 2 << 30),
    "sdxl": Base(make_sdxl, 24, 7 << 30),
}


class Stopwatch:
    """Processor and clock seconds of everything that was measured, by name."""

    def __init__(self) -> None:
        self.processor: dict[str, list[float]] = {}
        self.clock: dict[str, list[float]] = {}

    def measure(self, name: str, run: Callable[[], Any], *, times: float = 1.0) -> Any:
        """Returns what ``run`` returns, and keeps how long ``times`` as much takes."""
        clock, processor = time.perf_counter(), time.process_time()
        found = run()
        self.processor.setdefault(name, []).append(times * (time.process_time() - processor))
        self.clock.setdefault(name, []).append(times * (time.perf_counter() - clock))
        return found

    def find(self, name: str) -> float:
        """Returns the processor's seconds that count: the least for steps, else the median."""
        return (min if name.startswith("step") else statistics.median)(self.processor[name])


def write_adapter(folder: Path, pipeline: Any, number: int) -> Concept:
    """Returns a LoRA concept on every attention projection of the UNet."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(number)
    modules = {}
    for path, layer in pipeline.unet.named_modules():
        if path.endswith(PROJECTIONS) and ".attn" in path:
            rows, columns = layer.weight.shape
            down = torch.randn(RANK, columns, generator=generator) / columns**0.5
            up = torch.randn(rows, RANK, generator=generator) * 0.01
            modules[f"unet.{path}"] = LoraModule.of_factors(
                down=from_torch(down), up=from_torch(up), alpha=float(RANK)
            )
    write_lora(folder / LORA_NAME, LoraContents(modules=modules), {})
    method = {"kind": "lora", "rank": RANK, "modules": len(modules), "scale": 1.0}
    base = describe_base(identify_pipeline(pipeline))
    return write_concept(folder, f"bench/lora-{number}", base, method, files=[LORA_NAME], tokens=[])


def load_peer(pipeline: Any, folder: Path, name: str) -> None:
    """Loads an adapter with diffusers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(str(folder), weight_name=PEER_NAME, adapter_name=name)


def measure_attaching(watch: Stopwatch, pipeline: Any, folders: list[Path], concepts: list[Concept]) -> None:
    """Measures an adapter from its file, from memory, and by diffusers; cold is with nothing cached anywhere."""
    for _ in range(RUNS):
        packs.forget_packs()
        watch.measure("attach from its file", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        watch.measure("attach from memory", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        watch.measure("diffusers load", lambda: load_peer(pipeline, folders[0], "a"))
        watch.measure("diffusers unload", pipeline.unload_lora_weights)
    for _ in range(3):
        packs.forget_packs()
        fingerprints._READINGS.clear()
        drop_pages(folders[0] / LORA_NAME)
        watch.measure("attach, cold", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        drop_pages(folders[0] / PEER_NAME)
        watch.measure("diffusers load, cold", lambda: load_peer(pipeline, folders[0], "a"))
        pipeline.unload_lora_weights()


def drop_pages(path: Path) -> None:
    """Lets the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_replacing(watch: Stopwatch, pipeline: Any, folders: list[Path], concepts: list[Concept]) -> None:
    """Measures one adapter in the place of another, and other strengths."""
    names = [str(concept.manifest.name) for concept in concepts]
    attachment = attach(Composition(concepts[0]), pipeline)
    attachment.replace(names[0], concepts[1])
    for _ in range(RUNS):
        watch.measure("replace", lambda: attachment.replace(names[1], concepts[0]))
        watch.measure("replace", lambda: attachment.replace(names[0], concepts[1]))
        watch.measure("set_strengths", lambda: attachment.set_strengths({names[1]: 0.6}))
        watch.measure("set_strengths", lambda: attachment.set_strengths({names[1]: 0.7}))
    attachment.detach()
    for folder, name in zip(folders, ("a", "b"), strict=False):
        load_peer(pipeline, folder, name)
    for _ in range(RUNS):
        watch.measure("diffusers set_adapters", lambda: pipeline.set_adapters("a"))
        watch.measure("diffusers set_adapters", lambda: pipeline.set_adapters("b"))
        watch.measure("diffusers delete and load", lambda: replace_peer(pipeline, folders[0]))
    pipeline.unload_lora_weights()


def replace_peer(pipeline: Any, folder: Path) -> None:
    """Lets diffusers delete an adapter and load it again."""
    pipeline.delete_adapters("a")
    load_peer(pipeline, folder, "a")


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


def measure_fusing(watch: Stopwatch, pipeline: Any, folders: list[Path], concepts: list[Concept]) -> None:
    """Measures one adapter in the place of another inside the weights, and what moving these bytes alone takes."""
    names = [str(concept.manifest.name) for concept in concepts]
    weights = list_changed(pipeline)
    attachment = fuse(Composition(concepts[0]), pipeline)
    attachment.replace(names[0], concepts[1])
    for _ in range(RUNS // 2):
        watch.measure("replace, fused", lambda: attachment.replace(names[1], concepts[0]))
        watch.measure("replace, fused", lambda: attachment.replace(names[0], concepts[1]))
    attachment.detach()
    part: list[torch.Tensor] = []
    while len(part) < len(weights) and count_bytes(part) < COPIED_BYTES:
        part.append(weights[len(part)])
    others = [torch.zeros_like(weight.data) for weight in part]
    share = count_bytes(weights) / count_bytes(part)
    for _ in range(RUNS):
        watch.measure("copy of the same bytes", lambda: copy_all(part, others), times=share)
    del others
    for _ in range(RUNS // 2):
        load_peer(pipeline, folders[0], "a")
        watch.measure("diffusers fuse_lora", pipeline.fuse_lora)
        watch.measure("diffusers unfuse_lora", pipeline.unfuse_lora)
        pipeline.unload_lora_weights()
        attachment = watch.measure("fuse", lambda: fuse(Composition(concepts[0]), pipeline))
        watch.measure("detach what is fused", attachment.detach)


def copy_all(weights: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Moves as many bytes as a fused replacement must at least."""
    for weight, other in zip(weights, others, strict=True):
        other.copy_(weight.data)


def measure_memory(pipeline: Any, concept: Concept, *, fused: bool) -> dict[str, dict[str, float]]:
    """Returns what the process grows by when an adapter is attached, and when it is fused, beside what it may."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    base = count_bytes(tensor for part in parts for tensor in part.state_dict().values())
    pack = concept.locate(next(concept.manifest.iter_files())).stat().st_size
    ways = {"memory, attached": (attach, pack)}
    if fused:
        ways["memory, fused"] = (fuse, pack + count_bytes(list_changed(pipeline)))
    found = {}
    for name, (put, allowed) in ways.items():
        packs.forget_packs()
        gc.collect()
        before = read_memory()
        attachment = put(Composition(concept), pipeline)
        found[name] = {
            "grown_bytes": read_memory() - before,
            "allowed_bytes": allowed + 0.05 * base,
            "base_bytes": base,
        }
        attachment.detach()
    return found


def read_memory() -> int:
    """Returns the bytes of memory that the process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_free_memory() -> int:
    """Returns the bytes that the machine can still give."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure_twentieth(watch: Stopwatch, pipeline: Any, concepts: list[Concept]) -> None:
    """Measures twenty adapters one after another."""
    for _ in range(3):
        attachments = []
        for number, concept in enumerate(concepts):
            name = {0: "attach the 1st of 20", 19: "attach the 20th of 20"}.get(number, "attach others")
            attachments.append(watch.measure(name, partial(attach, Composition(concept), pipeline)))
        for attachment in attachments:
            attachment.detach()


def measure_steps(
    watch: Stopwatch, pipeline: Any, folder: Path, concept: Concept, *, fused: bool, latent: int
) -> None:
    """Measures denoising steps with each way in place."""
    words = [make_embedding(folder / "e", pipeline), make_rank_one(folder / "r", pipeline)]
    ways: dict[str, Callable[[], Any]] = {
        "step, base": lambda: None,
        "step, LoRA attached": lambda: attach(Composition(concept), pipeline),
        "step, embedding attached": lambda: attach(Composition(words[0]), pipeline),
        "step, Perfusion attached": lambda: attach(Composition(words[1]), pipeline),
    }
    if fused:
        ways["step, LoRA fused"] = lambda: fuse(Composition(concept), pipeline)
    for _ in range(STEP_RUNS):
        for name, put in ways.items():
            attachment = put()
            run_steps(watch, name, pipeline, latent)
            if attachment is not None:
                attachment.detach()
        load_peer(pipeline, folder / "lora-0", "a")
        run_steps(watch, "step, LoRA of PEFT", pipeline, latent)
        pipeline.unload_lora_weights()


@torch.no_grad()
def run_steps(watch: Stopwatch, name: str, pipeline: Any, latent: int) -> None:
    """Measures the second and third step of a picture; what is done once a prompt is in the first."""
    encoded = pipeline.encode_prompt(
        "a <e> and a <r>", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    options: dict[str, Any] = {"encoder_hidden_states": torch.cat([encoded[1], encoded[0]])}
    if len(encoded) > 2:
        pooled = torch.cat([encoded[3], encoded[2]])
        options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(2, 6)}
    noise = torch.randn(2, 4, latent, latent, generator=torch.Generator().manual_seed(0))
    pipeline.unet(noise, 10, **options)
    for _ in range(2):
        watch.measure(name, lambda: pipeline.unet(noise, 10, **options))


CLAIMS: Final = (
    # what, beside what, at least how many times as fast
    ("attach from its file", "diffusers load", 10.0),
    ("replace", "diffusers delete and load", 20.0),
    ("replace", "diffusers set_adapters", 4.0),
    ("replace, fused", "copy of the same bytes", 1 / 5),
    ("attach the 20th of 20", "attach the 1st of 20", 1 / 1.2),
    ("step, LoRA attached", "step, LoRA of PEFT", 1.0),
    ("step, LoRA fused", "step, base", 1 / 1.01),
    ("step, embedding attached", "step, base", 1 / 1.03),
    ("step, Perfusion attached", "step, base", 1 / 1.03),
)


def measure_base(id: str, *, steps: bool) -> dict[str, Any]:
    """Returns all that was measured on one base, as the JSON file has it."""
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    base, watch = BASES[id], Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        folder, pipeline = Path(name), base.make()
        folders = [folder / f"lora-{number}" for number in range(20)]
        concepts = [write_adapter(one, pipeline, number) for number, one in enumerate(folders)]
        for concept, one in zip(concepts[:2], folders, strict=False):
            export(Composition(concept), pipeline, one / PEER_NAME)
        attach(Composition(concepts[0]), pipeline).detach()
        load_peer(pipeline, folders[0], "a")
        pipeline.unload_lora_weights()
        fused = read_free_memory() > base.fused_bytes
        memory = measure_memory(pipeline, concepts[0], fused=fused)
        measure_attaching(watch, pipeline, folders, concepts)
        measure_replacing(watch, pipeline, folders, concepts)
        measure_twentieth(watch, pipeline, concepts)
        if fused:
            measure_fusing(watch, pipeline, folders, concepts)
        if steps:
            measure_steps(watch, pipeline, folder, concepts[0], fused=fused, latent=base.latent)
        changed = count_bytes(list_changed(pipeline))
    return {
        "base": id,
        "processor_seconds": watch.processor,
        "clock_seconds": watch.clock,
        "claims": [claim for claim in map(partial(_weigh, watch), CLAIMS) if claim],
        "memory": memory,
        "changed_bytes": changed,
        "left_out": [] if fused else ["everything fused: too little memory is free"],
    }


def _weigh(watch: Stopwatch, claim: tuple[str, str, float]) -> dict[str, Any] | None:
    ours, peer, wanted = claim
    if ours not in watch.processor:
        return None
    return {"ours": ours, "peer": peer, "times": watch.find(peer) / watch.find(ours), "wanted": wanted}


def show(found: dict[str, Any]) -> None:
    """Prints what was measured on one base."""
    print(f"\n{found['base']}: {found['changed_bytes'] / 1e6:.0f} MB of weights change")
    print(f"{'median':>12}{'least':>12}{'clock':>12}")
    for name, seconds in found["processor_seconds"].items():
        columns = statistics.median(seconds), min(seconds), statistics.median(found["clock_seconds"][name])
        print("".join(f"{1000 * column:9.2f} ms" for column in columns) + f"  {name}")
    for claim in found["claims"]:
        verdict = "holds" if claim["times"] >= claim["wanted"] else "FALLS SHORT"
        print(
            f"{claim['times']:7.2f} times as fast as {claim['peer']}, {claim['wanted']:.2f} wanted: "
            f"{claim['ours']}: {verdict}"
        )
    for name, row in found["memory"].items():
        verdict = "holds" if row["grown_bytes"] <= row["allowed_bytes"] else "FALLS SHORT"
        grown, allowed, base = (row[f"{key}_bytes"] / 1e6 for key in ("grown", "allowed", "base"))
        print(f"{grown:7.0f} MB more than the base's {base:.0f} MB, {allowed:.0f} allowed: {name}: {verdict}")
    for text in found["left_out"]:
        print(f"left out: {text}")


def main() -> None:
    """Measures each base in a process of its own, prints and writes."""
    words = sys.argv[1:]
    chosen = [words[words.index("--base") + 1]] if "--base" in words else list(BASES)
    if len(chosen) == 1 and "--child" in words:
        print(json.dumps(measure_base(chosen[0], steps="--no-steps" not in words)))
        return
    rows = []
    for id in chosen:
        command = [sys.executable, __file__, "--child", "--base", id]
        command += ["--no-steps"] if "--no-steps" in words else []
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        show(rows[-1])
    if words and not words[0].startswith("--"):
        document = {"machine": describe_machine(), "bases": rows}
        Path(words[0]).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
