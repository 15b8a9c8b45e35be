"""Claims about large stores. ``python benchmarks/index.py [--concepts N] [--words N] [OUT.json]``

Over 100,000 concepts: the index is rebuilt at 5,000 manifests/s or more; ``concepts list`` (100 rows and the count) and
``concepts search`` as processes take at most half of ``hf version`` in the same run; ``concepts list --all`` streams
200,000 rows/s or more (its time less that of ``list --limit 1``). Over 1,000,000 versions: full-text search inside a
process has a 99th percentile of at most 10 ms for the first 100 rows and their count.

How long one more version takes to publish there, whose index is copied, is printed and no claim.

The processor's time stands beside the clock's: it is what a machine without other work would take.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from measuring import Timing, interleave, make_command, make_environment, report
from stores import WORDS, fill_store, iter_documents

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RUNS = 7
QUERIES = 1000
COMMANDS = {
    "concepts list": ("concepts", "list"),
    "concepts search imp": ("concepts", "search", "imp"),
    "concepts search copper": ("concepts", "search", "copper", "dragon"),
    "concepts list --limit 1": ("concepts", "list", "--limit", "1"),
    "concepts list --all": ("concepts", "list", "--all"),
    "concepts list --all --quiet": ("concepts", "list", "--all", "--quiet"),
    "hf version (peer)": ("hf", "version"),
}


def measure_rebuild(root: Path, count: int) -> dict[str, float]:
    """Returns how many manifests a second the index is made of, by the clock and by the processor's time."""
    from conceptry.registry import Registry
    from conceptry.registry.index import rebuild_index

    store = Registry(root).store
    rates: dict[str, float] = {}
    for _ in range(2):
        started, processor = time.perf_counter(), time.process_time()
        rebuild_index(store)
        seconds, cpu = time.perf_counter() - started, time.process_time() - processor
        rates["rebuilt_per_second"] = max(rates.get("rebuilt_per_second", 0), count / seconds)
        rates["rebuilt_per_cpu_second"] = max(rates.get("rebuilt_per_cpu_second", 0), count / cpu)
    return rates


def measure_publishing(root: Path, folder: Path) -> dict[str, float]:
    """Returns the milliseconds of publishing one more small version: the index of all others is copied for it."""
    from conceptry.registry import Registry
    from tests.registry.folders import write_folder

    registry, seconds, cpu = Registry(root), [], []
    for number in range(RUNS):
        package = write_folder(folder / f"new-{number}", name=f"me/new-{number}")
        started, processor = time.perf_counter(), time.process_time()
        registry.publish(package)
        seconds.append(1000 * (time.perf_counter() - started))
        cpu.append(1000 * (time.process_time() - processor))
    return {"publish_ms": statistics.median(seconds), "publish_cpu_ms": statistics.median(cpu)}


def measure_search(folder: Path, count: int) -> dict[str, Any]:
    """Returns the median and the 99th percentile of full-text searches over ``count`` versions, in milliseconds.

    The index is filled with the rows that manifests would have given, without writing their files.
    """
    from sqlite_utils import Database

    from conceptry.digests import Digest
    from conceptry.names import ConceptName, Reference, parse_version
    from conceptry.registry.entries import Entry, choose_latest, make_entry
    from conceptry.registry.index import fill_index
    from conceptry.registry.listing import Filter, query_search
    from conceptry.registry.refs import Resolved
    from conceptry.registry.rows import seal_row

    def make(document: dict[str, Any]) -> Entry:
        number = parse_version(document["version"])
        reference = Reference(ConceptName.parse(document["name"]), number)
        entry = make_entry(Resolved(reference, Digest.of_bytes(str(reference).encode())), document, "pulled")
        choose_latest([(number, entry.row)], {})
        return Entry(seal_row(entry.row), entry.files)

    database = Database(folder / "large.sqlite", execute_plugins=False)
    with closing(database.conn):
        started = time.perf_counter()
        fill_index(database, map(make, iter_documents(count)), lambda: "benchmark")
        filled = time.perf_counter() - started
        rng, known = random.Random(1), WORDS.split()
        seconds, cpu, found = [], [], 0
        for number in range(QUERIES):
            words = rng.choices(known, k=1 + number % 3)
            words[-1] = words[-1][: rng.randint(3, 9)]  # as somebody types
            started, processor = time.perf_counter(), time.thread_time()
            found += query_search(database.conn, " ".join(words), Filter(limit=100, most_found=300)).count
            seconds.append(1000 * (time.perf_counter() - started))
            cpu.append(1000 * (time.thread_time() - processor))
        size = (folder / "large.sqlite").stat().st_size
    return {
        "searched_rows": count,
        "median_ms": statistics.median(seconds),
        "p99_ms": statistics.quantiles(seconds, n=100)[-1],
        "median_cpu_ms": statistics.median(cpu),
        "p99_cpu_ms": statistics.quantiles(cpu, n=100)[-1],
        "found_per_query_of_300": found / QUERIES,
        "fill_seconds": filled,
        "index_bytes": size,
    }


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=100_000, help="0 leaves the commands out")
    parser.add_argument("--words", type=int, default=1_000_000, help="0 leaves the full-text search out")
    parser.add_argument("out", nargs="?", type=Path)
    chosen = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # memory
    figures: dict[str, Any] = {"concepts": chosen.concepts}
    timings: dict[str, Timing] = {}
    cpu: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory(dir=memory) as text:
        folder = Path(text)
        if chosen.words:
            figures |= measure_search(folder, chosen.words)
        if chosen.concepts:
            fill_store(folder / "store", chosen.concepts)
            figures |= measure_rebuild(folder / "store", chosen.concepts)
            environment = make_environment(folder, CONCEPTRY_HOME=str(folder / "store"))
            runners = {name: make_command(words, environment, cpu[name]) for name, words in COMMANDS.items()}
            timings = interleave(runners, RUNS)
            figures |= compare(
                chosen.concepts, {name: one.median_seconds for name, one in timings.items()}, ""
            )
            figures |= compare(
                chosen.concepts, {name: statistics.median(one) for name, one in cpu.items()}, "_cpu"
            )
            figures |= measure_publishing(folder / "store", folder)
    if timings:
        report("a large store", timings, ours="concepts list", out=chosen.out, **figures)
    for name, value in figures.items():
        print(f"{name:46}{value:14,.2f}")


def compare(count: int, medians: dict[str, float], ending: str) -> dict[str, float]:
    """Returns the ratios to the peer and the rows a second, of medians by the clock or by the processor."""
    peer, start = medians["hf version (peer)"], medians["concepts list --limit 1"]
    return {
        f"peer_by_list{ending}": peer / medians["concepts list"],
        f"peer_by_search{ending}": peer
        / max(medians["concepts search imp"], medians["concepts search copper"]),
        f"rows_per_second{ending}": count / (medians["concepts list --all"] - start),
        f"quiet_rows_per_second{ending}": count / (medians["concepts list --all --quiet"] - start),
    }


if __name__ == "__main__":
    main()
