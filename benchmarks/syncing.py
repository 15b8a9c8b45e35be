"""Claim: re-sync of an unchanged project of 500 concepts takes under 0.2 s. ``python benchmarks/syncing.py [OUT.json]``

A project of 500 concepts is published to a folder, locked and synced once; then ``concepts sync`` runs as a process,
beside ``hf version`` (the peer's own start) and a bare interpreter.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from measuring import interleave, make_command, make_environment, report

CONCEPTS = 500
RUNS = 11


def make_project(folder: Path) -> dict[str, float]:
    """Returns how long locking and the first sync took, in seconds, of a project that is synced now."""
    from conceptry.digests import Digest
    from conceptry.manifest import Manifest
    from conceptry.registry import Registry
    from conceptry.registry.workspace import Workspace

    studio = Registry(folder / "studio")
    uri = (folder / "remote").as_uri()
    base = {"family": "sd1", "architecture": "stable-diffusion-v1", "prediction_type": "epsilon"}
    method = {"kind": "lora", "rank": 4, "modules": 1, "scale": 1.0}
    for number in range(CONCEPTS):
        data = f"weights {number}".encode() * 50
        file = {"path": "lora.safetensors", "size": len(data), "sha256": str(Digest.of_bytes(data))}
        build = {"id": "lora", "base": base, "parts": [{"kind": "lora", "method": method, "files": [file]}]}
        document = {"schema": 1, "name": f"me/c{number:03}", "version": "1.0.0", "builds": [build]}
        made = folder / "made" / str(number)
        made.mkdir(parents=True)
        (made / "concept.json").write_bytes(Manifest.model_validate(document).to_bytes())
        (made / "lora.safetensors").write_bytes(data)
        studio.publish(made)
        studio.push(f"me/c{number:03}@1.0.0", uri)
    project = folder / "project"
    project.mkdir()
    rows = "\n".join(f'"me/c{number:03}" = "^1"' for number in range(CONCEPTS))
    (project / "concepts.toml").write_text(
        f'[concepts]\n{rows}\n\n[remotes]\nstudio = "{uri}"\n', encoding="utf-8"
    )
    workspace = Workspace(Registry(folder / "store"), project)
    started = time.perf_counter()
    workspace.lock()
    locked = time.perf_counter()
    workspace.sync(workspace.check())
    return {"lock_seconds": locked - started, "first_sync_seconds": time.perf_counter() - locked}


def main() -> None:
    """Measures, prints and writes."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    commands = {
        "concepts sync": ("concepts", "sync"),
        "concepts sync --frozen --offline": ("concepts", "sync", "--frozen", "--offline"),
        "hf version (peer)": ("hf", "version"),
        "bare interpreter": ("python", "-c", "pass"),
    }
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:  # noqa: S108  # memory
        made = make_project(Path(folder))
        environment = make_environment(Path(folder), CONCEPTRY_HOME=str(Path(folder) / "store"))
        runners = {
            name: make_command(words, environment, cpu[name], folder=Path(folder) / "project")
            for name, words in commands.items()
        }
        timings = interleave(runners, RUNS)
    medians = {name: statistics.median(values) for name, values in cpu.items()}
    title = f"re-sync of an unchanged project of {CONCEPTS} concepts"
    report(title, timings, ours="concepts sync", out=out, cpu_seconds=medians, **made)
    for name, seconds in {**{f"{name}, processor": value for name, value in medians.items()}, **made}.items():
        print(f"{name:46}{1000 * seconds:9.1f} ms")


if __name__ == "__main__":
    main()
