"""How near a run comes to what its device can multiply: operations counted in one step, a ceiling measured before."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Products this large run at the device's full speed and take a fraction of a second in all.
_SIDES: Final = {"cuda": 8192}
_USUAL_SIDE: Final = 512
_ROUNDS: Final = 8
_PRODUCTS: Final = 4


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiplications and additions of matrix products and convolutions while it is entered.

    What is computed stays as it is. ``operations`` counts a multiplication and an addition as two, backward passes
    included, by the formulas of torch's own table; what the table lacks counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Carries out the operation and adds what it costs."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=result)
        return result


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations a second of large matrix products on ``device``: the best of some rounds."""
    side = _SIDES.get(device.type, _USUAL_SIDE)
    # Chance belongs to the run; equal numbers would multiply too fast.
    own = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, dtype=dtype, generator=own) for _ in range(2))
    best = 0.0
    for _ in range(_ROUNDS):
        _wait(device)
        started = time.perf_counter()
        for _ in range(_PRODUCTS):
            left @ right
        _wait(device)
        best = max(best, _PRODUCTS * 2 * side**3 / (time.perf_counter() - started))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
