"""What an error that nobody expected becomes where several jobs are trained: an error of its own job alone."""

from __future__ import annotations

import traceback

from conceptry.errors import ConceptryError, TrainingError


def explain_fault(error: Exception) -> ConceptryError:
    """Returns ``error`` if it is one for users, else one that names it; neither holds a run's tensors any longer."""
    release_frames(error)
    if isinstance(error, ConceptryError):
        return error
    lines = str(error).splitlines()
    reason = f": {lines[0][:200]}" if lines else ""
    fault = TrainingError(
        f"this job met a fault of the program: {type(error).__name__}{reason}",
        hint="train it alone for the whole report; the other jobs are not touched",
    )
    fault.__cause__ = error
    return fault


def release_frames(error: BaseException | None) -> None:
    """Lets go of what the frames of an error and of its causes hold: with a tuned denoiser that is gigabytes."""
    known: set[int] = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
