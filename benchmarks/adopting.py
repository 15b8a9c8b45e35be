"""Claim: adopting a collection reads headers and the notes beside them, copies nothing, and is quick when repeated.

``python benchmarks/adopting.py [OUT.json] [FOLDER]``: 2,000 generated files of all rows of safetensors that the corpus
of ``tests/formats`` draws (``FILES=100`` makes fewer), three of four with the notes of A1111, Civitai Helper or
ComfyUI-Lora-Manager and a preview, are adopted once and again. The data of the files is a hole in the disk, so that
100 GB fit anywhere; adopting never reads it. Beside it, in the same run: reading the header of every file with the
safetensors library, and SHA-256 of one of the files, from which the time of hashing all is reckoned.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import describe_machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FILES = int(os.environ.get("FILES", "2000"))
MAX_FIRST_SECONDS, MAX_AGAIN_SECONDS = 60.0, 5.0
GIB = 1 << 30


def count_bytes(folder: Path) -> int:
    """Returns the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_with_library(paths: list[Path]) -> None:
    """Reads names and shapes of every tensor with the safetensors library, for comparison."""
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, "np") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                opened.get_slice(name).get_shape()


def measure(folder: Path) -> dict[str, Any]:
    """Returns seconds and bytes of adopting a generated collection in ``folder``, and again."""
    from conceptry.registry import Registry
    from tests.fakes.collections import write_collection

    collection = folder / "models"
    paths = write_collection(collection, FILES)
    model_bytes = count_bytes(collection)
    registry = Registry(folder / "home")
    seconds = {}
    for name in ("first", "again"):
        started, started_processor = time.perf_counter(), time.process_time()
        adoption = registry.adopt(collection)
        seconds[name] = time.perf_counter() - started
        seconds[f"{name}, of the processor"] = time.process_time() - started_processor
    started = time.perf_counter()
    read_with_library(paths)
    seconds["headers with the library"] = time.perf_counter() - started
    smallest = min(paths, key=lambda path: abs(path.stat().st_size - (256 << 20)))
    started = time.perf_counter()
    with smallest.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    speed = smallest.stat().st_size / (time.perf_counter() - started)
    states = [file.state for file in adoption.collection.files]
    return {
        "files": len(paths),
        "model_bytes": model_bytes,
        "copied_bytes": count_bytes(folder / "home" / "blobs") if (folder / "home" / "blobs").exists() else 0,
        "store_bytes": count_bytes(folder / "home"),
        "changed_in_folder_bytes": count_bytes(collection) - model_bytes,
        "answers_bytes": adoption.answers.stat().st_size if adoption.answers.exists() else 0,
        "states": {state: states.count(state) for state in sorted(set(states))},
        "seconds": seconds,
        "seconds_to_hash_all_reckoned": model_bytes / speed,
    }


def main() -> int:
    """Prints the table; exit code 1 if the claim does not hold."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        found = measure(Path(folder))
    print(f"{found['files']} files, {found['model_bytes'] / GIB:.1f} GiB, states {found['states']}")
    for name, value in found["seconds"].items():
        print(f"{name:32}{value:9.2f} s")
    print(f"{'hashing all would take':32}{found['seconds_to_hash_all_reckoned']:9.0f} s")
    print(f"{'bytes of models copied':32}{found['copied_bytes']:9}")
    print(f"{'what the store keeps of them':32}{found['store_bytes'] / 1024:9.0f} KiB")
    held = (
        found["seconds"]["first"] < MAX_FIRST_SECONDS
        and found["seconds"]["again"] < MAX_AGAIN_SECONDS
        and found["copied_bytes"] == 0
    )
    print("holds" if held else "does not hold")
    if out is not None:
        document = {"title": "adopting", "machine": describe_machine(), "holds": held, **found}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
