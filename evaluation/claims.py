"""What surveys claim, held against our own numbers: confirmed, refuted or not measured, with the numbers beside it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

from conceptry.errors import InvalidFileError
from conceptry.evaluation.bench_conditions import choose_rows
from conceptry.evaluation.bench_results import ResultFile, ResultRow
from conceptry.evaluation.bench_summary import FEWEST_SUBJECTS, balance, find_common, find_paired_interval
from conceptry.evaluation.toybench import load_suite

FIGURES_NAME: Final = "figures"
_FIGURE: Final = "figure"
_NUMBER: Final = "number"
_TIE_DIGITS: Final = 4
_MAX_FILE_BYTES: Final = 1 << 20
_SMALL_IS_BEST: Final = frozenset({"bytes", "size_bytes", "seconds", "leaks", "swaps"})
Answer = Literal["confirmed", "refuted", "not measured"]
UNSURE_EXPLAINED: Final = (
    "Not sure: the 95 % interval of a difference that decides holds both answers, or there is none."
)
ANSWERS: Final[tuple[Answer, ...]] = ("confirmed", "refuted", "not measured")

# Whether a relation holds for left, right and a margin.
RELATIONS: Final[Mapping[str, Callable[[float, float, float], bool]]] = MappingProxyType(
    {
        "at least": lambda left, right, margin: left >= right - margin,
        "above": lambda left, right, margin: left > right + margin,
        "below": lambda left, right, margin: left < right - margin,
        "near": lambda left, right, margin: abs(left - right) <= margin,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A comparison of two numbers that were measured."""

    left: str
    relation: str
    right: str
    times: float = 1.0
    margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What somebody published."""

    id: str
    claim: str
    source: str
    checks: tuple[Check, ...] = ()
    best_in: tuple[str, ...] = ()
    """Measures of which no one method is the best in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One comparison with our numbers; None where there are none."""

    text: str
    holds: bool | None
    is_sure: bool = False
    """Whether it is the same everywhere in the 95 % interval of the difference, paired by subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimVerdict:
    """A claim, and what our numbers say to it."""

    claim: Claim
    answer: Answer
    findings: tuple[Finding, ...]

    @property
    def is_sure(self) -> bool:
        """Whether no comparison that decides could be chance by its interval."""
        deciding = [one for one in self.findings if one.holds is (self.answer == "confirmed")]
        some = any if self.answer == "refuted" else all
        return self.answer != "not measured" and some(one.is_sure for one in deciding)

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as the summary keeps it."""
        return {
            "id": self.claim.id,
            "claim": self.claim.claim,
            "source": self.claim.source,
            "answer": self.answer,
            "sure": self.is_sure,
            "numbers": [one.text for one in self.findings],
        }


@cache
def load_claims() -> tuple[Claim, ...]:
    """Returns the claims in the order of the data file."""
    document = tomllib.loads(files(__package__).joinpath("claims.toml").read_text(encoding="utf-8"))
    return tuple(
        Claim(
            id=row["id"],
            claim=row["claim"],
            source=row["source"],
            checks=tuple(Check(**check) for check in row.get("checks", ())),
            best_in=tuple(row.get("best_in", ())),
        )
        for row in document["claims"]
    )


# --- our numbers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """All that was measured: rows of methods, groups of several concepts, and single figures."""

    rows: Mapping[str, Mapping[str, ResultRow]] = field(default_factory=dict)
    """By method, then by subject; instances alone."""

    groups: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, float | Mapping[str, float]] = field(default_factory=dict)
    """Each one value, or one for each subject."""

    @classmethod
    def gather(
        cls,
        results: ResultFile,
        groups: Sequence[Mapping[str, Any]] = (),
        figures: Mapping[str, float | Mapping[str, float]] | None = None,
    ) -> Numbers:
        """Returns the numbers of results, groups and figures; of the rows those that stand in one table."""
        rows: dict[str, dict[str, ResultRow]] = {}
        for row in choose_rows(results.rows)[0]:
            if row.kind == "instance":
                rows.setdefault(row.method, {}).setdefault(row.subject, row)
        return cls(rows=rows, groups=tuple(groups), figures=figures or {})

    def find(self, side: str) -> dict[str, float]:
        """Returns the values of a side of a check by what they were measured on; nothing where there are none."""
        named, _, measure = side.partition(" ")
        if named == _FIGURE:
            found = self.figures.get(measure, {})
            return dict(found) if isinstance(found, Mapping) else {"": found}
        if "/" in named:
            method, way, count = named.split("/")
            return {
                " + ".join(group["members"]): _mean(group[measure])
                for group in self.groups
                if (group["method"], group["way"]) == (method, way)
                and len(group["members"]) == int(count)
                and not _list_styles() & set(group["members"])  # a style is no further thing in the picture
                and group.get(measure) is not None
            }
        read = {subject: read_measure(row, measure) for subject, row in self.rows.get(named, {}).items()}
        return {subject: value for subject, value in read.items() if value is not None}


@cache
def _list_styles() -> frozenset[str]:
    return frozenset(subject.id for subject in load_suite().subjects if subject.subject == "style")


@cache
def _list_studies() -> frozenset[str]:
    """Returns the trainings that claims ask for: they have other words and stand in no table."""
    document = tomllib.loads(files(__package__).joinpath("studies.toml").read_text(encoding="utf-8"))
    return frozenset(row["id"] for row in document["studies"])


def _mean(value: Any) -> float:
    return float(np.mean(value))


def read_measure(row: ResultRow, measure: str) -> float | None:
    """Returns a measure of a row, None where it was not taken. Unknown names are None too.

    Seconds are those of the processor: by the clock the same training took 28 and 200 s on a machine with neighbours.
    """
    if measure in ("bytes", "size_bytes"):
        return float(row.size_bytes)
    if measure == "seconds":
        return row.training_processor_seconds
    if measure == "balance":
        both = row.identity.normalised, row.prompt.normalised
        values = [np.asarray([value or 0.0], np.float64) for value in both]
        return None if None in both else float(balance(*values)[0])
    model = getattr(row, measure, None) or row.others.get(measure)
    return None if model is None else model.normalised


def read_figures_beside(folder: Path) -> dict[str, float | Mapping[str, float]]:
    """Returns the figures that ``figures/*.json`` of a folder of results name, each a number or one for each subject.

    Raises:
        InvalidFileError: if a file there is none of figures.
    """
    figures: dict[str, float | Mapping[str, float]] = {}
    for path in sorted((folder / FIGURES_NAME).glob("*.json")):
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError(f"more than {_MAX_FILE_BYTES} bytes")
            document = json.loads(path.read_text(encoding="utf-8"))
            named = {str(name): _read_figure(value) for name, value in document["figures"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidFileError(
                f"{str(path)!r} is no file of figures: {error}", hint='{"figures": {"name": 0.5}}'
            ) from error
        figures |= named
    return figures


def _read_figure(value: Any) -> float | dict[str, float]:
    """Raises ValueError, TypeError."""
    found = {
        str(name): float(one) for name, one in (value if isinstance(value, dict) else {"": value}).items()
    }
    if not found or not np.isfinite(list(found.values())).all():
        raise ValueError("a figure is not finite")
    return found if isinstance(value, dict) else found[""]


# --- judging ---------------------------------------------------------------------------------------------------------


def judge_claims(numbers: Numbers, claims: Sequence[Claim] | None = None) -> tuple[ClaimVerdict, ...]:
    """Returns every claim with what our numbers say to it."""
    verdicts = []
    for claim in load_claims() if claims is None else claims:
        findings = [_compare(check, numbers) for check in claim.checks]
        findings += [_seek_winner(claim.best_in, numbers)] if claim.best_in else []
        held = [one.holds for one in findings]
        answer: Answer = "not measured" if None in held else "confirmed" if all(held) else "refuted"
        verdicts.append(ClaimVerdict(claim=claim, answer=answer, findings=tuple(findings)))
    return tuple(verdicts)


def _compare(check: Check, numbers: Numbers) -> Finding:
    left = numbers.find(check.left)
    kind, _, said = check.right.partition(" ")
    right = dict.fromkeys(left, float(said)) if kind == _NUMBER else numbers.find(check.right)
    sides = ((check.left, left), (check.right, {"": 0.0} if kind == _NUMBER else right))
    lacking = [side for side, found in sides if not found]
    if lacking:
        return Finding(text=f"no {' and no '.join(lacking)}", holds=None)
    common = sorted(left.keys() & right.keys())
    if not common and _is_of_rows(check.left) and _is_of_rows(check.right):
        return Finding(text=f"no subject has both {check.left} and {check.right}", holds=None)
    one = np.asarray([left[name] for name in common] or list(left.values()))
    other = check.times * np.asarray([right[name] for name in common] or list(right.values()))
    holds = RELATIONS[check.relation](float(one.mean()), float(other.mean()), check.margin)
    scaled = f"{check.times:g} times " if check.times != 1.0 else ""
    beside = said if kind == _NUMBER else f"{scaled}{check.right} {_say(other)}"
    text = f"{check.left} {_say(one)} {check.relation} {beside}: {'yes' if holds else 'no'}"
    low, high = (find_paired_interval(one - other) if common else None) or (float("-inf"), float("inf"))
    # No relation changes more than once on either side of zero.
    places = (low, high, *([0.0] if low < 0 < high else []))
    alike = all(RELATIONS[check.relation](place, 0.0, check.margin) == holds for place in places)
    return Finding(text=text, holds=holds, is_sure=alike)


def _is_of_rows(side: str) -> bool:
    named = side.partition(" ")[0]
    return named != _FIGURE and "/" not in named


def _say(values: Any) -> str:
    return f"{float(np.mean(values)):.3g}" if abs(float(np.mean(values))) < 1000 else f"{np.mean(values):.0f}"


def _seek_winner(measures: Sequence[str], numbers: Numbers) -> Finding:
    """Whether the best methods of the measures differ, among those of the table and on subjects that they share."""
    found = {
        method: {measure: numbers.find(f"{method} {measure}") for measure in measures}
        for method in numbers.rows
        if method not in _list_studies()
    }
    measured = {method: set.intersection(*map(set, values.values())) for method, values in found.items()}
    common = find_common(measured)
    taking = [method for method, subjects in measured.items() if common and subjects >= set(common)]
    if len(taking) < 2:
        return Finding(text=f"no two methods with {', '.join(measures)} of the same subjects", holds=None)
    best: dict[str, set[str]] = {}
    for measure in measures:
        means = {
            method: round(_mean([found[method][measure][subject] for subject in common]), _TIE_DIGITS)
            for method in taking
        }
        top = (min if measure in _SMALL_IS_BEST else max)(means.values())
        best[measure] = {method for method, value in means.items() if value == top}
    text = "; ".join(f"best in {measure}: {', '.join(sorted(names))}" for measure, names in best.items())
    is_sure = len(common) >= FEWEST_SUBJECTS
    return Finding(text=text, holds=not set.intersection(*best.values()), is_sure=is_sure)


# --- for people ------------------------------------------------------------------------------------------------------


def count_answers(verdicts: Sequence[ClaimVerdict]) -> dict[str, int]:
    """Returns how many claims have each answer."""
    return {answer: sum(one.answer == answer for one in verdicts) for answer in ANSWERS}


def write_claims(verdicts: Sequence[ClaimVerdict]) -> list[str]:
    """Returns the section of the Markdown page."""
    counts = ", ".join(f"{count} {answer}" for answer, count in count_answers(verdicts).items())
    lines = [
        "",
        "## What surveys claim",
        "",
        f"{len(verdicts)} claims: {counts}. {UNSURE_EXPLAINED}",
        "",
        "| claim | here | numbers | source |",
        "|---|---|---|---|",
    ]
    for one in verdicts:
        numbers = "; ".join(finding.text for finding in one.findings)
        lines.append(f"| {one.claim.claim} | {say_answer(one)} | {numbers} | {one.claim.source} |")
    return lines


def say_answer(verdict: ClaimVerdict) -> str:
    """Returns the answer in words, with a doubt where chance could explain it."""
    doubtful = verdict.answer != "not measured" and not verdict.is_sure
    return f"{verdict.answer} (not sure)" if doubtful else verdict.answer
