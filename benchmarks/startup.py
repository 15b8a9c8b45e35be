"""Claim: ``concepts list`` takes at most half of ``hf version``. ``python benchmarks/startup.py [OUT.json]``"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from measuring import interleave, make_command, make_environment, report

RUNS = 15
COMMANDS = {
    "concepts list": ("concepts", "list"),
    "concepts --help": ("concepts", "--help"),
    "hf version (peer)": ("hf", "version"),
}


def main() -> None:
    """Measures, prints and writes."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = make_environment(Path(folder), CONCEPTRY_HOME=str(Path(folder) / "store"))
        runners = {name: make_command(words, environment, cpu[name]) for name, words in COMMANDS.items()}
        timings = interleave(runners, RUNS)
    medians = {name: statistics.median(values) for name, values in cpu.items()}
    report("start-up of the command line", timings, ours="concepts list", out=out, cpu_seconds=medians)
    for name, seconds in medians.items():
        print(f"{name + ', processor':36}{1000 * seconds:9.1f} ms{seconds / medians['concepts list']:9.2f}x")


if __name__ == "__main__":
    main()
