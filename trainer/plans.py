"""What many jobs will need, said before any begins: each base is opened once, and jobs that are alike timed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conceptry.composer.fingerprints import find_pipeline_family
from conceptry.errors import ConceptryError
from conceptry.trainer.doctor import TrainPlan, check_fit, plan_run
from conceptry.trainer.events import OnEvent, TrainEvent, ignore
from conceptry.trainer.folders import locate_home
from conceptry.trainer.jobs import TrainJob, group_by_base, resolve
from conceptry.trainer.precision import deterministic
from conceptry.trainer.preparation import prepared
from conceptry.trainer.staging import OpenBase, choose_folder, open_base, prepare_run, read_pictures


@dataclass(slots=True)
class _Planner:
    """Plans of one base, by what decides them."""

    opened: OpenBase
    cache_folder: Path
    on_event: OnEvent
    known: dict[Any, TrainPlan] = field(default_factory=dict)

    def plan(self, job: TrainJob) -> TrainPlan:
        """Returns what the job needs by itself. Raises what ``train`` raises before its first step."""
        pictures = read_pictures(job, lambda event: self.on_event(replace(event, job=str(job.name))))
        settings = resolve(job, find_pipeline_family(self.opened.pipeline)).settings
        # Shapes of buckets are those of the pictures, so that such jobs are never alike.
        own = job.name if settings.buckets > 1 else None
        key = (job.method, settings.model_dump_json(), job.precision, len(job.also), str(own))
        if key in self.known:
            return replace(self.known[key], pictures=len(pictures.pictures))
        stage = prepare_run(
            job,
            pictures,
            self.opened,
            folder=choose_folder(job, locate_home()),
            cache_folder=self.cache_folder,
            on_event=ignore,
        )
        check_fit(stage.context, stage.learner)
        self.known[key] = plan_run(stage.context, stage.learner)
        return self.known[key]


def plan_jobs(
    jobs: Sequence[TrainJob],
    *,
    named_bases: Mapping[str, Path] | None = None,
    cache_folder: Path | None = None,
    base: Any = None,
    on_event: OnEvent = ignore,
) -> list[TrainPlan | ConceptryError]:
    """Returns for each job what it will do and need by itself on this device, or why it cannot be trained.

    Nothing is trained. Of jobs that differ in pictures, words and seed alone the first is staged and timed.

    Args:
        jobs: what to learn, as written.
        named_bases: the user's own names for bases.
        cache_folder: where what belongs to a base is kept; None takes a folder of the user's store.
        base: an open pipeline for all jobs; None opens what each names, once for each.
        on_event: is told which job is looked at, and of pictures that are skipped.
    """
    found: dict[int, TrainPlan | ConceptryError] = {}
    for places in group_by_base(jobs):
        try:
            opened = open_base(jobs[places[0]], base, named=named_bases)
        except ConceptryError as error:
            found |= dict.fromkeys(places, error)
            continue
        planner = _Planner(opened, cache_folder or locate_home() / "cache", on_event)
        with prepared(opened.pipeline), deterministic(opened.device):
            for place in places:
                on_event(TrainEvent(kind="phase", message=f"planning {jobs[place].name}"))
                try:
                    found[place] = planner.plan(jobs[place])
                except ConceptryError as error:
                    found[place] = error
    return [found[place] for place in range(len(jobs))]
