"""Which matrices of the denoiser a full tuning moves most, by what they do: a figure that claims ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from conceptry.evaluation.bench_methods import find_method
from conceptry.evaluation.bench_running import Bench
from conceptry.evaluation.toybench import BenchSubject

FULL_TUNING: Final = "dreambooth"
OTHER: Final = "moved_other"
# What a weight does, by a part of its name in the layout of diffusers.
MATRICES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "moved_cross_query": ".attn2.to_q.",
        "moved_cross_key": ".attn2.to_k.",
        "moved_cross_value": ".attn2.to_v.",
        "moved_cross_output": ".attn2.to_out.",
    }
)


def measure_moves(unet: Any, attach: Callable[[], AbstractContextManager[Any]]) -> dict[str, float]:
    """Returns |new - old| / |old| (Frobenius norms), the mean over the matrices of each row of ``MATRICES`` and others.

    Args:
        unet: the denoiser, which is as before afterwards.
        attach: puts the concept into the pipeline for the time of a block.
    """
    before = _copy_matrices(unet)
    with attach():
        after = _copy_matrices(unet)
    moves: dict[str, list[float]] = {name: [] for name in (*MATRICES, OTHER)}
    for name, old in before.items():
        group = next((group for group, part in MATRICES.items() if part in name), OTHER)
        moves[group].append(float((after[name] - old).norm() / old.norm().clamp(min=1e-12)))
    return {group: float(np.mean(values)) for group, values in moves.items() if values}


def study_moves(
    bench: Bench, subjects: Sequence[BenchSubject], on_step: Callable[[str], object]
) -> dict[str, dict[str, float]]:
    """Returns each figure by subject; trainings that are there are used again."""
    found: dict[str, dict[str, float]] = {}
    for subject in subjects:
        on_step(f"weights that {FULL_TUNING} moves on {subject.id}")
        bench.prepare(subject)
        taught = find_method(FULL_TUNING, bench.suite).teach(bench.make_lesson(subject))
        for name, value in measure_moves(bench.pipeline.unet, taught.attach).items():
            found.setdefault(name, {})[subject.id] = round(value, 6)
    return found


def _copy_matrices(unet: Any) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", torch.float32, copy=True)
        for name, value in unet.state_dict().items()
        if value.dim() >= 2
    }
