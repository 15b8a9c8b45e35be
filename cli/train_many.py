"""``concepts train --jobs FILE``: every job of a file, each published as soon as it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from conceptry.cli.progress import follow_training, track
from conceptry.cli.publish import publish_folder, to_json
from conceptry.cli.session import Session
from conceptry.cli.text import count_things, format_bytes, format_seconds
from conceptry.errors import ConceptryError, InterruptedByUserError, NotFoundError, UsageError
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.trainer.doctor import TrainPlan
    from conceptry.trainer.jobfiles import JobEntry
    from conceptry.trainer.jobs import TrainJob
    from conceptry.trainer.many import JobOutcome

TOGETHER: Final = 16
# What may be said beside --jobs; all else stands in the file.
_OPTIONS: Final = frozenset({"jobs", "shard", "together", "engine"})


def train_jobs(
    session: Session, given: dict[str, Any], *, workdir: Path | None, resume: bool, dry_run: bool
) -> None:
    """Trains all jobs of ``--jobs FILE``, or the share that ``--shard`` names, and reports what became of each.

    Raises:
        UsageError: for options that belong into the file, or a file that cannot be read.
        click.exceptions.Exit: with 1, if any job failed; it is named.
    """
    from conceptry.trainer.jobfiles import read_jobs, take_shard

    for name, value in given.items():
        if name not in _OPTIONS and value not in (None, ()):
            raise UsageError(f"--{name} belongs into the file of jobs", hint="write it under [defaults]")
    entries = read_jobs(given["jobs"])
    if given["shard"] is not None:
        entries = take_shard(entries, given["shard"])
    rows = [_Row(entry) for entry in entries]
    waiting = [row for row in rows if row.job is not None and not _is_there(session, row)]
    for row in rows:
        if row.state == "skipped":
            session.out.log(f"{row.label} is there already: skipped")
    if waiting and dry_run:
        _plan(session, waiting)
    elif waiting:
        _run(session, waiting, given, workdir=workdir, resume=resume)
    _report(session, rows)


class _Row:
    """One job and what became of it."""

    def __init__(self, entry: JobEntry) -> None:
        self.label = entry.label
        self.job: TrainJob | None = entry.job
        self.error: ConceptryError | None = entry.error
        self.state = "failed" if entry.error is not None else "waiting"
        self.plan: TrainPlan | None = None
        self.facts: dict[str, Any] = {}

    def describe_waiting(self) -> str:
        """Returns what would be done with the job, and what that needs."""
        plan = self.plan
        if plan is None:
            return f"{self.label}: would be trained"
        seconds = "unknown time" if plan.seconds is None else f"about {format_seconds(plan.seconds)}"
        return (
            f"{self.label}: would be trained, {count_things(plan.pictures, 'picture')}, {plan.steps} steps, "
            f"{seconds}, {format_bytes(plan.peak_bytes)} of memory"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the row as it is printed."""
        error = self.error
        message = (
            {} if error is None else {"message": error.message, "hint": error.hint, "where": error.where}
        )
        return {"name": self.label, "state": self.state, **message, **self.facts}


def _is_there(session: Session, row: _Row) -> bool:
    if row.job is None:
        return False
    try:
        session.registry.resolve(Reference(row.job.name, row.job.version))
    except NotFoundError:
        return False
    row.state = "skipped"
    row.facts = {"reference": f"{row.job.name}@{row.job.version}"}
    return True


def _plan(session: Session, rows: Sequence[_Row]) -> None:
    """Finds out what each job needs by itself; one that cannot be trained has failed."""
    with track(session.out, "loading the bases") as meter:
        from conceptry.trainer.plans import plan_jobs

        jobs = [row.job for row in rows if row.job is not None]
        plans = plan_jobs(
            jobs, named_bases=session.registry.bases(), on_event=follow_training(meter, session.out)
        )
    for row, plan in zip(rows, plans, strict=True):
        if isinstance(plan, ConceptryError):
            row.state, row.error = "failed", plan
        else:
            row.plan, row.facts = plan, describe_plan(plan)


def describe_plan(plan: TrainPlan) -> dict[str, Any]:
    """Returns what a job will do and need, as it is printed with ``--json``."""
    resident = plan.resident
    return {
        "pictures": plan.pictures,
        "steps": plan.steps,
        "image_steps": plan.image_steps,
        "seconds": None if plan.seconds is None else round(plan.seconds, 1),
        "peak_bytes": plan.peak_bytes,
        "free_bytes": plan.free_bytes,
        "base_bytes": resident.base_bytes,
        "trained_bytes": resident.total_bytes - resident.base_bytes,
        "sample_bytes": plan.sample_bytes,
        "samples_at_once": plan.samples_at_once,
        "fits": plan.fits,
    }


def _run(
    session: Session, rows: Sequence[_Row], given: dict[str, Any], *, workdir: Path | None, resume: bool
) -> None:
    by_job = {f"{row.job.name}@{row.job.version}": row for row in reversed(rows) if row.job is not None}
    with track(session.out, "loading the base") as meter:
        from conceptry.trainer.many import ManyOptions, train_many

        def conclude(outcome: JobOutcome) -> None:
            row = by_job[f"{outcome.job.name}@{outcome.job.version}"]
            _conclude(session, row, outcome)

        options = ManyOptions(
            workdir=workdir,
            resume=resume,
            together=given["together"] or TOGETHER,
            named_bases=session.registry.bases(),
            on_event=follow_training(meter, session.out),
            on_outcome=conclude,
        )
        jobs = [row.job for row in rows if row.job is not None]
        try:
            if given["engine"] == "ray":
                from conceptry.trainer.clusters import train_on_ray

                train_on_ray(jobs, options)
            else:
                train_many(jobs, options)
        except InterruptedByUserError as error:
            error.hint = "repeat the command with --resume; what is finished is skipped"
            raise


def _conclude(session: Session, row: _Row, outcome: JobOutcome) -> None:
    result, error = outcome.result, outcome.error
    if result is not None:
        try:
            row.facts = {
                **to_json(publish_folder(session, result.folder)),
                "seconds": round(result.seconds, 3),
                "steps": result.steps,
            }
            row.state = "trained"
            session.out.log(f"{row.label}: published {row.facts['reference']}")
            return
        except ConceptryError as refused:
            error = refused
    row.state, row.error = "failed", error
    session.out.warn(f"{row.label}: {error}")


def _report(session: Session, rows: Sequence[_Row]) -> None:
    states = [row.state for row in rows]
    counts = {state: states.count(state) for state in ("trained", "skipped", "failed", "waiting")}
    failed = [row for row in rows if row.state == "failed"]
    lines = [row.facts["reference"] for row in rows if row.state == "trained"]
    lines += [f"{row.label}: {row.error}" for row in failed]
    plans = [row.plan for row in rows if row.plan is not None]
    lines += [row.describe_waiting() for row in rows if row.state == "waiting"]
    if plans:
        known = [plan.seconds for plan in plans if plan.seconds is not None]
        lines.append(
            f"each by itself: about {format_seconds(sum(known))} in all, "
            f"{format_bytes(max(plan.peak_bytes for plan in plans))} of memory at most"
        )
    lines.append(
        f"{count_things(counts['trained'], 'concept')} trained, {counts['skipped']} there already, "
        f"{counts['failed']} failed"
    )
    references = [row.facts["reference"] for row in rows if "reference" in row.facts]
    session.out.emit({"jobs": [row.to_json() for row in rows], **counts}, lines, quiet=references)
    if failed:
        raise click.exceptions.Exit(1)
