"""Where a run computes, and how precisely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from conceptry.errors import UsageError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "float32", "bfloat16"]


def choose_device(name: DeviceName) -> torch.device:
    """Returns the device; ``auto`` takes an accelerator where there is one. Raises UsageError if it is not there."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if present[device]))
    if not present[name]:
        raise UsageError(f"this machine offers no device {name!r}", where="device", hint="--device auto")
    return torch.device(name)


def choose_autocast(name: PrecisionName, device: torch.device) -> torch.dtype | None:
    """Returns the dtype that the denoiser computes in during training; None means float32.

    ``auto`` takes bfloat16 where the hardware multiplies it: CUDA, and processors with avx512_bf16 or AMX.
    """
    if name == "float32":
        return None
    if name == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return None


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Allows only algorithms that give the same bits in every run; on accelerators some have no such form."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
