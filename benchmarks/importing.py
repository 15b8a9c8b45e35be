"""Claim: an import streams; it needs little memory, and takes about as long as hashing or copying the same bytes.

``python benchmarks/importing.py [OUT.json] [FOLDER ...]``: an SDXL-shaped adapter of 2 GB (``GIB=1`` makes it smaller)
is imported in each folder, beside SHA-256 of the same file and a copy with fsync, each in a process of its own, in
turn. Peak memory is the resident set of that process, what Python itself takes included.

An import computes three different digests of the same bytes: of the source (its provenance), of the file that is
written, whose header differs, and of its tensors. What SHA-256 made of one beginning is of no use to another, so that
is three times the processor's time of one; each has a thread, and the speed depends on how many cores are free.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import measure_folders

ROOT = Path(__file__).resolve().parents[1]
RUNS = int(os.environ.get("RUNS", "3"))
MAX_MEMORY_RATIO, SPARE_BYTES, MIN_SPEED = 1.3, 200_000_000, 0.6


def make_adapter(path: Path, size_bytes: int) -> int:
    """Returns the size of the kohya adapter that was written for every layer of SDXL, near ``size_bytes``."""
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from tests.formats.adapters import list_modules

    modules = {name: shape for name, shape in list_modules("sdxl").items() if len(shape) == 2}
    rank = size_bytes // sum(2 * sum(shape) for shape in modules.values())
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float16).tobytes()
    document: dict[str, Any] = {"__metadata__": {"ss_base_model_version": "sdxl_base_v1-0"}}
    position = 0
    for name, (rows, columns) in sorted(modules.items()):
        for suffix, shape in (("lora_down", [rank, columns]), ("lora_up", [rows, rank])):
            end = position + 2 * shape[0] * shape[1]
            entry = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
            document[f"lora_{name.replace('.', '_')}.{suffix}.weight"] = entry
            position = end
    head = json.dumps(document).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for at in range(0, position, len(noise)):
            file.write(noise[: min(len(noise), position - at)])
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def hash_file(path: Path, folder: Path) -> None:
    """Computes the SHA-256 of the file, as any store must."""
    import hashlib

    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def copy_file(path: Path, folder: Path) -> None:
    """Copies the file through memory and flushes it."""
    with path.open("rb") as source, (folder / "copy").open("wb") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())


def import_one(path: Path, folder: Path) -> None:
    """Imports the file: identified, checked to the last value, digests of source, file and tensors, flushed."""
    from conceptry.formats.import_plans import ImportSettings, declare_base
    from conceptry.formats.importing import import_file
    from conceptry.names import ConceptName, parse_version

    settings = ImportSettings(
        name=ConceptName.parse("bench/lora"), version=parse_version("1.0.0"), base=declare_base("sdxl")
    )
    import_file(path, folder / "package", settings)


TASKS: dict[str, Callable[[Path, Path], None]] = {
    "sha256": hash_file,
    "copy + fsync": copy_file,
    "import": import_one,
}


def run_task(name: str, path: Path) -> None:
    """Prints the seconds and the peak memory of one task, run in this process."""
    import resource

    if name == "import":
        import conceptry.formats.importing  # noqa: F401 - the program is running before a file is given to it
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        started, began = time.perf_counter(), time.process_time()
        TASKS[name](path, folder)
        seconds = time.perf_counter() - started
    finally:
        shutil.rmtree(folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": seconds,
        "processor_seconds": time.process_time() - began,
        "peak_bytes": used.ru_maxrss << 10,
    }
    print(json.dumps(found))


def measure(folder: Path, size_bytes: int) -> dict[str, Any]:
    """Returns medians, and what follows from them, for files in ``folder``; prints them."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        path = Path(work) / "adapter.safetensors"
        size = make_adapter(path, size_bytes)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in TASKS}
        for _ in range(RUNS):
            for name in TASKS:
                command = [sys.executable, __file__, "--task", name, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[name].append(json.loads(done.stdout))
    seconds = _take_medians(runs, "seconds")
    processor = _take_medians(runs, "processor_seconds")
    peak = max(run["peak_bytes"] for run in runs["import"])
    slower = max(seconds["sha256"], seconds["copy + fsync"])
    share, allowed = slower / seconds["import"], MAX_MEMORY_RATIO * size + SPARE_BYTES
    print(f"{folder}: {size / 1e9:.2f} GB")
    for name, value in seconds.items():
        print(
            f"  {name:14}{value:8.2f} s{size / value / 1e6:8.0f} MB/s{processor[name]:8.2f} s of the processor"
        )
    print(f"  speed {share:.0%} of the slower (wanted {MIN_SPEED:.0%})")
    times = processor["import"] / processor["sha256"]
    print(f"  processor time {times:.1f} times that of SHA-256, of which three times are its three digests")
    print(f"  peak memory {peak / 1e6:.0f} MB (allowed {allowed / 1e6:.0f} MB)")
    return {
        "folder": str(folder),
        "size_bytes": size,
        "runs": runs,
        "speed_share": share,
        "processor_seconds": processor,
        "processor_times_sha256": times,
        "peak_bytes": peak,
        "holds": share >= MIN_SPEED and peak <= allowed,
    }


def _take_medians(runs: dict[str, list[dict[str, float]]], key: str) -> dict[str, float]:
    return {name: statistics.median(run[key] for run in found) for name, found in runs.items()}


if __name__ == "__main__":
    measure_folders("streaming import", measure, run_task)
