"""``concepts report``: one HTML page of a concept or of the benchmark, which opens without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conceptry.cli.bases import choose_base, open_base
from conceptry.cli.evaluate import exam_options, examine_one, read_options
from conceptry.cli.groups import ConceptsCommand
from conceptry.cli.options import PATH, REFERENCE, base_option, device_option
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
        "concepts report --uses results --out uses.html",
    ),
)
@click.argument("reference", type=REFERENCE, required=False, metavar="REF")
@click.option(
    "--benchmark", type=PATH, metavar="DIR", help="A folder of concepts benchmark-methods instead of REF."
)
@click.option(
    "--uses", type=PATH, metavar="DIR", help="A folder of concepts augment and concepts uses instead of REF."
)
@click.option("--out", type=PATH, default=Path("report.html"), show_default=True, help="The page.")
@click.option(
    "--draw/--no-draw", default=True, help="Draw and measure now, or show what is known.  [default: draw]"
)
@exam_options
@base_option
@device_option
@pass_session
def report(
    session: Session,
    /,
    reference: Reference | None,
    *,
    benchmark: Path | None,
    uses: Path | None,
    out: Path,
    **given: Any,
) -> None:
    """Write one HTML page: pictures, scores, curves and tables, with nothing from elsewhere in it.

    The page of a concept has the pictures that its scores were measured on; that of a benchmark or of uses those of
    each row.
    """
    if sum(one is not None for one in (reference, benchmark, uses)) != 1:
        raise UsageError(
            "concepts report needs a concept or --benchmark or --uses, and one alone",
            hint="concepts report me/imp",
        )
    if reference is not None:
        page = _report_concept(session, reference, given)
    else:
        page = _report_uses(uses) if uses is not None else _report_benchmark(session, benchmark)
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
    from conceptry.cli.benchmark_summary import judge_results, read_all
    from conceptry.evaluation.bench_page import make_benchmark_page
    from conceptry.evaluation.bench_results import locate_groups, read_groups

    chosen = folder or Path()
    groups, _ = read_groups(locate_groups(chosen))
    results = read_all(session, [chosen])
    return make_benchmark_page(results, chosen, groups, verdicts=judge_results(session, chosen, results))


def _report_uses(folder: Path) -> str:
    from conceptry.evaluation.use_page import make_use_page
    from conceptry.evaluation.use_results import read_uses

    return make_use_page(read_uses(folder), folder)
