"""``concepts benchmark-methods``: every method on equal work, in pieces that go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.bases import FamilyId
from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.benchmark_summary import (
    CALIBRATION_NAME,
    OWN_NAME,
    STUDIES_NAME,
    describe_group,
    summarise_groups,
    summarise_results,
)
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, device_option
from conceptry.cli.progress import track
from conceptry.cli.session import Session, pass_session
from conceptry.cli.text import count_things
from conceptry.errors import UsageError

if TYPE_CHECKING:
    from conceptry.evaluation.bench_methods import BenchMethod
    from conceptry.evaluation.bench_results import ResultRow, Row
    from conceptry.evaluation.bench_running import Bench
    from conceptry.evaluation.bench_shards import Shard
    from conceptry.evaluation.toybench import BenchSubject, Suite


@click.command(
    "benchmark-methods",
    cls=ConceptsCommand,
    examples=(
        "concepts benchmark-methods --out docs/toybench --seconds 2400",
        "concepts benchmark-methods --everything --shard 1/2 --out docs/toybench --seconds 2400",
        "concepts benchmark-methods --own-defaults --out docs/toybench",
        "concepts benchmark-methods --out results --method lora --method perfusion --subject creature-20",
        "concepts benchmark-methods --out results --base sd15 --images subjects --protocol clip-dino "
        "--clip clip-b32 --dino dino-s16",
        "concepts benchmark-methods --together --out docs/toybench",
        "concepts benchmark-methods --together --summary --out docs/toybench",
        "concepts benchmark-methods --studies --out docs/toybench --seconds 2400",
        "concepts benchmark-methods --summary --out docs/toybench --merge other-lab",
    ),
)
@click.option(
    "--out", type=PATH, default=Path("toybench"), show_default=True, help="One file for each method."
)
@click.option("--method", "methods", multiple=True, metavar="ID", help="Only this one. Repeatable.")
@click.option("--subject", "subjects", multiple=True, metavar="ID", help="Only this one. Repeatable.")
@click.option("--base", metavar="BASE", help="Which base learns and draws.  [default: toybox]")
@click.option("--images", type=PATH, metavar="DIR", help="Your own subjects: dog-1/*.jpg, style-ink/*.jpg.")
@click.option(
    "--protocol", default="toybox-1", show_default=True, metavar="NAME", help="toybox-1 or clip-dino."
)
@click.option("--clip", metavar="MODEL", help="Of clip-dino: a folder, or hf://ns/repo in the cache.")
@click.option("--dino", metavar="MODEL", help="Of clip-dino: a folder, or hf://ns/repo in the cache.")
@click.option(
    "--passes", type=click.IntRange(0), help="Sample passes of each method; 0: its own.  [default: 640]"
)
@click.option("--prompts", type=click.IntRange(1), help="At most so many for each subject, for a sample.")
@click.option("--steps", type=click.IntRange(1), help="Denoising steps of each picture, for a sample.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Begin nothing that would end later.")
@click.option("--workdir", type=PATH, metavar="DIR", help="For trainings.  [default: .runs/toybench]")
@click.option("--merge", type=PATH, multiple=True, metavar="DIR", help="Results of others, into one table.")
@click.option("--summary", is_flag=True, help="Measure nothing; write tables and plots beside --out.")
@click.option(
    "--together", is_flag=True, help="Measure several concepts in one picture, in each way of composing."
)
@click.option("--calibrate", is_flag=True, help="Measure what the scorers' own numbers are worth.")
@click.option(
    "--studies", is_flag=True, help="Run what claims of surveys need beside the methods, in OUT/studies."
)
@click.option(
    "--own-defaults", is_flag=True, help="A sample at each method's own steps, in OUT/own-defaults."
)
@click.option(
    "--everything", is_flag=True, help="Table, studies, concepts together and own defaults in one --seconds."
)
@click.option("--shard", metavar="N/M", help="Only this part of the methods, for M processes at a time.")
@click.option("--list", "listing", is_flag=True, help="Name methods and subjects, and what is left to do.")
@device_option
@pass_session
def benchmark_methods(session: Session, /, *, out: Path, summary: bool, listing: bool, **given: Any) -> None:
    """Compare every training method on the same subjects with the same budget.

    What is measured already is not measured again, so the command goes on where it stopped. With --summary it writes
    the table, the plots and one JSON file beside the folder of results.
    """
    if given["protocol"] == "clip-dino" and not given["images"]:
        raise UsageError(
            "protocol clip-dino compares with your own pictures",
            hint="add --images DIR with a folder for each subject",
        )
    if summary:
        if given["together"]:
            summarise_groups(session, out)
        else:
            summarise_results(session, out, given["merge"])
        return
    from conceptry.evaluation.bench_shards import parse_shard
    from conceptry.evaluation.protocols import find_protocol
    from conceptry.evaluation.toybench import load_suite

    find_protocol(given["protocol"])
    suite, shard = load_suite(), parse_shard(given["shard"])
    methods, subjects = _choose(suite, shard, given)
    if listing:
        folder = out / (STUDIES_NAME if given["studies"] else OWN_NAME if given["own_defaults"] else "")
        passes = 0 if given["own_defaults"] else given["passes"]
        asked = {**given, "passes": suite.sample_passes if passes is None else passes}
        _list(session, folder, methods, [subject.id for subject in subjects], asked)
        return
    bench = _open_bench(session, suite, out, given)
    if given["calibrate"]:
        _calibrate(session, bench)
        return
    with track(session.out, "benchmark") as meter:
        rows = []
        for row in _measure(bench, shard, (methods, subjects), given, meter.phase):
            rows.append(row)
            session.out.log(_describe(row))
    _tell(session, bench, rows)


def _tell(session: Session, bench: Bench, rows: Sequence[ResultRow | Row]) -> None:
    """Says what was measured and what was not. Raises what the only method raised; exits with 1 for a failed one."""
    if bench.failures and not rows and len(bench.failures) == 1:
        raise bench.failures[0]
    for failure in bench.failures:
        session.out.warn(f"not measured: {failure}")
    session.out.emit(
        {
            "folder": str(bench.options.out),
            "measured": len(rows),
            "rows": [_to_json(row) for row in rows],
            "failed": [str(failure) for failure in bench.failures],
        },
        [*map(_describe, rows), f"measured {count_things(len(rows), 'row')} in {bench.options.out}"],
    )
    if bench.failures:
        raise click.exceptions.Exit(1)


def _measure(
    bench: Bench,
    shard: Shard,
    chosen: tuple[Sequence[BenchMethod], Sequence[BenchSubject]],
    given: Mapping[str, Any],
    on_step: Callable[[str], object],
) -> Iterator[ResultRow | Row]:
    """Gives the new rows of the part of the benchmark that was asked for."""
    from conceptry.evaluation import bench_pieces
    from conceptry.evaluation.bench_multi import measure_groups

    methods, subjects = chosen
    if given["everything"]:
        yield from bench_pieces.run_everything(bench, shard, on_step)
    elif given["together"]:
        yield from measure_groups(bench, methods, on_step)
    elif given["studies"]:
        yield from bench_pieces.run_studies(bench, methods, subjects, on_step)
        bench_pieces.write_all_figures(bench, shard, subjects, on_step)
    elif given["own_defaults"]:
        with bench.changed(out=bench.options.out / OWN_NAME, sample_passes=0):
            yield from bench.run(methods, subjects, on_step)
    else:
        yield from bench.run(methods, subjects, on_step)


def _choose(
    suite: Suite, shard: Shard, given: Mapping[str, Any]
) -> tuple[Sequence[BenchMethod], Sequence[BenchSubject]]:
    """Returns what is to be measured: the named methods and subjects, else all of the suite or of one of its parts."""
    from conceptry.evaluation.bench_methods import (
        choose_methods,
        list_methods,
        list_studies,
        list_table,
        load_studies,
    )
    from conceptry.evaluation.bench_multi import load_multi_suite

    methods, subjects = given["methods"], given["subjects"]
    if given["everything"] and (methods or subjects or given["images"]):
        raise UsageError(
            "--everything takes the suite's own methods and subjects", hint="name one part alone"
        )
    if given["studies"]:
        methods = methods or [study.id for study in list_studies()]
        subjects = subjects or ([] if given["images"] else load_studies()["subjects"])
    elif given["own_defaults"]:
        sample = load_studies()["own_defaults"]
        methods = methods or sample["methods"]
        subjects = subjects or ([] if given["images"] else sample["subjects"])
    elif given["together"]:
        methods = methods or load_multi_suite().methods
    apart = [method for method in list_methods(suite) if method.id in suite.apart]
    parts = (
        list_table(suite),
        apart,
        list_studies(),
    )  # each split by itself, so that the table's split is one
    ours = {method.id for part in parts for method in shard.choose(part)}
    named = choose_methods(suite, methods)
    return tuple(one for one in named if one.id in ours), choose_subjects(suite, subjects, given["images"])


def choose_subjects(suite: Suite, ids: Sequence[str], images: Path | None) -> tuple[BenchSubject, ...]:
    """Returns the suite's subjects or those of a folder, all or the named ones. Raises UsageError."""
    from dataclasses import replace

    from conceptry.evaluation.toybench import list_own_subjects

    all_ = suite if images is None else replace(suite, subjects=list_own_subjects(images))
    return tuple(map(all_.find_subject, ids)) if ids else all_.subjects


