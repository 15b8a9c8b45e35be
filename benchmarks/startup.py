"""Claim: ``concepts list`` takes at most half of ``hf version``. ``python benchmarks/startup.py [OUT.json]``"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measuring import interleave, report

BIN = Path(sys.executable).parent
RUNS = 15
COMMANDS = {
    "concepts list": ("concepts", "list"),
    "concepts --help": ("concepts", "--help"),
    "hf version (peer)": ("hf", "version"),
}


def make_runner(words: tuple[str, ...], home: str) -> Callable[[], None]:
    """Returns what runs the command once, in a store of its own."""
    environment = {**os.environ, "CONCEPTRY_HOME": home, "HF_HUB_OFFLINE": "1"}

    def run() -> None:
        subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return run


def main() -> None:
    """Measures, prints and writes."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        runners = {name: make_runner(words, str(Path(folder) / "store")) for name, words in COMMANDS.items()}
        report("start-up of the command line", interleave(runners, RUNS), ours="concepts list", out=out)


if __name__ == "__main__":
    main()
