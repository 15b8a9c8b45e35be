"""A piece of the whole benchmark in one budget of time: the table, what claims need, several concepts, own defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conceptry.errors import ConceptryError, InterruptedByUserError
from conceptry.evaluation import loss_study, moved_weights
from conceptry.evaluation.bench_files import locked
from conceptry.evaluation.bench_methods import (
    BenchMethod,
    list_studies,
    list_table,
    load_studies,
)
from conceptry.evaluation.bench_multi import load_multi_suite, measure_groups
from conceptry.evaluation.bench_results import ResultRow, Row, find_commit, write_json
from conceptry.evaluation.bench_running import Bench, OnStep
from conceptry.evaluation.bench_shards import Shard
from conceptry.evaluation.claims import FIGURES_NAME
from conceptry.evaluation.toybench import BenchSubject

STUDIES_NAME: Final = "studies"
OWN_NAME: Final = "own-defaults"
Study = Callable[[Bench, Sequence[BenchSubject], OnStep], Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureStudy:
    """Single figures that claims ask for."""

    id: str
    method: str
    """Whose trainings it looks at; the process that measures this method measures the figures."""

    subjects: int | None
    study: Study


FIGURE_STUDIES: Final[tuple[FigureStudy, ...]] = (
    FigureStudy(
        id="moved-weights", method=moved_weights.FULL_TUNING, subjects=None, study=moved_weights.study_moves
    ),
    FigureStudy(id="losses", method=loss_study.METHOD, subjects=3, study=loss_study.study_losses),
)


def run_everything(bench: Bench, shard: Shard, on_step: OnStep) -> Iterator[ResultRow | Row]:
    """Gives each new row of every part of the benchmark, the table first; ends where the time is up.

    Raises:
        ConflictError: if the results that are there were not measured alike.
        InterruptedByUserError: after Ctrl-C; what is kept stays.
    """
    suite, folder = bench.suite, bench.options.out
    ours = shard.choose(list_table(suite))
    yield from bench.run(ours, suite.subjects, on_step)
    named = {subject.id: subject for subject in suite.subjects}
    subjects = [named[id] for id in load_studies()["subjects"]]
    yield from run_studies(bench, shard.choose(list_studies()), subjects, on_step)
    write_all_figures(bench, shard, subjects, on_step)
    together = [method for id in load_multi_suite().methods for method in ours if method.id == id]
    yield from measure_groups(bench, together, on_step)
    sample = load_studies()["own_defaults"]
    methods = [method for id in sample["methods"] for method in ours if method.id == id]
    with bench.changed(out=folder / OWN_NAME, sample_passes=0):
        yield from bench.run(methods, [named[id] for id in sample["subjects"]], on_step)


def run_studies(
    bench: Bench, methods: Sequence[BenchMethod], subjects: Sequence[BenchSubject], on_step: OnStep
) -> Iterator[ResultRow]:
    """Gives each new row of the trainings that claims ask for, which lie in a folder of their own."""
    with bench.changed(out=bench.options.out / STUDIES_NAME):
        yield from bench.run(methods, subjects, on_step)


def write_all_figures(bench: Bench, shard: Shard, subjects: Sequence[BenchSubject], on_step: OnStep) -> None:
    """Writes the figures that claims ask for, of the methods that this part measures."""
    ours = {method.id for method in shard.choose(list_table(bench.suite))}
    for row in FIGURE_STUDIES:
        if row.method in ours:
            write_figures(bench, row, subjects[: row.subjects], on_step)


def write_figures(bench: Bench, row: FigureStudy, subjects: Sequence[BenchSubject], on_step: OnStep) -> None:
    """Writes figures beside the results, subject by subject and while there is time; what is there stays."""
    path = bench.options.out / FIGURES_NAME / f"{row.id}.json"
    for subject in subjects:
        if subject.id in _read_done(path):
            continue
        if bench.is_late():
            return
        try:
            with bench.timed():
                found = row.study(bench, [subject], on_step)
        except InterruptedByUserError:
            raise
        except ConceptryError as error:
            bench.failures.append(error.inside(f"{row.id} on {subject.id}"))
            continue
        _add_figures(path, subject.id, found)


def _add_figures(path: Path, subject_id: str, found: Mapping[str, Mapping[str, float]]) -> None:
    with locked(path.parent):
        known: dict[str, Any] = _read(path)
        figures = {name: {**known["figures"].get(name, {}), **values} for name, values in found.items()}
        done = [*known["subjects"], subject_id]
        write_json(path, {"figures": figures, "subjects": done, "commit": find_commit()})


def _read_done(path: Path) -> list[str]:
    return list(_read(path)["subjects"])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"figures": {}, "subjects": []}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
