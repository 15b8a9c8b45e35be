"""Claim: ten full fine-tunes, packed, take a share of ten checkpoints. ``python benchmarks/byte_planes.py [TUNE BASE]``

TUNE is the canonical file of a trained ``full`` concept and BASE the base's own component; without them, fine-tunes
like those of SD1.5 are drawn: weights of deviation 0.03, changed by 800 steps of Adam at 5e-6, whose direction is
kept for 1, 10 or 100 steps on average. What training really does lies between; only a trained file is a measurement.

Every bit kept, the share cannot be less than the entropy of the change, which grows with its size by weight: one bit
for each doubling. ``floor`` is that entropy, given the exponent of the base's value.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from conceptry.bases import ComponentName
from conceptry.formats.byte_planes import write_planes
from conceptry.formats.full import FullContents
from conceptry.formats.planes import order_values
from conceptry.formats.tensors import RawTensor, read_tensors

ELEMENTS = 2_000_000
STEPS, RATE = 800, 5e-6
DTYPES: dict[str, Any] = {"fp16": np.float16, "fp32": np.float32}
LOSSY_STEP = 1.0


def draw_tune(kept_steps: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns weights and what Adam makes of them: steps of its rate, whose sign is drawn anew now and then."""
    rng = np.random.default_rng(kept_steps)
    base = rng.normal(scale=0.03, size=ELEMENTS)
    moves = STEPS // kept_steps
    change = kept_steps * RATE * (2.0 * rng.binomial(moves, 0.5, size=ELEMENTS) - moves)
    return base, base + change + rng.normal(scale=kept_steps * RATE / 2, size=ELEMENTS)


def measure(base: dict[str, RawTensor], new: dict[str, RawTensor], folder: Path) -> dict[str, float]:
    """Returns the shares with every bit kept and rounded, the floor of the first and the error of the second."""
    contents = FullContents(component=ComponentName("unet"), tensors=new)
    exact = write_planes(folder / "exact.safetensors", contents, base.get)
    rounded = write_planes(folder / "rounded.safetensors", contents, base.get, step=LOSSY_STEP)
    old = np.concatenate([base[name].to_numpy().astype(np.float64).ravel() for name in new])
    tuned = np.concatenate([tensor.to_numpy().astype(np.float64).ravel() for tensor in new.values()])
    return {
        "change_by_weight": float((tuned - old).std() / old.std()),
        "exact": exact.share,
        "floor": measure_floor(base, new),
        "rounded": rounded.share,
        "relative_error": rounded.relative_error,
        "greatest_error": rounded.greatest_error,
    }


def measure_floor(base: dict[str, RawTensor], new: dict[str, RawTensor]) -> float:
    """Returns the entropy of the change given the base's exponent, by the bits of a value; of fp16 alone."""
    if any(tensor.dtype != "F16" for tensor in new.values()):
        return float("nan")
    change = np.concatenate([order_values(new[name]) - order_values(base[name]) for name in new])
    exponents = np.concatenate([np.frombuffer(base[name].data, "<u2") >> 10 & 31 for name in new])
    bits = 0.0
    for exponent in np.unique(exponents):
        counts = np.bincount(change[exponents == exponent])
        shares = counts[counts > 0] / counts.sum()
        bits -= float(counts.sum() * (shares * np.log2(shares)).sum())
    return bits / (16 * len(change))


def main() -> None:
    """Measures and prints."""
    rows: dict[str, tuple[dict[str, RawTensor], dict[str, RawTensor]]] = {}
    for name, dtype in DTYPES.items():
        if len(sys.argv) > 2:
            new, base = (
                {
                    key: RawTensor.from_numpy(one.to_numpy().astype(dtype))
                    for key, one in read_tensors(Path(path)).items()
                }
                for path in sys.argv[1:3]
            )
            rows[f"{Path(sys.argv[1]).name} {name}"] = base, new
            continue
        for kept in (1, 10, 100):
            pair = ({"w": RawTensor.from_numpy(one.astype(dtype))} for one in draw_tune(kept))
            rows[f"drawn, {kept} steps kept, {name}"] = next(pair), next(pair)
    with tempfile.TemporaryDirectory() as folder:
        for name, (base, new) in rows.items():
            found = measure(base, new, Path(folder))
            print(f"{name:34}" + "  ".join(f"{key} {value:.4g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
