"""Claim: a concept takes the place of another in milliseconds, and costs no more in use than its peers.

``python benchmarks/switching.py [OUT.json]``: the real UNet and text encoder of SD1.5 with random weights, adapters of
rank 16 on all attention projections, diffusers and PEFT beside us in one run on one thread. Processor time is what is
compared, because other programs may run beside this one; the clock's time is printed with it. Needs about 9 GB of
memory.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from measuring import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attaching import PROJECTIONS, RANK

from conceptry.composer import Composition, attach, export, fuse, packs
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.formats.lora import LORA_NAME, LoraContents, LoraModule, write_lora
from tests.fakes.concepts import describe_base, make_embedding, make_rank_one, write_concept
from tests.fakes.real import make_sd15

PEER_NAME: Final = "for-diffusers.safetensors"
RUNS: Final = 7
STEP_RUNS: Final = 3
LATENT: Final = 32


class Stopwatch:
    """Processor and clock seconds of everything that was measured, by name."""

    def __init__(self) -> None:
        self.processor: dict[str, list[float]] = {}
        self.clock: dict[str, list[float]] = {}

    def measure(self, name: str, run: Callable[[], Any]) -> Any:
        """Returns what ``run`` returns, and keeps how long it took."""
        clock, processor = time.perf_counter(), time.process_time()
        found = run()
        self.processor.setdefault(name, []).append(time.process_time() - processor)
        self.clock.setdefault(name, []).append(time.perf_counter() - clock)
        return found

    def median(self, name: str) -> float:
        """Returns the median of the processor's seconds."""
        return statistics.median(self.processor[name])


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
    """Measures an adapter from its file, from memory, and by diffusers."""
    for _ in range(RUNS):
        packs.forget_packs()
        watch.measure("attach from its file", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        watch.measure("attach from memory", lambda: attach(Composition(concepts[0]), pipeline)).detach()
        watch.measure("diffusers load", lambda: load_peer(pipeline, folders[0], "a"))
        watch.measure("diffusers unload", pipeline.unload_lora_weights)


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


def measure_fusing(watch: Stopwatch, pipeline: Any, folders: list[Path], concepts: list[Concept]) -> int:
    """Returns how many bytes the weights have that are changed."""
    names = [str(concept.manifest.name) for concept in concepts]
    weights = [
        layer.weight
        for path, layer in pipeline.unet.named_modules()
        if path.endswith(PROJECTIONS) and ".attn" in path
    ]
    others = [torch.empty_like(weight.data).copy_(weight.data) for weight in weights]
    attachment = fuse(Composition(concepts[0]), pipeline)
    attachment.replace(names[0], concepts[1])
    for _ in range(RUNS):
        watch.measure("replace, fused", lambda: attachment.replace(names[1], concepts[0]))
        watch.measure("replace, fused", lambda: attachment.replace(names[0], concepts[1]))
        watch.measure("copy of the same bytes", lambda: copy_all(weights, others))
    attachment.detach()
    for _ in range(RUNS):
        load_peer(pipeline, folders[0], "a")
        watch.measure("diffusers fuse_lora", pipeline.fuse_lora)
        watch.measure("diffusers unfuse_lora", pipeline.unfuse_lora)
        pipeline.unload_lora_weights()
        attachment = watch.measure("fuse", lambda: fuse(Composition(concepts[0]), pipeline))
        watch.measure("detach what is fused", attachment.detach)
    return sum(weight.numel() * weight.element_size() for weight in weights)


def copy_all(weights: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Moves as many bytes as a fused replacement must at least."""
    for weight, other in zip(weights, others, strict=True):
        other.copy_(weight.data)


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
    watch: Stopwatch, pipeline: Any, folder: Path, folders: list[Path], concepts: list[Concept]
) -> None:
    """Measures denoising steps with each way in place."""
    words = [make_embedding(folder / "e", pipeline), make_rank_one(folder / "r", pipeline)]
    ways: dict[str, Callable[[], Any]] = {
        "step, base": lambda: None,
        "step, LoRA attached": lambda: attach(Composition(concepts[0]), pipeline),
        "step, LoRA fused": lambda: fuse(Composition(concepts[0]), pipeline),
        "step, embedding attached": lambda: attach(Composition(words[0]), pipeline),
        "step, Perfusion attached": lambda: attach(Composition(words[1]), pipeline),
    }
    for _ in range(STEP_RUNS):
        for name, put in ways.items():
            attachment = put()
            run_steps(watch, name, pipeline)
            if attachment is not None:
                attachment.detach()
        load_peer(pipeline, folders[0], "a")
        run_steps(watch, "step, LoRA of PEFT", pipeline)
        pipeline.unload_lora_weights()


@torch.no_grad()
def run_steps(watch: Stopwatch, name: str, pipeline: Any) -> None:
    """Measures the second and third step of a picture; what is done once a prompt is in the first."""
    encoded = pipeline.encode_prompt("a <e> and a <r>", "cpu", 1, True, negative_prompt="")
    context = torch.cat([encoded[1], encoded[0]])
    noise = torch.randn(2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    pipeline.unet(noise, 10, encoder_hidden_states=context)
    for _ in range(2):
        watch.measure(name, lambda: pipeline.unet(noise, 10, encoder_hidden_states=context))


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


def main() -> None:
    """Measures, prints and writes."""
    torch.set_num_threads(1)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        folder, pipeline = Path(name), make_sd15()
        folders = [folder / f"lora-{number}" for number in range(20)]
        concepts = [write_adapter(one, pipeline, number) for number, one in enumerate(folders)]
        for concept, one in zip(concepts[:2], folders, strict=False):
            export(Composition(concept), pipeline, one / PEER_NAME)
        attach(Composition(concepts[0]), pipeline).detach()
        load_peer(pipeline, folders[0], "a")
        pipeline.unload_lora_weights()
        measure_attaching(watch, pipeline, folders, concepts)
        measure_replacing(watch, pipeline, folders, concepts)
        measure_twentieth(watch, pipeline, concepts)
        changed = measure_fusing(watch, pipeline, folders, concepts)
        if "--no-steps" not in sys.argv:
            measure_steps(watch, pipeline, folder, folders, concepts)
    print(f"{'processor':>12}{'clock':>12}")
    for key in watch.processor:
        clock = statistics.median(watch.clock[key])
        print(f"{1000 * watch.median(key):9.2f} ms{1000 * clock:9.2f} ms  {key}")
    found = []
    for ours, peer, wanted in CLAIMS:
        if ours in watch.processor:
            ratio = watch.median(peer) / watch.median(ours)
            found.append({"ours": ours, "peer": peer, "times": ratio, "wanted": wanted})
            print(f"{ratio:7.2f} times as fast as {peer}, {wanted:.2f} wanted: {ours}")
    print(f"{changed / 1e6:.0f} MB of weights change")
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if paths:
        document = {
            "machine": describe_machine(),
            "processor_seconds": watch.processor,
            "clock_seconds": watch.clock,
            "claims": found,
            "changed_bytes": changed,
        }
        Path(paths[0]).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
