"""Claim: a LoRA is in an SD1.5-shaped pipeline faster than diffusers loads it, and out again bit for bit.

``python benchmarks/attaching.py [OUT.json]``: the real UNet and text encoder of SD1.5 with random weights, rank 16 on
all attention projections, the same file for both; needs about 5 GB of memory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import Timing, interleave, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conceptry.composer import Composition, attach, export
from conceptry.composer.fingerprints import identify_pipeline
from conceptry.composer.tensors import from_torch
from conceptry.concepts import Concept
from conceptry.formats.lora import LORA_NAME, LoraContents, LoraModule, write_lora
from tests.fakes.concepts import describe_base, write_concept
from tests.fakes.real import make_sd15

RANK = 16
RUNS = 7
PEER_NAME = "for-diffusers.safetensors"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def make_concept(folder: Path, pipeline: Any) -> Concept:
    """Returns a LoRA concept on every attention projection of the UNet."""
    torch.manual_seed(0)
    modules = {}
    for path, layer in pipeline.unet.named_modules():
        if path.endswith(PROJECTIONS) and ".attn" in path:
            rows, columns = layer.weight.shape
            down, up = torch.randn(RANK, columns) / columns**0.5, torch.randn(rows, RANK) * 0.01
            modules[f"unet.{path}"] = LoraModule.of_factors(
                down=from_torch(down), up=from_torch(up), alpha=float(RANK)
            )
    write_lora(folder / LORA_NAME, LoraContents(modules=modules), {})
    method = {"kind": "lora", "rank": RANK, "modules": len(modules), "scale": 1.0}
    base = describe_base(identify_pipeline(pipeline))
    return write_concept(folder, "bench/lora", base, method, files=[LORA_NAME], tokens=[])


def main() -> None:
    """Measures, prints and writes."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = make_sd15()
        concept = make_concept(Path(folder), pipeline)
        export(Composition(concept), pipeline, Path(folder) / PEER_NAME)
        before = {
            name: value.clone() for name, value in pipeline.unet.state_dict().items() if "attn1" in name
        }

        def ours() -> None:
            attach(Composition(concept), pipeline).detach()

        def peer() -> None:
            pipeline.load_lora_weights(folder, weight_name=PEER_NAME, adapter_name="x")
            pipeline.unload_lora_weights()

        timings: dict[str, Timing] = interleave(
            {"attach and detach": ours, "diffusers load and unload": peer}, RUNS
        )
        now = pipeline.unet.state_dict()
        exact = all(torch.equal(value, now[name]) for name, value in before.items())
        report("LoRA of rank 16 on SD1.5", timings, ours="attach and detach", out=out, restored_exactly=exact)


if __name__ == "__main__":
    main()
