"""Complete adapter files in the names of other programs, made from the module lists of real base models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from conceptry.formats.tensors import RawTensor, write_tensors

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "formats"
SHARED: Final = Path(__file__).parents[3] / "shared" / "fixtures"

Shape = tuple[int, ...]
Modules = Mapping[str, Shape]


def list_modules(family: str) -> Modules:
    """Return ``unet.{path}``, ``te.{path}``, ``te1.``, ``te2.`` -> weight shape of every layer that can be adapted."""
    if family == "sd2":
        return {name: widen(name, shape) for name, shape in list_modules("sd1").items()}
    schema = json.loads((GOLDEN / f"{family}-kohya.json").read_text(encoding="utf-8"))
    return {
        name.removesuffix(".weight"): tuple(shape)
        for component, tensors in schema.items()
        if component != "vae"
        for name, shape in tensors.items()
        if name.endswith(".weight") and len(shape) in (2, 4) and ".embeddings." not in name
    }


def widen(name: str, shape: Shape) -> Shape:
    """Return the shape of the layer in SD2: cross-attention reads 1024, projections are linear."""
    if name.startswith("te."):
        return tuple({768: 1024, 3072: 4096}[size] for size in shape)
    if name.endswith(("attn2.to_k", "attn2.to_v")):
        return (shape[0], 1024)
    return shape[:2] if name.endswith(("proj_in", "proj_out")) else shape


def factors(shape: Shape, rank: int, seed: int, dtype: type = np.float16) -> tuple[RawTensor, RawTensor]:
    """Return low-rank factors for a weight of ``shape``."""
    generator = np.random.default_rng(seed)
    kernel = shape[2:]
    down: np.ndarray[Any, Any] = generator.standard_normal((rank, shape[1], *kernel)).astype(dtype)
    up: np.ndarray[Any, Any] = generator.standard_normal((shape[0], rank, *(1 for _ in kernel))).astype(dtype)
    return RawTensor.from_numpy(down), RawTensor.from_numpy(up)


def number(value: float, dtype: type = np.float16) -> RawTensor:
    return RawTensor.from_numpy(np.array(value, dtype))


def write_kohya(
    path: Path,
    modules: Modules,
    metadata: Mapping[str, str] | None = None,
    *,
    rank: int = 1,
    alpha: float | None = 0.5,
) -> Path:
    """Return ``path``, where an adapter for ``modules`` was written as sd-scripts writes it."""
    tensors = {}
    for seed, (name, shape) in enumerate(sorted(modules.items())):
        stem = f"lora_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = factors(shape, rank, seed)
        if alpha is not None:
            tensors[f"{stem}.alpha"] = number(alpha)
    write_tensors(path, tensors, metadata)
    return path


def write_dotted(
    path: Path,
    modules: Modules,
    names: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
    **metadata: str,
) -> Path:
    """Return ``path``, where an adapter was written with dotted ``modules`` and the two suffixes."""
    tensors = {}
    for seed, (name, shape) in enumerate(sorted(modules.items())):
        tensors[name + names[0]], tensors[name + names[1]] = factors(shape, 2, seed, np.float32)
    write_tensors(path, tensors, metadata)
    return path
