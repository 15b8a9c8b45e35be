"""A lesson as the benchmark gives it to methods, without a base."""

from __future__ import annotations

from pathlib import Path

from conceptry.bases import FamilyId
from conceptry.evaluation.bench_methods import Lesson
from conceptry.evaluation.toybench import load_suite


def make_lesson(folder: Path, *, workdir: Path) -> Lesson:
    """Return the lesson of one cup, whose pictures are in ``folder``."""
    return Lesson(
        subject_id="cup-20",
        pipeline=None,
        family=FamilyId("toybox"),
        images=folder,
        superclass="cup",
        subject="object",
        seed=1,
        sample_passes=load_suite().sample_passes,
        placeholder="<toy>",
        plain_word="sks",
        workdir=workdir,
        cache=folder,
    )
