"""Pictures in, a finished concept out: methods as rows of one loop, for one job or for a thousand.

``train(TrainJob(...))`` is all that most callers need, ``train_many`` takes several; reading a job loads no torch,
training one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptry.trainer.doctor import TrainPlan
    from conceptry.trainer.events import TrainEvent
    from conceptry.trainer.jobfiles import read_jobs
    from conceptry.trainer.jobs import TrainJob, make_job, read_job
    from conceptry.trainer.many import JobOutcome, ManyOptions, train_many
    from conceptry.trainer.training import TrainResult, plan, train

__all__ = [
    "JobOutcome",
    "ManyOptions",
    "TrainEvent",
    "TrainJob",
    "TrainPlan",
    "TrainResult",
    "make_job",
    "plan",
    "read_job",
    "read_jobs",
    "train",
    "train_many",
]

_MODULES = {
    "JobOutcome": "many",
    "ManyOptions": "many",
    "TrainEvent": "events",
    "TrainJob": "jobs",
    "TrainPlan": "doctor",
    "TrainResult": "training",
    "make_job": "jobs",
    "plan": "training",
    "read_job": "jobs",
    "read_jobs": "jobfiles",
    "train": "training",
    "train_many": "many",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
