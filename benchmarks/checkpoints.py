"""Claim: a checkpoint of SD1.5 in full size is a base, and a composition is exported to one, in memory for one model.

``python benchmarks/checkpoints.py [OUT.json]``: random weights, a LoRA on the attention projections; each step in a
process of its own, so that the greatest memory is its own. Needs about 8 GB of memory and 10 GB of disk.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attaching import make_concept

from conceptry.base_locations import resolve_base
from conceptry.composer import Composition, Destination, attach, export
from conceptry.composer.loading import load_pipeline
from conceptry.concepts import open_concept
from tests.composer.test_exported_checkpoints import cache_settings
from tests.fakes.real import make_real_vae, make_sd15

FIRST: Final = "first.safetensors"
STEPS: Final = ("make and export", "open", "open, attach, detach", "open and export")


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
        place = path if step == STEPS[0] else folder / "second.safetensors"
        export(Composition(concept), pipeline, Destination(path=place, target="checkpoint"))
    return {
        "step": step,
        "clock_seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "file_bytes": path.stat().st_size,
    }


def main() -> None:
    """Measures, prints and writes."""
    words = sys.argv[1:]
    if words[:1] == ["--step"]:
        print(json.dumps(run_step(words[1], Path(words[2]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, folder]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(answer.stdout.splitlines()[-1])
            rows.append(row)
            print(
                f"{step:24}{row['clock_seconds']:8.1f} s{row['processor_seconds']:8.1f} s of the processor"
                f"{row['peak_bytes'] / 1e9:8.2f} GB at most, the file {row['file_bytes'] / 1e9:.2f} GB"
            )
    if words:
        document = {"title": "checkpoints", "machine": describe_machine(), "rows": rows}
        Path(words[0]).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
