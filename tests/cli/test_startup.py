"""The command line starts quickly, in real processes."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.packages import write_package

CONCEPTS = str(Path(sys.executable).with_name("concepts"))
HF = shutil.which("hf", path=str(Path(sys.executable).parent))
LOADED = """
import sys
from conceptry.cli.main import main
sys.argv = ["concepts", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "pydantic",
    "sqlite_utils",
    "huggingface_hub",
    "numpy",
    "rich",
    "PIL",
}


def list_loaded(*words: str) -> set[str]:
    finished = subprocess.run(
        [sys.executable, "-c", LOADED, *words], check=False, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    return set(finished.stderr.split())


def measure_cpu_seconds(*words: str, compiled: Path) -> float:
    """Returns the processor time of one run, which other programs disturb less than the clock on the wall.

    Modules are compiled once, as those of what is installed are, also where the machine forbids it for what is edited.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPYCACHEPREFIX": str(compiled)}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["list"], ["list", "--json"], ["search", "imp"]]
)
def test_quick_looks_load_no_heavy_library(run: Run, imp: str, words: list[str]) -> None:
    run("list")  # the index is there
    assert list_loaded(*words) & HEAVY == set()


def test_identifying_a_file_loads_no_heavy_library(run: Run, tmp_path: Path) -> None:
    file = next(write_package(tmp_path / "given").glob("*.safetensors"))
    assert list_loaded("identify", str(file)) & HEAVY == set()


@pytest.mark.parametrize("words", [["show", "me/imp"], ["verify"], ["base", "list"], ["remote", "list"]])
def test_looking_and_sharing_load_no_torch(run: Run, imp: str, words: list[str]) -> None:
    assert list_loaded(*words) & {"torch", "diffusers", "transformers"} == set()


@pytest.mark.skipif(HF is None, reason="the Hub's own command line is not installed")
def test_list_takes_at_most_half_of_the_hubs_own_command(run: Run, imp: str, tmp_path: Path) -> None:
    run("list")
    for words in ((CONCEPTS, "list"), (str(HF), "version")):
        measure_cpu_seconds(*words, compiled=tmp_path)
    ours, theirs = [], []
    for _ in range(7):
        ours.append(measure_cpu_seconds(CONCEPTS, "list", compiled=tmp_path))
        theirs.append(measure_cpu_seconds(str(HF), "version", compiled=tmp_path))
    assert statistics.median(ours) <= statistics.median(theirs) / 2
