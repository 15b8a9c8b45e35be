"""Claim: a checkpoint of SD1.5 in full size is a base, and a composition is exported to one, in memory for one model.

``python benchmarks/checkpoints.py [OUT.json]``: random weights, a LoRA on the attention projections; each step in a
process of its own, so that the greatest memory is its own. What was exported is opened and exported again with the LoRA
at strength 0, and every tensor of the two files is compared bit by bit. Needs about 8 GB of memory and 10 GB of disk.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
from measuring import describe_machine
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attaching import make_concept

from conceptry.base_locations import resolve_base
from conceptry.composer import Composition, Destination, attach, export
from conceptry.composer.loading import load_pipeline
from conceptry.concepts import open_concept
from tests.composer.test_exported_checkpoints import cache_settings
from tests.fakes.real import make_real_vae, make_sd15

FIRST: Final = "first.safetensors"
SECOND: Final = "second.safetensors"
STEPS: Final = ("make and export", "open", "open, attach, detach", "open and export at 0")


def run_step(step: str, folder: Path) -> dict[str, Any]:
    """Returns the seconds of a step without what prepares it, and the greatest memory of this process."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_CACHE"] = str(folder / "cache")
    path, pipeline = folder / FIRST, None
    if step == STEPS[0]:
        pipeline = make_sd15(vae=make_real_vae())
        cache_settings(pipeline, folder / "cache")
        (folder / "concept").mkdir()
        make_concept(folder / "concept", pipeline)
    started, processor = time.perf_counter(), time.process_time()
    if pipeline is None:
        pipeline = load_pipeline(resolve_base(str(path), {}))
    concept = open_concept(folder / "concept")
    if "attach" in step:
        attach(Composition(concept), pipeline).detach()
    if "export" in step:
        place, strength = (path, 1.0) if step == STEPS[0] else (folder / SECOND, 0.0)
        export(Composition(concept * strength), pipeline, Destination(path=place, target="checkpoint"))
    return {
        "step": step,
        "clock_seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "file_bytes": path.stat().st_size,
    }


def compare_tensors(first: Path, second: Path) -> tuple[int, int]:
    """Returns how many tensors two files have both, bit for bit, and how many there are in either."""
    with safe_open(first, "pt") as one, safe_open(second, "pt") as other:
        names, others = set(one.keys()), set(other.keys())
        equal = sum(_is_same(one.get_tensor(name), other.get_tensor(name)) for name in names & others)
    return equal, len(names | others)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_form = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_form and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def main() -> None:
    """Measures, prints and writes."""
    words = sys.argv[1:]
    if words[:1] == ["--step"]:
        print(json.dumps(run_step(words[1], Path(words[2]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, folder]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(answer.stdout.splitlines()[-1])
            rows.append(row)
            print(
                f"{step:24}{row['clock_seconds']:8.1f} s{row['processor_seconds']:8.1f} s of the processor"
                f"{row['peak_bytes'] / 1e9:8.2f} GB at most, the file {row['file_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
        equal, count = compare_tensors(Path(folder, FIRST), Path(folder, SECOND))
        print(
            f"{equal} of {count} tensors are equal bit for bit in the file that was opened and exported again"
        )
        rows[-1] |= {"equal_tensors": equal, "tensors": count}
    if words:
        document = {"title": "checkpoints", "machine": describe_machine(), "rows": rows}
        Path(words[0]).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