def _open_bench(session: Session, suite: Suite, out: Path, given: dict[str, Any]) -> Bench:
    location = choose_base(session, given["base"])
    pipeline = open_base(session, location, device=given["device"])
    from conceptry.evaluation.bench_running import Bench, BenchOptions

    options = BenchOptions(
        out=out,
        workdir=given["workdir"] or Path(".runs/toybench"),
        protocol=given["protocol"],
        models={name: given[name] for name in ("clip", "dino") if given[name]},
        sample_passes=given["passes"],
        seconds=given["seconds"],
        most_prompts=given["prompts"],
        steps=given["steps"],
    )
    return Bench(suite, pipeline, options)


def _calibrate(session: Session, bench: Bench) -> None:
    """Measures what the scorers themselves are worth."""
    from dataclasses import asdict

    from conceptry.evaluation.bench_results import write_json
    from conceptry.evaluation.calibration import calibrate

    with track(session.out, "benchmark"):
        figures = asdict(calibrate(bench.suite, bench.pipeline))
    write_json(bench.options.out / CALIBRATION_NAME, figures)
    session.out.emit(figures, [f"{name}: {value}" for name, value in figures.items()])


def _list(
    session: Session,
    out: Path,
    methods: Sequence[BenchMethod],
    subjects: Sequence[str],
    given: Mapping[str, Any],
) -> None:
    from conceptry.evaluation.bench_conditions import list_done
    from conceptry.evaluation.bench_results import read_results

    rows = []
    for method in methods:
        path = out / f"{method.id}.json"
        known = read_results(path).rows if path.is_file() else ()
        family = None if given["base"] else FamilyId("toybox")
        done = list_done(
            method, known, family=family, sample_passes=given["passes"], prompts=given["prompts"]
        )
        left = [subject for subject in subjects if subject not in done]
        rows.append({"method": method.id, "done": len(subjects) - len(left), "left": left})
    session.out.emit_table(
        {"methods": rows, "subjects": list(subjects)},
        ("METHOD", "DONE", "LEFT"),
        [(str(row["method"]), str(row["done"]), str(len(subjects) - int(str(row["done"])))) for row in rows],
        empty="no method is left to be compared",
    )


def _to_json(row: ResultRow | Row) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    return {
        "method": row.method,
        "subject": row.subject,
        "identity": row.identity.normalised,
        "prompt": row.prompt.normalised,
        "seconds": row.training_seconds,
        "sample_passes": row.sample_passes,
    }


def _describe(row: ResultRow | Row) -> str:
    if isinstance(row, Mapping):
        return describe_group(row)
    numbers = [
        "unknown" if value is None else f"{value:.2f}"
        for value in (row.identity.normalised, row.prompt.normalised)
    ]
    return (
        f"{row.method} on {row.subject}: identity {numbers[0]}, prompt {numbers[1]}, "
        f"{row.training_seconds + row.drawing_seconds:.0f} s"
    )
