"""Claim: a file is identified from its header alone, in under 50 ms and 50 MB, and never as what it is not.

``python benchmarks/identify.py [OUT.json] [COUNT]``: COUNT (1,000) generated files of all rows, written as a header and
a hole, each identified alone, three times: the first time is kept, and the best, which is what the work takes where
others use the machine too; the largest once more in a process of its own, whose memory is compared with that of
an interpreter that does nothing. The peer is ``safe_open`` of safetensors, which lists names and shapes and judges
nothing.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from measuring import describe_machine
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conceptry.formats.identify import identify
from tests.formats.corpus import Case, draw_cases, judge_family
from tests.formats.sparse import write_sparse

COUNT = 1000
REPEATS = 3
LIMIT_SECONDS = 0.05
LIMIT_BYTES = 50 << 20
LARGE_BYTES = 2 << 30
# The high-water mark of this program alone: ru_maxrss would still hold that of the process which started it.
_PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
_ALONE = (
    "import sys; from pathlib import Path; from conceptry.formats.identify import identify; "
    "identify(Path(sys.argv[1])); " + _PEAK
)


def measure(path: Path, case: Case) -> dict[str, Any]:
    """Returns the seconds that identifying takes, and what is right and wrong of the answer."""
    gc.collect()
    gc.freeze()  # what the generator made is no part of what is measured
    times = []
    for _ in range(REPEATS):
        wall, processor = time.perf_counter(), time.process_time()
        found = identify(path)
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    started = time.process_time()
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  # not a mapping
            file.get_slice(name).get_shape()
    peer = time.process_time() - started
    return {
        "first_seconds": times[0][0],
        "seconds": min(times)[0],
        "processor_seconds": min(busy for _, busy in times),
        "peer_processor_seconds": peer,
        "bytes": path.stat().st_size,
        "tensors": len(case.shapes),
        "kind": found.kind == case.kind,
        "dialect": found.dialect in case.dialects,
        "complete": found.coverage.complete or found.kind == "unknown",
        "family": judge_family(case, found.family, found.reasons, found.family_is_certain),
    }


def measure_memory(path: Path) -> int:
    """Returns the bytes by which a process that identifies ``path`` is larger than an idle interpreter."""
    peaks = [
        int(subprocess.run([sys.executable, "-c", *code], check=True, capture_output=True, text=True).stdout)
        for code in ([_PEAK], [_ALONE, str(path)])
    ]
    return (peaks[1] - peaks[0]) << 10


def main() -> None:
    """Measures, prints and writes."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    count = int(sys.argv[2]) if len(sys.argv) > 2 else COUNT
    rows: list[dict[str, Any]] = []
    memory = largest = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(draw_cases(count)):
            dtype = "F64" if number % 2 else "F32"
            path = write_sparse(
                Path(folder) / f"{number}.safetensors", case.shapes, case.metadata, dtype=dtype
            )
            rows.append(measure(path, case))
            if path.stat().st_size > largest:
                largest, memory = path.stat().st_size, measure_memory(path)
            path.unlink()
    report(rows, memory, out)


def report(rows: list[dict[str, Any]], memory: int, out: Path | None) -> None:
    """Prints the table and writes the same as JSON."""
    large = [row for row in rows if row["bytes"] >= LARGE_BYTES]
    print(
        f"{len(rows)} files, {len(large)} of them of 2 GB and more, "
        f"{max(row['tensors'] for row in rows)} tensors at most"
    )
    summary: dict[str, Any] = {
        "files": len(rows),
        "large_files": len(large),
        "peak_bytes_above_interpreter": memory,
    }
    print(f"{'':38}{'median':>10}{'p99':>10}{'max':>10}")
    for label, chosen in (("all", rows), ("2 GB and more", large)):
        for key in ("first_seconds", "seconds", "processor_seconds", "peer_processor_seconds"):
            values = sorted(row[key] for row in chosen) or [0.0]
            cuts = {
                "median": statistics.median(values),
                "p99": values[int(0.99 * (len(values) - 1))],
                "max": values[-1],
            }
            summary[f"{label}: {key}"] = cuts
            print(f"{f'{label}, {key}':38}" + "".join(f"{1000 * value:7.1f} ms" for value in cuts.values()))
    print(f"{'memory above the interpreter':38}{memory / (1 << 20):7.1f} MB")
    wrong = {key: sum(not row[key] for row in rows) for key in ("kind", "dialect", "complete")}
    families = Counter(row["family"] for row in rows)
    print(
        f"wrong kinds {wrong['kind']}, wrong dialects {wrong['dialect']}, not wholly explained {wrong['complete']}"
    )
    print("families: " + ", ".join(f"{word} {number}" for word, number in families.most_common()))
    summary |= {"wrong": wrong, "families": dict(families), "machine": describe_machine()}
    slow = sum(row["seconds"] > LIMIT_SECONDS for row in rows)
    print(f"{slow} files took more than {1000 * LIMIT_SECONDS:.0f} ms")
    right = not wrong["kind"] and not families["wrong"]
    summary |= {"over_limit": slow, "limit_seconds": LIMIT_SECONDS, "limit_bytes": LIMIT_BYTES}
    summary["holds"] = {"right": right, "memory": memory < LIMIT_BYTES, "time": not slow}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
