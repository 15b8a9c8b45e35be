"""The denoiser's blocks as compiled code while a run trains through them (torch.compile, in place and block by block).

Blocks of one class and shape share their code, so that compiling takes a fraction of the whole network's. Hooks of
methods are compiled with the blocks that they are on, and watched: where one comes or goes, its block is compiled anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from conceptry.errors import MissingExtraError, UsageError
from conceptry.trainer.denoisers import get_denoiser
from conceptry.trainer.settings import CompileMode, Settings

_BLOCKS: Final = ("BasicTransformerBlock", "ResnetBlock2D")
"""Of UNets. Transformers name theirs themselves (``_repeated_blocks``)."""

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRow:
    """One way to compile."""

    mode: CompileMode
    options: Options
    devices: frozenset[str]


COMPILE_ROWS: Final[tuple[CompileRow, ...]] = (
    CompileRow(mode=True, options={}, devices=frozenset({"cpu", "cuda"})),
    # Launches of a whole block are recorded and replayed as one.
    CompileRow(mode="cuda_graphs", options={"mode": "reduce-overhead"}, devices=frozenset({"cuda"})),
)


@contextmanager
def compiled_blocks(pipeline: Any, settings: Settings, device: torch.device) -> Iterator[None]:
    """Has the denoiser's blocks compiled while the block runs, where ``settings`` ask for it.

    Raises:
        UsageError: if this device has no such way, or the denoiser or method none.
        MissingExtraError: if what compiles for the device is not installed.
    """
    row = find_row(settings, device)
    if row is None:
        yield
        return
    blocks = _list_blocks(get_denoiser(pipeline))
    config: Any = torch._dynamo.config
    with config.patch(skip_nnmodule_hook_guards=False):
        try:
            for block in blocks:
                block.compile(**row.options)
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None


def find_row(settings: Settings, device: torch.device) -> CompileRow | None:
    """Returns how blocks are compiled; None where nobody asks for it. Raises as ``compiled_blocks``."""
    if settings.compile is False:
        return None
    row = next(row for row in COMPILE_ROWS if row.mode == settings.compile)
    if device.type not in row.devices:
        raise UsageError(
            f"compile = {settings.compile} is not for {device.type}",
            where="settings.compile",
            hint="--set compile=true" if device.type == "cpu" else "leave it out",
        )
    if settings.base_precision != "full" or settings.offload_base:
        raise UsageError(
            "layers whose weights are packed or wait elsewhere cannot be compiled",
            where="settings.compile",
            hint="leave compile out, or base_precision and offload_base",
        )
    _require_compiler(device)
    return row


def _list_blocks(denoiser: Any) -> list[nn.Module]:
    names = (*_BLOCKS, *(getattr(denoiser, "_repeated_blocks", None) or ()))
    blocks = [module for module in denoiser.modules() if type(module).__name__ in names]
    if not blocks:
        raise UsageError(
            f"{type(denoiser).__name__} has no blocks that can be compiled one by one",
            where="settings.compile",
            hint="leave it out",
        )
    return blocks


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise MissingExtraError(
                "compiling for CUDA needs the package triton",
                where="settings.compile",
                hint="pip install triton",
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise MissingExtraError(
            f"compiling for a processor needs a C++ compiler: {str(error).splitlines()[0]}",
            where="settings.compile",
            hint="install g++ (or set CXX to one), or leave compile out",
        ) from error
