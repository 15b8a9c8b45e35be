"""``concepts report``: one HTML page of a concept or of the benchmark, which opens without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.evaluate import exam_options, examine_one, read_options
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE, base_option
from conceptry.cli.session import Session, pass_session
from conceptry.errors import ConceptryError, UsageError
from conceptry.names import Reference

if TYPE_CHECKING:
    from conceptry.concepts import Concept
    from conceptry.evaluation.examination import Examination
    from conceptry.evaluation.protocols import Subject


@click.command(
    "report",
    cls=ConceptsCommand,
    examples=(
        "concepts report me/imp --out imp.html",
        "concepts report me/imp --no-draw",
        "concepts report --benchmark docs/toybench --out toybench.html",
    ),
)
@click.argument("reference", type=REFERENCE, required=False, metavar="REF")
@click.option(
    "--benchmark", type=PATH, metavar="DIR", help="A folder of concepts benchmark-methods instead of REF."
)
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True, help="The page.")
@click.option(
    "--draw/--no-draw", default=True, help="Draw and measure now, or show what is known.  [default: draw]"
)
@exam_options
@base_option
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True
)
@pass_session
def report(
    session: Session, /, reference: Reference | None, *, benchmark: Path | None, out: Path, **given: Any
) -> None:
    """Write one HTML page: pictures, scores, curves and tables, with nothing from elsewhere in it.

    The page of a concept has the pictures that its scores were measured on; that of a benchmark those of each row.
    """
    if (reference is None) == (benchmark is None):
        raise UsageError(
            "concepts report needs a concept or --benchmark, and not both", hint="concepts report me/imp"
        )
    page = _report_concept(session, reference, given) if reference else _report_benchmark(session, benchmark)
    from conceptry.evaluation.pages import write_page

    write_page(out, page)
    session.out.emit(
        {"path": str(out), "size_bytes": out.stat().st_size}, [f"written: {out}"], quiet=[str(out)]
    )


def _report_concept(session: Session, reference: Reference, given: dict[str, Any]) -> str:
    concept = session.registry.get(reference)
    shown = session.registry.show(Reference(concept.manifest.name, concept.manifest.version))
    record = None if shown.record is None else json.loads(shown.record.read_text(encoding="utf-8"))
    examination = _examine(session, concept, given) if given["draw"] else None
    from conceptry.evaluation.concept_page import make_concept_page
    from conceptry.evaluation.references import find_references

    subject: Subject = "style" if given["subject"] == "style" else "instance"
    try:
        references = find_references(concept.manifest, given["references"], subject=subject).reference
    except ConceptryError:
        references = None  # a page can be made of what is known
    return make_concept_page(concept, examination=examination, references=references, record=record)


def _examine(session: Session, concept: Concept, given: dict[str, Any]) -> Examination:
    options = read_options(given)
    pipeline = open_base(session, choose_base(session, given["base"], [concept]), device=given["device"])
    return examine_one(session, concept, pipeline, options)


def _report_benchmark(session: Session, folder: Path | None) -> str:
    from conceptry.cli.benchmark import read_all
    from conceptry.evaluation.bench_page import make_benchmark_page
    from conceptry.evaluation.bench_results import locate_groups, read_groups

    chosen = folder or Path()
    groups, _ = read_groups(locate_groups(chosen))
    return make_benchmark_page(read_all(session, [chosen]), chosen, groups)
