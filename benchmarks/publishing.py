"""Claim: adding a file of 2 GB runs at 80 % or more of the slower of SHA-256 and copy + fsync (in memory: of SHA-256).

``python benchmarks/publishing.py [OUT.json] [FOLDER ...]``: an SDXL-shaped adapter of 2 GB (``GIB=1`` makes it smaller)
is published from a folder, and imported by the command line, which moves what it has written instead of copying it.
Beside them SHA-256 of the same file and a copy with fsync, each in a process of its own, in turn.
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
from pathlib import Path
from typing import Any

from importing import copy_file, hash_file, make_adapter
from measuring import measure_folders

RUNS = int(os.environ.get("RUNS", "3"))
MIN_SPEED = 0.8
ANSWERS = ("--base", "sdxl", "--placeholder", "imp", "--license", "CC0-1.0", "--yes", "--quiet")


def write_package(folder: Path, path: Path) -> None:
    """Writes the manifest beside the file."""
    from conceptry.digests import Digest
    from conceptry.manifest import Manifest

    file = {"path": path.name, "size": path.stat().st_size, "sha256": str(Digest.of_file(path))}
    method = {"kind": "lora", "rank": 16, "modules": 1, "scale": 1.0}
    base = {"family": "sdxl", "architecture": "stable-diffusion-xl-v1-base", "prediction_type": "epsilon"}
    build = {
        "id": "sdxl-lora",
        "base": base,
        "parts": [{"kind": "lora", "method": method, "files": [file]}],
    }
    document = {"schema": 1, "name": "bench/lora", "version": "1.0.0", "builds": [build]}
    (folder / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())


def publish(path: Path, folder: Path) -> None:
    """Publishes the folder into a new store: every byte hashed, copied and on disk."""
    from conceptry.registry import Registry

    Registry(folder / "home").publish(path.parent)


def import_file(path: Path, folder: Path) -> None:
    """Imports the file into a new store by the command line."""
    from conceptry.cli.main import main

    os.environ["CONCEPTRY_HOME"] = str(folder / "home")
    sys.argv = ["concepts", "import", str(path), "--name", "bench/imported", *ANSWERS]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


TASKS = {
    "sha256": hash_file,
    "copy + fsync": copy_file,
    "publish": publish,
    "concepts import": import_file,
}


def run_task(name: str, path: Path) -> None:
    """Prints the seconds of one task, run in this process, whose modules are imported already."""
    import conceptry.cli.imports
    import conceptry.formats.importing
    import conceptry.registry.publish  # noqa: F401 - the program is running before a file is given to it

    folder = Path(tempfile.mkdtemp(dir=path.parent.parent))
    try:
        started, began = time.perf_counter(), time.process_time()
        TASKS[name](path, folder)
        seconds = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - began,
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(seconds))


def measure(folder: Path, size_bytes: int) -> dict[str, Any]:
    """Returns medians, and what follows from them, for files in ``folder``; prints them."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        package = Path(work) / "package"
        package.mkdir()
        path = package / "lora.safetensors"
        size = make_adapter(path, size_bytes)
        write_package(package, path)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in TASKS}
        for _ in range(RUNS):
            for name in TASKS:
                command = [sys.executable, __file__, "--task", name, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        key: {name: statistics.median(run[key] for run in found) for name, found in runs.items()}
        for key in ("seconds", "processor_seconds")
    }
    seconds, processor = medians["seconds"], medians["processor_seconds"]
    share = max(seconds["sha256"], seconds["copy + fsync"]) / seconds["publish"]
    print(f"{folder}: {size / 1e9:.2f} GB")
    for name, value in seconds.items():
        print(
            f"  {name:16}{value:8.2f} s{size / value / 1e6:8.0f} MB/s{processor[name]:8.2f} s of the processor"
        )
    print(f"  publishing runs at {share:.0%} of the slower (wanted {MIN_SPEED:.0%})")
    figures = {"folder": str(folder), "size_bytes": size, "runs": runs, **medians}
    return {**figures, "speed_share": share, "holds": share >= MIN_SPEED}


if __name__ == "__main__":
    measure_folders("adding a file", measure, run_task)
