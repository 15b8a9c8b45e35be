"""Many jobs on a Ray cluster: parts of them are its tasks, each trains its part as ``train_many`` does anywhere.

Jobs and outcomes travel as plain data, and concepts by the folder that they were written to, which all machines must
see under one path. A task that its machine lost is begun again by Ray and goes on from its checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from conceptry import errors
from conceptry.concepts import open_concept
from conceptry.errors import ConceptryError, InterruptedByUserError, MissingExtraError, TrainingError
from conceptry.trainer.finish import RECORD_NAME
from conceptry.trainer.folders import locate_home
from conceptry.trainer.jobs import TrainJob, find_repeated, group_by_base, make_job
from conceptry.trainer.many import JobOutcome, ManyOptions, train_many
from conceptry.trainer.staging import TrainResult

_FACTS: Final = ("steps", "seconds", "fixed_loss_before", "fixed_loss_after")


@dataclass(frozen=True, slots=True)
class _Part:
    """Jobs of one task, by their places among all."""

    places: tuple[int, ...]
    texts: list[dict[str, Any]]


def train_on_ray(jobs: Sequence[TrainJob], options: ManyOptions) -> list[JobOutcome]:
    """Returns for each job, in the order of ``jobs``, its concept or its error.

    The cluster is the one that ``RAY_ADDRESS`` names, else one of this machine alone, which ends with the call. A task
    has ``options.together`` jobs of one base, and a GPU where the cluster has any.

    Raises:
        MissingExtraError: if Ray is not installed.
        InterruptedByUserError: after Ctrl-C; what was begun can be resumed.
    """
    repeated = find_repeated(jobs)
    outcomes = {place: JobOutcome(job=jobs[place], error=error) for place, error in repeated.items()}
    for outcome in outcomes.values():
        options.on_outcome(outcome)
    told = _describe_options(options)
    with _cluster() as ray:
        resources = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        task = ray.remote(**resources)(_train_part)
        waiting = {
            task.remote(part.texts, told): part for part in _iter_parts(jobs, options.together, repeated)
        }
        try:
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                part = waiting.pop(done)
                for place, outcome in zip(part.places, _collect(ray, done, part, jobs), strict=True):
                    outcomes[place] = outcome
                    options.on_outcome(outcome)
        except KeyboardInterrupt as error:
            for reference in waiting:
                ray.cancel(reference)
            raise InterruptedByUserError(
                f"training was stopped with {len(outcomes)} of {len(jobs)} jobs done",
                hint="repeat the command with --resume; what is finished is skipped",
            ) from error
    return [outcomes[place] for place in range(len(jobs))]


@contextmanager
def _cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            f"the engine ray needs the package ray, which cannot be imported: {error}",
            hint="pip install 'conceptry[ray]', or leave --engine out",
        ) from error
    opened = not ray.is_initialized()
    if opened:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    try:
        yield ray
    finally:
        if opened:
            ray.shutdown()


def _iter_parts(jobs: Sequence[TrainJob], together: int, left_out: Container[int] = ()) -> Iterator[_Part]:
    for places in group_by_base(jobs, left_out):
        for start in range(0, len(places), max(1, together)):
            part = tuple(places[start : start + max(1, together)])
            yield _Part(part, [_write_job(jobs[place]) for place in part])


def _write_job(job: TrainJob) -> dict[str, Any]:
    """Returns the job as text that says the same from any folder."""
    said = job.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    said["images"] = str(job.images.absolute())
    if job.captions is not None:
        said["captions"] = str(job.captions.absolute())
    for own, one in zip(said.get("also", ()), job.also, strict=True):
        own["images"] = str(one.images.absolute())
    return said


def _describe_options(options: ManyOptions) -> dict[str, Any]:
    home = locate_home()
    return {
        "workdir": str((options.workdir or home).absolute()),
        "cache_folder": str((options.cache_folder or home / "cache").absolute()),
        "together": options.together,
        "named_bases": {name: str(path) for name, path in options.named_bases.items()},
    }


# --- in a task -----------------------------------------------------------------------------------------------------


def _train_part(texts: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what became of each job, as plain data."""
    options = ManyOptions(
        workdir=Path(told["workdir"]),
        cache_folder=Path(told["cache_folder"]),
        resume=True,  # a task that was begun before, on a machine that is gone, goes on
        together=told["together"],
        named_bases={name: Path(path) for name, path in told["named_bases"].items()},
    )
    return [_describe(outcome) for outcome in train_many([make_job(text) for text in texts], options)]


def _describe(outcome: JobOutcome) -> dict[str, Any]:
    result, error = outcome.result, outcome.error
    if result is None:
        lost = error or TrainingError("the job has no result")
        return {"error": type(lost).__name__, "message": lost.message, "where": lost.where, "hint": lost.hint}
    return {"folder": str(result.folder), **{name: getattr(result, name) for name in _FACTS}}


# --- in the process that asked -------------------------------------------------------------------------------------


def _collect(ray: Any, reference: Any, part: _Part, jobs: Sequence[TrainJob]) -> list[JobOutcome]:
    mine = [jobs[place] for place in part.places]
    try:
        said = ray.get(reference)
    except ray.exceptions.RayError as error:
        lost = TrainingError(
            f"the task of {len(mine)} jobs was lost: {str(error).splitlines()[0][:200]}",
            hint="repeat the command with --resume; what is finished is skipped",
        )
        return [JobOutcome(job=job, error=lost) for job in mine]
    return [_read_outcome(job, one) for job, one in zip(mine, said, strict=True)]


def _read_outcome(job: TrainJob, said: Mapping[str, Any]) -> JobOutcome:
    if "folder" not in said:
        kind = getattr(errors, said["error"], TrainingError)
        usual = isinstance(kind, type) and issubclass(kind, ConceptryError)
        made = (kind if usual else TrainingError)(said["message"], where=said["where"], hint=said["hint"])
        return JobOutcome(job=job, error=made)
    folder = Path(said["folder"])
    try:
        concept = open_concept(folder)
    except ConceptryError as error:
        error.hint = "the working folder must lie where all machines of the cluster see it: --workdir DIR"
        return JobOutcome(job=job, error=error)
    result = TrainResult(
        concept=concept, folder=folder, record=folder / RECORD_NAME, **{name: said[name] for name in _FACTS}
    )
    return JobOutcome(job=job, result=result)
