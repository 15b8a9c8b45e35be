"""What helps when a device has no memory left: one table for the run that fails and for the check before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from conceptry.errors import TrainingError
from conceptry.trainer.jobs import ResolvedJob
from conceptry.trainer.settings import Settings


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change of a job that lowers its peak of memory."""

    option: Callable[[Settings], str]
    """What to add to the command."""

    helps: Callable[[Settings], bool]
    effect: str


def _share_batch(settings: Settings) -> str:
    return f"--set accumulation_steps={min(settings.batch_size, 2 * settings.accumulation_steps)}"


REMEDIES: Final[tuple[Remedy, ...]] = (
    Remedy(
        _share_batch,
        lambda settings: settings.accumulation_steps < settings.batch_size,
        "fewer pictures at once, the same result",
    ),
    Remedy(
        lambda _: "--set gradient_checkpointing=true",
        lambda settings: not settings.gradient_checkpointing,
        "activations are computed twice",
    ),
    Remedy(
        lambda _: "--set optimizer=adamw_8bit",
        lambda settings: settings.optimizer == "adamw",
        "a quarter of the optimizer's memory",
    ),
    Remedy(
        lambda _: "--set base_precision=int8",
        lambda settings: settings.base_precision == "full",
        "on an accelerator, frozen weights in a quarter of the memory",
    ),
    Remedy(
        lambda _: "--set offload_base=true",
        lambda settings: not settings.offload_base,
        "on an accelerator, frozen weights in the host's memory: slower",
    ),
    Remedy(
        lambda settings: f"--set batch_size={max(1, settings.batch_size // 2)}",
        lambda settings: settings.batch_size > 1,
        "fewer pictures in each update",
    ),
    Remedy(
        lambda settings: f"--set resolution_pixels={(settings.resolution_pixels or 1024) // 2}",
        lambda settings: True,
        "smaller pictures",
    ),
)


def iter_remedies(settings: Settings) -> Iterator[Remedy]:
    """Returns what would lower the peak of memory, what costs least first."""
    return (remedy for remedy in REMEDIES if remedy.helps(settings))


def suggest_remedies(settings: Settings, *, limit: int = 2) -> str:
    """Returns the options to try, in words."""
    options = [f"{remedy.option(settings)} ({remedy.effect})" for remedy in iter_remedies(settings)]
    return ", or ".join(options[:limit])


_WORDS: Final = ("not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory")
"""What allocators say that raise no error of their own: torch's of Windows, of accelerators, and of Linux."""


def is_exhaustion(error: BaseException) -> bool:
    """Returns whether a device or the machine had no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def explain_exhaustion(error: BaseException, job: ResolvedJob, *, together: int = 1) -> TrainingError:
    """Returns the error to raise in the place of the allocator's: what to lower."""
    hint = suggest_remedies(job.settings)
    if together > 1:
        hint = f"--together {together // 2}, or {hint}"
    return TrainingError(f"the device has no memory left for this job: {_find_reason(error)}", hint=hint)


def _find_reason(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


@contextmanager
def explained_exhaustion(job: ResolvedJob | None = None) -> Iterator[None]:
    """Raises TrainingError in the place of the allocator's error, while the block runs.

    Without a job it is the base alone that did not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        if job is not None:
            raise explain_exhaustion(error, job) from error
        raise TrainingError(
            f"the device has no memory left for the base: {_find_reason(error)}",
            hint="end other programs that use it, or take a smaller base",
        ) from error
