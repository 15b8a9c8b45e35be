"""What a method of another package may not do: spend more than the budget, change the base, end the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from conceptry.errors import ConceptryError, TrainingError
from conceptry.evaluation.bench_methods import BenchMethod, Taught

_MODULES = ("unet", "text_encoder", "text_encoder_2", "vae")


class PassCount:
    """How many pictures went through a denoiser that learned from them."""

    def __init__(self) -> None:
        self.pictures = 0

    def note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Counts one pass, as a hook of torch."""
        sample = args[0] if args else kwargs.get("sample")
        if torch.is_grad_enabled() and isinstance(sample, torch.Tensor):
            self.pictures += int(sample.shape[0])


@contextmanager
def count_passes_through(denoiser: Any) -> Iterator[PassCount]:
    """Gives the count of pictures that go through a denoiser with gradients while the block runs."""
    count = PassCount()
    handle = denoiser.register_forward_pre_hook(count.note, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def refuse_overspending(method: BenchMethod, taught: Taught, counted: PassCount, budget: int) -> None:
    """Raises TrainingError for a method that took more than ``budget`` by its own account or, of a guest, by ours."""
    spent = max(taught.sample_passes, counted.pictures if method.origin is not None else 0)
    if budget and spent > budget:
        raise TrainingError(
            f"it spent {spent} sample passes of {budget}, so it is not compared",
            hint="every method gets the same budget: see Lesson.sample_passes, or --passes",
        )


def explain_failure(method: BenchMethod, error: Exception) -> ConceptryError:
    """Returns what a method raised as an error for people, with the entry point that it came from."""
    if isinstance(error, ConceptryError):
        return error
    said = f"{type(error).__name__}: {error}"[:300]
    if method.origin is None:
        return TrainingError(f"the method failed: {said}")
    return TrainingError(
        f"the method of the entry point {method.origin!r} failed: {said}",
        hint="ask the package that it comes from, or name other methods with --method",
    )


def explain_change(method: BenchMethod) -> ConceptryError:
    """Returns why nothing is measured after a method that left the base otherwise than it was."""
    return TrainingError(
        f"{method.id} (entry point {method.origin!r}) changed the weights of the base, so its row is not kept and the "
        "run ends here",
        hint="name other methods with --method: a new run opens the base anew",
    )


def digest_weights(pipeline: Any) -> str:
    """Returns a digest of all weights of an open pipeline, each byte of them."""
    whole = hashlib.sha256()
    for part in _MODULES:
        module = getattr(pipeline, part, None)
        for name, value in sorted(module.state_dict().items()) if module is not None else ():
            whole.update(f"{part}.{name}{tuple(value.shape)}{value.dtype}".encode())
            whole.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()
