"""The benchmark for people: one HTML page with the pictures of each row, and the Markdown page and plots of docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from conceptry.evaluation.bench_conditions import choose_rows
from conceptry.evaluation.bench_results import ResultFile
from conceptry.evaluation.bench_strips import WORD, locate_reference, show_row
from conceptry.evaluation.bench_summary import (
    MethodSummary,
    compare_scorers,
    list_commits,
    list_machines,
    summarise,
)
from conceptry.evaluation.charts import Point, draw_front
from conceptry.evaluation.claims import UNSURE_EXPLAINED, ClaimVerdict, say_answer, write_claims
from conceptry.evaluation.concordance import write_concordance
from conceptry.evaluation.own_defaults import write_defaults
from conceptry.evaluation.pages import (
    Figure,
    make_details,
    make_heading,
    make_note,
    make_page,
    make_pictures,
    make_table,
)

_SHOWN_STRIPS: Final = 3
_COLUMNS: Final = (
    "method",
    "rank",
    "ranks",
    "subjects",
    "identity",
    "95 %",
    "prompt",
    "95 %",
    "balance",
    "preservation",
    "diversity",
    "leakage",
    "bytes",
    "clock seconds",
    "processor seconds",
    "sample passes",
)
_EXPLAINED: Final = (
    "Identity and prompt agreement are normalised: 0 is the base with the superclass word, or pictures that ignore "
    "their prompts; 1 is the thing itself, or the base's own agreement. Balance is their harmonic mean. Intervals and "
    "ranks (95 % of resamples): bootstrap over subjects, none of fewer than six. Ranked are the methods that have all "
    "of the subjects on which most can be compared. Tinted rows: no other ranked method is better in both there."
)
_GROUPS_EXPLAINED: Final = (
    "Shares of pictures: all members there, each once (joint); each member there (recall); an object of one member's "
    "class in another's colour (swaps); a member that nobody called (leaks); the asked side kept (region)."
)
_PICTURES_EXPLAINED: Final = (
    "At the left of each line the true thing, in pictures that no method was taught; then what the method drew, each "
    f"over its prompt, in which {WORD} stands for the method's word. Of 20 prompts every second is shown."
)
_KINDS: Final[tuple[tuple[Literal["instance", "style"], str], ...]] = (
    ("instance", "Things"),
    ("style", "Styles"),
)


def describe_setting(results: ResultFile) -> str:
    """Returns in a line what all rows have in common."""
    machines = [
        ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
        for machine in list_machines(results)
    ]
    passes = f"{results.sample_passes} for every method" if results.sample_passes else "each method's own"
    return (
        f"suite {results.suite}, protocol {results.protocol}, base {results.base.family} "
        f"({results.base.digest[7:19]}), sample passes {passes}, commit {', '.join(list_commits(results))}; "
        + "; ".join(machines)
    )


def make_benchmark_page(
    results: ResultFile,
    folder: Path,
    groups: Sequence[Mapping[str, Any]] = (),
    *,
    verdicts: Sequence[ClaimVerdict] = (),
) -> str:
    """Returns the page of the benchmark; ``folder`` holds the pictures that its rows name.

    ``groups`` are the rows of several concepts in one picture, ``verdicts`` what the numbers say to claims.
    """
    parts = [make_note(describe_setting(results)), make_note(_EXPLAINED)]
    for kind, title in _KINDS:
        rows = summarise(results, kind)
        if rows:
            parts += [
                make_heading(title),
                draw_plot(rows, title=f"{title}: identity against prompt agreement"),
                make_table(
                    _COLUMNS, [_list_cells(one) for one in rows], marked=[one.is_front for one in rows]
                ),
                _show_details(rows),
            ]
    parts += [*_show_groups(groups, folder), *_show_claims(verdicts), *_show_pictures(results, folder)]
    return make_page(f"ToyBench: {results.suite}", parts)


def draw_plot(rows: Sequence[MethodSummary], *, title: str) -> str:
    """Returns identity against prompt agreement as SVG."""
    points = [
        Point(name=one.method, x=one.identity, y=one.prompt, interval=one.interval, is_front=one.is_front)
        for one in rows
    ]
    return draw_front(points, title=title, x_label="identity, normalised", y_label="prompt, normalised")


def _list_cells(one: MethodSummary) -> tuple[object, ...]:
    return (
        one.method,
        one.rank,
        None if one.rank_interval is None else list(one.rank_interval),
        one.subjects,
        one.identity,
        one.interval,
        one.prompt,
        one.prompt_interval,
        one.balance,
        one.preservation,
        one.diversity,
        one.leakage,
        one.size_bytes,
        one.seconds,
        one.processor_seconds,
        one.sample_passes,
    )


def _show_details(rows: Sequence[MethodSummary]) -> str:
    """Agreement by category of prompt, and what further scorers say."""
    tables: tuple[tuple[str, list[Mapping[str, float]]], ...] = (
        (
            "agreement with the prompts of each category, as a share of the base's own",
            [one.categories for one in rows],
        ),
        ("likeness as further scorers see it, normalised", [one.others for one in rows]),
    )
    parts = []
    for note, found in tables:
        names = sorted({name for values in found for name in values})
        if names:
            cells = [
                (one.method, *(values.get(name) for name in names))
                for one, values in zip(rows, found, strict=True)
            ]
            parts += [make_note(note), make_table(("method", *names), cells)]
    parts += [
        make_note(f"order of methods by identity and by {name}: rank correlation {value:.2f}")
        for name, value in compare_scorers(rows).items()
    ]
    return "".join(parts)


def _show_groups(groups: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    if not groups:
        return []
    names = ("joint", "recall", "swaps", "leaks", "region", "style")
    cells = [
        (
            row["method"],
            row["way"],
            " + ".join(row["members"]),
            *(_say_share(row.get(name)) for name in names),
        )
        for row in groups
    ]
    figures = []
    for row in groups:
        picture = open_picture(folder, row.get("pictures_file"))
        if picture is not None:
            said = f"{row['method']}, {row['way']}: {' + '.join(row['members'])}"
            figures.append(Figure(picture=picture, caption=said))
    impossible = [
        make_note(f"{row['method']}, {row['way']}: {row['impossible']}")
        for row in groups
        if "impossible" in row
    ]
    return [
        make_heading("Several concepts in one picture", _GROUPS_EXPLAINED),
        make_table(("method", "way", "members", *names), cells),
        *dict.fromkeys(impossible),
        make_pictures(figures, strip=True),
    ]


def _show_claims(verdicts: Sequence[ClaimVerdict]) -> list[str]:
    if not verdicts:
        return []
    rows = [
        (one.claim.claim, say_answer(one), "; ".join(found.text for found in one.findings), one.claim.source)
        for one in verdicts
    ]
    head = make_heading("What surveys claim", UNSURE_EXPLAINED)
    return [head, make_table(("claim", "here", "numbers", "source"), rows)]


def _say_share(value: Any) -> Any:
    """A share for a table; those of several members stand behind one another, as they are no interval."""
    return _say_all(value) if isinstance(value, list | tuple) else value


def _show_pictures(results: ResultFile, folder: Path) -> list[str]:
    """A strip for each subject, in sections for methods; of many the first few are open."""
    parts: list[str] = []
    for method in dict.fromkeys(row.method for row in results.rows):
        strips = []
        for row in results.rows:
            picture = open_picture(folder, row.pictures) if row.method == method else None
            if picture is not None:
                said = f"{row.subject}: identity {_say(row.identity.normalised)}, prompt {_say(row.prompt.normalised)}"
                truth = open_picture(folder, locate_reference(row.subject))
                strips.append(show_row(row, picture, results.protocol, caption=said, reference=truth))
        if strips:
            parts += [make_heading(method), *strips[:_SHOWN_STRIPS]]
        more = strips[_SHOWN_STRIPS:]
        if more:
            parts.append(make_details(f"{len(more)} more", "".join(more)))
    return [make_heading("Pictures", _PICTURES_EXPLAINED), *parts] if parts else []


def _say(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def open_picture(folder: Path, name: str | None) -> Image.Image | None:
    """Returns a picture that lies in ``folder``; None where it does not, or the name leads elsewhere."""
    if name is None:
        return None
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        return None
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return None


def make_markdown(
    results: ResultFile,
    document: Mapping[str, Any] | None = None,
    *,
    verdicts: Sequence[ClaimVerdict] = (),
) -> str:
    """Returns the page of docs: the tables, and the plots that lie beside it.

    ``document`` may bring what was measured beside the table: ``compositions``, ``calibration`` and ``own_defaults``.
    ``verdicts`` is what the numbers say to claims.
    """
    lines = [
        "# ToyBench",
        "",
        "Generated by `concepts benchmark-methods --summary` from the files in [toybench/](toybench/).",
        "",
        f"{describe_setting(results)}.",
        "",
        _EXPLAINED.replace("Tinted rows", "Rows in bold"),
    ]
    lines += [f"\n{remark[0].upper()}{remark[1:]}." for remark in choose_rows(results.rows)[1]]
    for kind, title in _KINDS:
        rows = summarise(results, kind)
        if rows:
            lines += ["", f"## {title}", "", f"![Identity against prompt](toybench-{kind}.svg)", ""]
            lines += _make_markdown_table(rows)
            lines += [
                f"\nOrder of methods by identity and by {name}: rank correlation {value:.2f}."
                for name, value in compare_scorers(rows).items()
            ]
    more = document or {}
    lines += write_concordance(results)
    lines += write_claims(verdicts) if verdicts else []
    lines += write_defaults(more.get("own_defaults", ()))
    return "\n".join([*lines, *_write_groups(more), *_write_calibration(more)]) + "\n"


def _write_groups(document: Mapping[str, Any]) -> list[str]:
    rows = document.get("compositions")
    if not rows:
        return []
    lines = [
        "",
        "## Several concepts in one picture",
        "",
        _GROUPS_EXPLAINED,
        "",
        "| method | way | members | joint | recall | swaps | leaks | region | style |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = [str(row["method"]), str(row["way"]), " + ".join(row["members"])]
        if "impossible" in row:
            cells = [*head, "cannot be done so", *[""] * 5]
        else:
            numbers = (
                row["joint"],
                row["recall"],
                row["swaps"],
                row["leaks"],
                row["region"],
                row.get("style"),
            )
            cells = [*head, *(_say_all(value) for value in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _write_calibration(document: Mapping[str, Any]) -> list[str]:
    figures = document.get("calibration")
    if not figures:
        return []
    read = ", ".join(f"{name} {share:.1%}" for name, share in figures["renders"].items())
    graded = ", ".join(f"{value:.2f}" for value in figures["graded"])
    return [
        "",
        "## What the scorers are worth",
        "",
        f"- held-out renders read right: {read}",
        f"- mean identity of near-duplicates with 0, 1, 2, 4 and 8 changed attributes: {graded}; "
        f"falling throughout for {figures['ordered']:.0%} of the instances",
        f"- own renders taken for their instance: {_say_all(figures['found'])}; the base's pictures of the class taken "
        f"for it: {_say_all(figures['false_identity'])}",
        f"- rank correlation with a second scorer that has no learned weights: {figures['agreement']:.2f}",
    ]


def _say_all(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_say_all(one) for one in value)
    return "\u2013" if value is None else f"{value:.2f}"


def _make_markdown_table(rows: Sequence[MethodSummary]) -> list[str]:
    lines = [
        "| rank | method | subjects | identity | prompt | balance | ranks | preservation | leakage | bytes "
        "| clock seconds | processor seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        name = f"**{one.method}**" if one.is_front else one.method
        spread = "" if one.interval is None else " ({:.2f} to {:.2f})".format(*one.interval)
        cells = (
            "\u2013" if one.rank is None else str(one.rank),
            name,
            str(one.subjects),
            f"{one.identity:.2f}{spread}",
            f"{one.prompt:.2f}",
            f"{one.balance:.2f}",
            _say_ranks(one),
            _say(one.preservation),
            _say(one.leakage),
            str(one.size_bytes),
            f"{one.seconds:.0f}",
            "\u2013" if one.processor_seconds is None else f"{one.processor_seconds:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _say_ranks(one: MethodSummary) -> str:
    if one.rank_interval is None:
        return f"not ranked: lacks some of the {one.ranked_on}"
    return "{} to {}".format(*one.rank_interval)
