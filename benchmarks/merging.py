"""Claims: a sum of adapters is cut to a rank hundreds of times faster than by dense decomposition, a whole SDXL pair in
seconds, and a conflict report over a thousand pairs of SDXL adapters takes less than a minute; on one thread.

``python benchmarks/merging.py [OUT.json]``: generated factors of rank 16 on the 722 layers of SDXL's UNet that adapters
train (linear layers of its attention blocks, from the real configuration), written to disk once. Seconds are processor
time, since the machine may do other work; the clock is printed beside them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch
from measuring import describe_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conceptry.composer.conflicts import collect_layers
from conceptry.composer.low_rank import LowRank, add_up, truncate, truncate_dense
from conceptry.composer.low_rank_modules import to_low_rank
from conceptry.composer.spectra import iter_layer_tables
from conceptry.composer.tensors import from_torch
from conceptry.formats.lora import LoraContents, LoraModule, read_lora, write_lora
from tests.formats.networks import list_layers

RANK: Final = 16
CONCEPTS: Final = 46  # 1,035 pairs
WIDE_RANK: Final = 32
RUNS: Final = 5

Shapes = Mapping[str, tuple[int, int]]


def main() -> None:
    """Measures, prints and writes."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    torch.set_num_threads(1)
    shapes = list_shapes()
    print(f"SDXL: {len(shapes)} layers, rank {RANK}")
    rows = [measure_one_layer(), measure_pair(shapes), measure_conflicts(shapes)]
    for row in rows:
        print(f"{row['title']}")
        for name, value in row.items():
            if name != "title":
                print(f"  {name:36}{value:12.4g}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        document = {"title": "merging", "machine": describe_machine(), "rows": rows}
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def list_shapes() -> Shapes:
    """Returns outputs and inputs of the linear layers of SDXL's attention blocks, by name."""
    return {
        name: (shape[0], shape[1])
        for name, shape in list_layers("sdxl").items()
        if name.startswith("unet.") and ".attentions." in name
    }


def measure_one_layer() -> dict[str, Any]:
    """Returns the time to cut two deltas of one 1280 x 1280 layer to rank 32, by factors and densely."""
    pair = [make_delta((1280, 1280), WIDE_RANK, seed) for seed in (1, 2)]

    def by_factors() -> Any:
        return truncate(add_up(pair), WIDE_RANK)

    def densely() -> Any:
        dense = pair[0].to_dense() + pair[1].to_dense()
        return truncate_dense(dense, WIDE_RANK, pair[0], None)

    (found, retained), (expected, dense_retained) = by_factors(), densely()
    error = (found.to_dense() - expected.to_dense()).norm() / expected.to_dense().norm()
    ours = min(take_time(by_factors)[0] for _ in range(4 * RUNS))
    peer = min(take_time(densely)[0] for _ in range(RUNS))
    return {
        "title": "cut a 1280 x 1280 sum of two (rank 32 each) to rank 32",
        "factors_seconds": ours,
        "dense_seconds": peer,
        "times_faster": peer / ours,
        "relative_difference": float(error),
        "retained": retained,
        "retained_densely": dense_retained,
    }


def measure_pair(shapes: Shapes) -> dict[str, Any]:
    """Returns the time to merge a whole pair of SDXL adapters into one of the rank of each."""
    first, second = ({n: make_delta(s, RANK, seed) for n, s in shapes.items()} for seed in (3, 4))

    def merge() -> None:
        for name in shapes:
            truncate(add_up((first[name], second[name])), RANK)

    seconds, clock = min(take_time(merge) for _ in range(3))
    return {
        "title": "cut the sum of a whole SDXL pair",
        "seconds": seconds,
        "clock_seconds": clock,
        "layers": len(shapes),
    }


def measure_conflicts(shapes: Shapes) -> dict[str, Any]:
    """Returns the time of a report over all pairs, from files on the disk to the rows of every layer."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_concept(Path(folder) / f"{place}.safetensors", shapes, place) for place in range(CONCEPTS)
        ]

        def compare() -> Any:
            concepts = [list_readers(path) for path in paths]
            return collect_layers(iter_layer_tables(concepts))

        started, clock = time.process_time(), time.perf_counter()
        rows = compare()
        seconds, clock = time.process_time() - started, time.perf_counter() - clock
    pairs = len(list(combinations(range(CONCEPTS), 2)))
    if len(rows) != pairs or any(len(found) != len(shapes) for found in rows.values()):
        raise SystemExit("a pair or a layer is missing from the report")
    return {
        "title": f"conflict report of {CONCEPTS} SDXL adapters",
        "seconds": seconds,
        "clock_seconds": clock,
        "pairs": pairs,
        "seconds_for_1000_pairs": 1000 * seconds / pairs,
        "mean_cosine_of_random_deltas": sum(row[0].cosine for row in rows[0, 1]) / len(shapes),
    }


def make_delta(shape: tuple[int, int], rank: int, seed: int) -> LowRank:
    """Returns random factors."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], rank, generator=generator)
    return LowRank(up, torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5)


def write_concept(path: Path, shapes: Shapes, seed: int) -> Path:
    """Returns a canonical file of half precision with random factors on every layer."""
    modules = {}
    for number, (name, shape) in enumerate(shapes.items()):
        delta = make_delta(shape, RANK, 1000 * seed + number)
        modules[name] = LoraModule.of_factors(
            down=from_torch(delta.down.half()), up=from_torch(delta.up.half()), alpha=float(RANK)
        )
    write_lora(path, LoraContents(modules=modules))
    return path


def list_readers(path: Path) -> dict[str, Callable[[], LowRank]]:
    """Returns what reads each delta of a file, when it is asked for."""
    return {name: partial(_read, module) for name, module in read_lora(path).modules.items()}


def _read(module: LoraModule) -> LowRank:
    delta = to_low_rank(module)
    if delta is None:
        raise SystemExit("a generated module has no factors")
    return delta


def take_time(thing: Callable[[], Any]) -> tuple[float, float]:
    """Returns the processor's seconds and the clock's of one run."""
    started, clock = time.process_time(), time.perf_counter()
    thing()
    return time.process_time() - started, time.perf_counter() - clock


if __name__ == "__main__":
    main()
