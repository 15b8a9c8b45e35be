"""Pictures in, a finished concept out: four methods as rows of one loop.

``train(TrainJob(...))`` is all that most callers need; reading a job loads no torch, training one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptry.trainer.events import TrainEvent
    from conceptry.trainer.jobs import TrainJob, make_job, read_job
    from conceptry.trainer.training import TrainResult, train

__all__ = ["TrainEvent", "TrainJob", "TrainResult", "make_job", "read_job", "train"]

_MODULES = {
    "TrainEvent": "events",
    "TrainJob": "jobs",
    "make_job": "jobs",
    "read_job": "jobs",
    "TrainResult": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
