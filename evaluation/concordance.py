"""Whether the benchmark orders methods as papers do: pairs that somebody published, beside our own numbers.

Two shares are said: of all pairs, how many have means in the published order; and the same of the pairs that our
numbers decide, where chance over subjects does not explain the difference. The others are open.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np

from conceptry.evaluation.bench_results import ResultFile
from conceptry.evaluation.bench_summary import find_paired_interval
from conceptry.evaluation.claims import Numbers

_SMALLER_IS_AHEAD: Final = frozenset({"size_bytes", "seconds"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A published order of two methods in one measure."""

    better: str
    worse: str
    measure: str
    source: str
    discussion: str = ""
    """What may lie behind another order here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A pair with our numbers over the subjects that both methods have, and whether they are ordered the same way."""

    pair: Pair
    ours_better: float
    ours_worse: float
    agrees: bool
    """By the means alone; equal ones do not agree."""

    subjects: int
    interval: tuple[float, float] | None
    """Of how far the published better is ahead, 95 %, paired by subject; None for one subject."""

    @property
    def is_open(self) -> bool:
        """Whether chance over subjects could explain the difference."""
        return self.interval is None or self.interval[0] <= 0.0 <= self.interval[1]


@cache
def _load_document() -> Mapping[str, Any]:
    return tomllib.loads(files(__package__).joinpath("concordance.toml").read_text(encoding="utf-8"))


@cache
def load_pairs() -> tuple[Pair, ...]:
    """Returns the published pairs, each with what is to be said where we find another order."""
    general = _load_document()["discussions"]
    rows: Sequence[Mapping[str, str]] = _load_document()["pairs"]
    return tuple(Pair(**{"discussion": general[row["measure"]], **row}) for row in rows)


def judge_pairs(results: ResultFile, pairs: Sequence[Pair] | None = None) -> tuple[Verdict, ...]:
    """Returns the pairs of which both methods were measured on a common subject."""
    numbers = Numbers.gather(results)
    verdicts = []
    for pair in load_pairs() if pairs is None else pairs:
        better, worse = (numbers.find(f"{name} {pair.measure}") for name in (pair.better, pair.worse))
        common = sorted(better.keys() & worse.keys())
        if not common:
            continue
        ahead, behind = (np.asarray([found[name] for name in common]) for found in (better, worse))
        sign = -1.0 if pair.measure in _SMALLER_IS_AHEAD else 1.0
        lead = sign * (ahead - behind)
        verdicts.append(
            Verdict(
                pair=pair,
                ours_better=float(ahead.mean()),
                ours_worse=float(behind.mean()),
                agrees=float(lead.mean()) > 0,
                subjects=len(common),
                interval=find_paired_interval(lead),
            )
        )
    return tuple(verdicts)


def count_pairs(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Returns how many pairs there are, are ordered the same way, are decided, and both."""
    decided = [one for one in verdicts if not one.is_open]
    return {
        "pairs": len(verdicts),
        "same": sum(one.agrees for one in verdicts),
        "decided": len(decided),
        "same_decided": sum(one.agrees for one in decided),
    }


def write_concordance(results: ResultFile) -> list[str]:
    """Returns the section of the Markdown page, nothing where no pair was measured."""
    verdicts = judge_pairs(results)
    if not verdicts:
        return []
    lines = [
        "",
        "## What papers publish",
        "",
        _say_shares(count_pairs(verdicts)),
        "",
        "| measure | published as better | than | here | ahead by, 95 % | same | source |",
        "|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(verdicts, key=lambda one: (one.agrees, not one.is_open))
    for one in ordered:
        pair = one.pair
        lines.append(
            f"| {pair.measure} | {pair.better} | {pair.worse} | {one.ours_better:.3g} and {one.ours_worse:.3g} | "
            f"{_say_interval(one)} | {_say_verdict(one)} | {pair.source} |"
        )
    other = [one for one in ordered if not one.agrees]
    return [*lines, "", "Where the order is another one here:", "", *map(_discuss, other)] if other else lines


def _say_shares(counts: Mapping[str, int]) -> str:
    pairs, same, decided, sure = counts["pairs"], counts["same"], counts["decided"], counts["same_decided"]
    text = f"{same} of {pairs} published pairs are ordered the same way here ({same / pairs:.0%}). "
    left = f"the other {pairs - decided} are open: the 95 % interval of their difference, paired by subject, holds 0."
    if not decided:
        return f"{text}No difference is decided: each one's 95 % interval, paired by subject, holds 0, or it has none."
    return f"{text}Of the {decided} that our numbers decide, {sure} are ({sure / decided:.0%}); {left}"


def _say_interval(one: Verdict) -> str:
    if one.interval is None:
        return f"\u2013 ({one.subjects} subject)"
    return "{:.3g} to {:.3g} ({} subjects)".format(*one.interval, one.subjects)


def _say_verdict(one: Verdict) -> str:
    said = "yes" if one.agrees else "**no**"
    return f"{said}, open" if one.is_open else said


def _discuss(one: Verdict) -> str:
    pair = one.pair
    return f"- {pair.measure}, {pair.better} over {pair.worse} ({_say_verdict(one)}): {pair.discussion}"
