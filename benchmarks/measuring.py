"""What all benchmarks share: interleaved runs, medians and ratios, the machine, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of several runs of one thing."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """The median run."""
        return statistics.median(self.seconds)


def interleave(things: Mapping[str, Callable[[], None]], runs: int) -> dict[str, Timing]:
    """Returns the timings of each thing, run in turn so that a noisy machine is equally unfair to all."""
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for thing in things.values():
        thing()
    for _ in range(runs):
        for name, thing in things.items():
            started = time.perf_counter()
            thing()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(name, tuple(values)) for name, values in seconds.items()}


def make_environment(folder: Path, **more: str) -> dict[str, str]:
    """Returns the environment of commands that are measured: offline, and compiled once, as what is installed is.

    A program whose modules are compiled at each start (``PYTHONDONTWRITEBYTECODE``, an editable installation) takes
    twice as long, and its peer in ``site-packages`` does not.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(folder / "compiled"), "HF_HUB_OFFLINE": "1", **more}


def make_command(
    words: Sequence[str],
    environment: Mapping[str, str],
    cpu_seconds: list[float],
    *,
    folder: Path | None = None,
) -> Callable[[], None]:
    """Returns what runs a command once, in ``folder``, and adds the processor time that it took to ``cpu_seconds``.

    The processor's time says what a machine without other work would take.
    """

    def run() -> None:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{words} ended with {process.returncode}")
        cpu_seconds.append(usage.ru_utime + usage.ru_stime)

    return run


def describe_machine() -> dict[str, Any]:
    """Returns what a reader needs to judge the figures."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def report(title: str, timings: Mapping[str, Timing], *, ours: str, out: Path | None, **more: Any) -> None:
    """Prints a table of medians with ratios to ``ours`` and writes the same as JSON to ``out``."""
    base = timings[ours].median_seconds
    print(title)
    print(f"{'':36}{'median':>12}{'of ours':>10}")
    for timing in timings.values():
        print(f"{timing.name:36}{1000 * timing.median_seconds:9.1f} ms{timing.median_seconds / base:9.2f}x")
    if out is not None:
        rows = {
            name: {"median_seconds": one.median_seconds, "runs": one.seconds} for name, one in timings.items()
        }
        document = {"title": title, "ours": ours, "machine": describe_machine(), "timings": rows, **more}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def measure_folders(
    title: str, measure: Callable[[Path, int], dict[str, Any]], run_task: Callable[[str, Path], None]
) -> None:
    """Measures in each folder of the command line, prints and writes; with ``--task`` runs one task of a measurement.

    Args:
        title: of the JSON document.
        measure: returns the figures of a file of so many bytes in a folder; ``GIB=1`` makes it smaller than 2 GiB.
        run_task: what a process of its own does, by its name and file.
    """
    if sys.argv[1:2] == ["--task"]:
        run_task(sys.argv[2], Path(sys.argv[3]))
        return
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    folders = [Path(text) for text in sys.argv[2:]] or [Path("/dev/shm"), Path("/var/tmp")]  # noqa: S108
    size_bytes = int(float(os.environ.get("GIB", "2")) * (1 << 30))
    found = [measure(folder, size_bytes) for folder in folders]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        document = {"title": title, "machine": describe_machine(), "folders": found}
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
