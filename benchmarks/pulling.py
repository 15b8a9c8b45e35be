"""Claims: pulling is fast where it matters. ``python benchmarks/pulling.py [OUT.json] [--concepts N] [--large-mb N]``

200 small concepts over a delay of 50 ms a request: at least three times as fast as ``snapshot_download`` of the same
repositories, one request for each missing blob and none for what is known. One large file: no slower than
``snapshot_download`` followed by ``sha256sum`` and ``sync``. The other side is the double of tests/simulators/hub in
a process of its own; the delay is waited before each answer, so that connections are set up for nothing on both sides.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measuring import Timing, describe_machine, interleave, report

sys.path.insert(0, str(Path(__file__).parents[1]))

DELAY_SECONDS = 0.05
SMALL_BYTES = 8192
WORKERS = 16
NAMESPACE = "alice"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--concepts", type=int, default=200, help="0 leaves the small ones out")
    parser.add_argument("--large-mb", type=int, default=2048, help="0 leaves the large file out")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="conceptry-bench-") as folder:
        ours, theirs = multiprocessing.Pipe()
        arguments = (Path(folder) / "hub", theirs, asked.concepts, asked.large_mb << 20)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        server.start()
        theirs.close()
        point_at(ours.recv())
        small = measure_small(Path(folder), ours, asked.concepts, asked.runs) if asked.concepts else {}
        large = measure_large(Path(folder), ours, asked.large_mb << 20, asked.runs) if asked.large_mb else {}
        ours.send(None)
        server.join()
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(
            json.dumps({"machine": describe_machine(), "small": small, "large": large}, indent=2)
        )


def point_at(endpoint: str) -> None:
    """Tells the client, which is not imported yet, where the Hub is."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        os.environ.pop(variable, None)
    switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
    os.environ.update(
        {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **dict.fromkeys(switches, "1")}
    )


def serve(folder: Path, pipe: Connection, concepts: int, large_bytes: int) -> None:
    """Runs the double; a number that is sent is the new delay, answered by the count of requests since the last."""
    from tests.simulators.hub.server import run_hub

    with run_hub(folder) as hub:
        for number in range(concepts):
            add_repository(hub, f"imp-{number}", os.urandom(SMALL_BYTES))
        large = hub.repositories.folder / "large"
        with large.open("wb") as file:
            for _ in range(large_bytes >> 20):
                file.write(os.urandom(1 << 20))
        add_repository(hub, "large", large)
        pipe.send(hub.endpoint)
        while (delay := pipe.recv()) is not None:
            hub.delay_seconds = delay
            counts = Counter(f"{row.method} {'blob' if '/blob/' in row.path else 'other'}" for row in hub.log)
            hub.log.clear()
            pipe.send(dict(counts))


def add_repository(hub: Any, name: str, weights: bytes | Path) -> None:
    """Puts a concept with one file into the double, as a push of ours leaves it."""
    from conceptry.digests import Digest
    from conceptry.manifest import Manifest
    from conceptry.registry.hub_card import make_card
    from conceptry.registry.hub_layout import HubRecord
    from tests.simulators.hub.repositories import Entry

    if isinstance(weights, bytes):
        digest, size = Digest.of_bytes(weights), len(weights)
        hub.repositories.path(digest.hex).write_bytes(weights)
    else:
        digest, size = Digest.of_file(weights), weights.stat().st_size
        weights.rename(hub.repositories.path(digest.hex))
    manifest = Manifest.model_validate(describe(name, digest, size))
    record = HubRecord(concept=manifest.name).with_version(manifest.version)
    documents = {
        "concept.json": manifest.to_bytes(),
        "README.md": make_card(manifest),
        "conceptry.json": record.to_bytes(),
    }
    files = {path: hub.repositories.add_bytes(data) for path, data in documents.items()}
    repository = hub.repositories.create(f"{NAMESPACE}/{name}")
    files["lora.safetensors"] = Entry(digest.hex, size, lfs=True)
    commit = hub.repositories.commit(repository, "1.0.0", files, ())
    repository.tags["v1.0.0"] = commit.oid


