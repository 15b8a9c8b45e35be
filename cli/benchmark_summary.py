"""What ``concepts benchmark-methods --summary`` makes of files of results: tables, plots, claims, and their pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conceptry.cli.session import Session
from conceptry.errors import NotFoundError

if TYPE_CHECKING:
    from conceptry.evaluation.bench_results import ResultFile
    from conceptry.evaluation.claims import ClaimVerdict

SUMMARY_NAME: Final = "toybench"
TOGETHER_NAME: Final = "composing-several"
STUDIES_NAME: Final = "studies"
OWN_NAME: Final = "own-defaults"
CALIBRATION_NAME: Final = Path("calibration") / "calibration.json"


def read_all(session: Session, folders: Sequence[Path]) -> ResultFile:
    """Returns all results of folders in one. Raises NotFoundError, ConflictError, InvalidFileError."""
    from conceptry.evaluation.bench_results import merge_results, read_results

    paths = []
    for place, folder in enumerate(folders):
        found = [path for path in sorted(folder.glob("*.json")) if path.name[0] != "."]
        if place and not found:
            raise NotFoundError(
                f"no results in {str(folder)!r}",
                hint="a folder of concepts benchmark-methods has METHOD.json files",
            )
        paths += found
    results, remarks = merge_results([(path, read_results(path)) for path in paths])
    for remark in remarks:
        session.out.warn(remark)
    return results


def judge_results(session: Session, folder: Path, results: ResultFile) -> tuple[ClaimVerdict, ...]:
    """Returns what results say to the claims of surveys, with the studies, groups and figures beside them.

    Raises:
        InvalidFileError: if a file there is none of ours.
        ConflictError: if studies were not measured alike.
    """
    from conceptry.evaluation.bench_results import locate_groups, merge_results, read_groups
    from conceptry.evaluation.claims import Numbers, judge_claims, read_figures_beside

    studies = folder / STUDIES_NAME
    if any(studies.glob("*.json")):
        results, _ = merge_results([(folder, results), (studies, read_all(session, [studies]))])
    groups, _ = read_groups(locate_groups(folder))
    return judge_claims(Numbers.gather(results, groups, read_figures_beside(folder)))


def summarise_results(session: Session, out: Path, others: Sequence[Path]) -> None:
    """Writes the table, its page and its plots beside the folder of results."""
    from conceptry.evaluation.bench_page import draw_plot, make_markdown
    from conceptry.evaluation.bench_results import locate_groups, read_groups, write_json
    from conceptry.evaluation.bench_summary import summarise, to_json
    from conceptry.evaluation.claims import say_answer
    from conceptry.evaluation.concordance import count_pairs, judge_pairs
    from conceptry.evaluation.own_defaults import compare_defaults
    from conceptry.evaluation.pages import write_page

    results = read_all(session, [out, *others])
    document = to_json(results)
    document["concordance"] = count_pairs(judge_pairs(results))
    claims = judge_results(session, out, results)
    document["claims"] = [one.to_json() for one in claims]
    if any((out / OWN_NAME).glob("*.json")):
        document["own_defaults"] = compare_defaults(read_all(session, [out / OWN_NAME]), results)
    groups, _ = read_groups(locate_groups(out))
    if groups:
        document["compositions"] = groups
    if (out / CALIBRATION_NAME).is_file():
        document["calibration"] = json.loads((out / CALIBRATION_NAME).read_text(encoding="utf-8"))
    target = out.parent / SUMMARY_NAME
    write_json(target.with_suffix(".json"), document)
    write_page(target.with_suffix(".md"), make_markdown(results, document, verdicts=claims))
    for kind in ("instance", "style"):
        rows = summarise(results, "instance" if kind == "instance" else "style")
        if rows:
            plot = draw_plot(rows, title=f"ToyBench, {kind}s: identity against prompt")
            write_page(target.with_name(f"{SUMMARY_NAME}-{kind}.svg"), plot + "\n")
    session.out.emit(
        {"path": str(target.with_suffix(".json")), **document},
        [
            f"{row['rank'] or '-':>3}  {row['method']:34} identity {row['identity']:.2f}  prompt {row['prompt']:.2f}  "
            + (
                f"not ranked: lacks some of {row['ranked_on']} subjects"
                if row["rank_interval"] is None
                else "ranks {} to {}".format(*row["rank_interval"])
            )
            for row in document["rows"]
        ]
        + [f"{say_answer(one)}: {one.claim.claim}" for one in claims],
    )


def summarise_groups(session: Session, out: Path) -> None:
    """Writes the page of several concepts in one picture beside the folder of results, and its sheet of pictures."""
    from conceptry.evaluation.bench_results import locate_groups, read_groups
    from conceptry.evaluation.multi_page import SHEET_NAME, make_page, make_sheet
    from conceptry.evaluation.pages import write_page

    rows, document = read_groups(locate_groups(out))
    if not rows:
        raise NotFoundError(
            f"no results of several concepts in {str(out)!r}",
            hint=f"concepts benchmark-methods --together --out {out}",
        )
    page, sheet = out.parent / f"{TOGETHER_NAME}.md", out.parent / "images" / SHEET_NAME
    write_page(page, make_page(document))
    sheet.parent.mkdir(exist_ok=True)
    first = [row for row in rows if row["method"] == rows[0]["method"] and "impossible" not in row]
    make_sheet(first, out).save(sheet, format="WEBP", quality=70)
    session.out.emit(
        {"path": str(page), "sheet": str(sheet), "rows": rows}, [*map(describe_group, rows), str(page)]
    )


def describe_group(row: Mapping[str, Any]) -> str:
    """Returns a row of several concepts in one picture as people read it."""
    head = f"{row['method']}, {row['way']}: {' + '.join(row['members'])}"
    if "impossible" in row:
        return f"{head}: {row['impossible']}"
    return f"{head}: joint {row['joint']:.2f}, swaps {row['swaps']:.2f}, leaks {row['leaks'] or 0:.2f}"