def describe(name: str, digest: Any, size: int) -> dict[str, Any]:
    """Returns the manifest of a small LoRA as a document."""
    part = {
        "kind": "lora",
        "method": {"kind": "lora", "rank": 4, "modules": 1, "scale": 1.0},
        "files": [{"path": "lora.safetensors", "size": size, "sha256": str(digest)}],
    }
    base = {"family": "sd1", "architecture": "stable-diffusion-v1", "prediction_type": "epsilon"}
    builds = [{"id": "sd1-lora", "base": base, "parts": [part]}]
    return {"schema": 1, "name": f"{NAMESPACE}/{name}", "version": "1.0.0", "builds": builds}


def measure_small(folder: Path, pipe: Connection, concepts: int, runs: int) -> dict[str, Any]:
    """Returns the timings of many small concepts, and the requests that ours made."""
    names = [f"imp-{number}" for number in range(concepts)]
    runners = {
        "concepts pull": in_fresh_folder(folder, lambda place: pull(place, names)),
        "snapshot_download, one by one (peer)": in_fresh_folder(
            folder, lambda place: download(place, names, 1)
        ),
        f"snapshot_download, {WORKERS} at once (peer)": in_fresh_folder(
            folder, lambda place: download(place, names, WORKERS)
        ),
    }
    ask(pipe, DELAY_SECONDS)
    timings = interleave(runners, runs)
    title = f"{concepts} concepts of {SMALL_BYTES} bytes, {DELAY_SECONDS * 1000:g} ms a request"
    report(title, timings, ours="concepts pull", out=None)
    ask(pipe, 0.0)
    store = folder / "counted"
    pull(store, names)
    first = ask(pipe, 0.0)
    pull(store, names)
    second = ask(pipe, 0.0)
    print(f"requests of a first pull {first}, of a second {second}\n")
    return {"timings": to_rows(timings), "requests_first": first, "requests_second": second}


def measure_large(folder: Path, pipe: Connection, size_bytes: int, runs: int) -> dict[str, Any]:
    """Returns the timings of one large file, its bytes checked and on disk in the end."""
    runners = {
        "concepts pull": in_fresh_folder(folder, lambda place: pull(place, ["large"])),
        "snapshot_download, sha256sum, sync (peer)": in_fresh_folder(folder, download_checked),
    }
    ask(pipe, 0.0)
    timings = interleave(runners, runs)
    report(f"one file of {size_bytes >> 20} MiB", timings, ours="concepts pull", out=None)
    return {"timings": to_rows(timings), "size_bytes": size_bytes}


def ask(pipe: Connection, delay_seconds: float) -> dict[str, int]:
    """Sets the delay and returns how many requests there were since the last time."""
    pipe.send(delay_seconds)
    counts: dict[str, int] = pipe.recv()
    return counts


def in_fresh_folder(folder: Path, work: Callable[[Path], None]) -> Callable[[], None]:
    """Returns what does the work in a folder that is gone afterwards."""

    def run() -> None:
        place = folder / "run"
        work(place)
        shutil.rmtree(place)

    return run


def pull(place: Path, names: list[str]) -> None:
    """Pulls concepts into a store."""
    from conceptry.names import RemoteName
    from conceptry.registry import Registry

    registry = Registry(place)
    if not registry.remotes():
        registry.add_remote(RemoteName("hub"), f"hf://{NAMESPACE}")
    registry.pull_many([f"hub::{NAMESPACE}/{name}@1.0.0" for name in names])


def download(place: Path, names: list[str], workers: int) -> None:
    """Downloads the same repositories with the Hub's own client."""
    from huggingface_hub import snapshot_download

    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(
                snapshot_download, f"{NAMESPACE}/{name}", revision="v1.0.0", cache_dir=place, token=False
            )
            for name in names
        ]
        for job in jobs:
            job.result()


def download_checked(place: Path) -> None:
    """Downloads one repository, reads its bytes for their digest, and waits for the disk: what a pull of ours does."""
    download(place, ["large"], 1)
    (path,) = place.glob("*/snapshots/*/lora.safetensors")
    subprocess.run(["/usr/bin/sha256sum", str(path)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["/usr/bin/sync", "-f", str(path)], check=True)


def to_rows(timings: dict[str, Timing]) -> dict[str, Any]:
    """Returns timings for the JSON file."""
    return {
        name: {"median_seconds": one.median_seconds, "runs": one.seconds} for name, one in timings.items()
    }


if __name__ == "__main__":
    main()
